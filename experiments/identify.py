"""Which rule trained the network? Posteriors over learning rules from noisy, partly observed changes of weights.

python -m experiments.identify --help
"""

import dataclasses
import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.stats
import tyro
from tqdm.auto import tqdm

import nl_jax as nl
from experiments.harness.compiling import options
from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.results import Folder, Verdict
from nl_jax._core.numerics import mean_and_error
from nl_jax.base import Batch, Key, Params
from nl_jax.evaluation.diagnostics import Trajectory, identify

CHANCE = 1e-3  # probability of rejecting correct posteriors
NETWORK = nl.mlp([4, 5, 2], activation=nl.activations.tanh())
OBJECTIVE = nl.supervised(NETWORK.apply, nl.losses.half_squared_error)
EXAMPLES = 5
RATE = 0.1
"""Learning rate; the noise is scaled relative to it."""

BINS = (0.0, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98, 1.0)
"""Edges of the bins of stated probabilities."""


def _of_inputs(estimator: nl.GradientEstimator) -> nl.GradientEstimator:
    """Adapts a rule without targets to batches of (inputs, targets): it receives the inputs only."""

    def estimate(key: Key, state: Any, params: Params, batch: Batch) -> tuple[Params, Any, nl.Info]:
        return estimator.estimate(key, state, params, batch[0])

    return nl.GradientEstimator(estimator.init, estimate)


CANDIDATES: dict[str, nl.GradientEstimator] = {
    "backprop": nl.backprop(OBJECTIVE),
    "feedback alignment": nl.feedback_alignment(OBJECTIVE),
    "node perturbation": nl.node_perturbation(OBJECTIVE),
    "weight perturbation": nl.weight_perturbation(OBJECTIVE),
    "Oja’s rule": _of_inputs(nl.local_learning(NETWORK.apply, nl.rules.oja())),
}


@dataclass(frozen=True)
class Config:
    """Train small networks, each by one of five rules drawn at random, and infer which rule it was.

    Weight changes are observed with noise. Some hidden units are not observed, nor any weight to or from them. The size
    of the learning relative to the noise is drawn at random, too. The parameters before each step, the examples, the
    noise of an observation and, for feedback alignment, the feedback weights are known. The posterior must be
    calibrated: of the cases given a probability, that fraction should be right. Prints the confusion matrix and writes
    config.json, metrics.jsonl, identify.json and identify.png to --out. Fails if probabilities are further off than
    chance allows.
    """

    out: Path = Path("results/identify")
    """Folder for the results; files of an earlier run there are replaced."""
    candidates: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME [NAME ...]")] = tuple(CANDIDATES)
    """Two or more rules; one of them trains each network. The default is all of them."""
    cases: int = 600
    """Number of networks, at least 50."""
    steps: int = 8
    """Observed updates per network."""
    unobserved: float = 0.4
    """Expected fraction of hidden units that are not observed."""
    strongest: float = 40.0
    """Largest size of the learning, over all steps and weights, relative to the noise of one observation; the size is
    uniform between 0 and this."""
    num_samples: int = 1000
    """Estimates that measure how random rules scatter; with 1 the scatter is ignored and random rules are missed."""
    noise_known: bool = True
    """Whether the noise of an observation is known; otherwise it is inferred as well."""
    at_once: int = 50
    """Networks simulated in parallel."""
    quick: bool = False
    """A small version: three rules, 150 networks of 4 steps and 300 estimates, in under half a minute."""


class Cases(NamedTuple):
    """Posterior and truth for each network.

    Attributes:
      posterior: [cases, candidates].
      which: index of the rule that trained it, [cases].
      strength: size of its learning relative to the noise, [cases].
    """

    posterior: np.ndarray
    which: np.ndarray
    strength: np.ndarray


class Bin(NamedTuple):
    """Stated probabilities in an interval: their mean, the fraction that came true, and its binomial standard error."""

    stated: float
    right: float
    error: float
    times: int

    @property
    def deviation(self) -> float:
        """Fraction that came true minus mean stated probability, in standard errors."""
        return (self.right - self.stated) / self.error


def run(config: Config) -> Cases:
    """Simulates and judges networks, saving as it goes.

    Raises:
      ExperimentError: for an invalid setting or an unusable folder, or if the probabilities are not calibrated.
    """
    if config.quick:
        config = dataclasses.replace(
            config,
            cases=min(config.cases, 150),
            steps=min(config.steps, 4),
            num_samples=min(config.num_samples, 300),
            candidates=tuple(dict.fromkeys(config.candidates[:1] + config.candidates[-2:])),
        )
    _check(config)
    folder = Folder(config.out, config, outputs=["identify.json", "identify.png"])
    judged = jax.jit(jax.vmap(lambda key: case(key, config)), compiler_options=options(config.quick))
    keys = jax.random.split(jax.random.key(0), config.cases)
    parts = []
    for start in tqdm(range(0, config.cases, config.at_once), unit="batch", leave=False):
        parts.append(jax.device_get(judged(keys[start : start + config.at_once])))
        for posterior, which, strength in zip(*parts[-1], strict=True):
            folder.metric(which=config.candidates[which], strength=strength, posterior=posterior)
    found = Cases(*(np.concatenate(values) for values in zip(*parts, strict=True)))
    verdict = judge(found)
    folder.data(
        "identify",
        {
            **verdict._asdict(), "names": config.candidates, "confusion": confusion(found),
            "calibration": [bin._asdict() for bin in calibration(found)],
        },
    )  # fmt: skip
    picture = folder.picture("identify", plot(found, config))
    print(table(found, config))
    print(f"picture and data: {picture.parent} ({picture.name}, .json, metrics.jsonl, config.json)")
    if not verdict.agrees:
        raise ExperimentError(
            f"probabilities are not right as often as they say: off by {verdict.largest_deviation:.1f} standard "
            f"errors, where chance allows {verdict.allowed:.1f}"
        )
    return found


def _check(config: Config) -> None:
    unknown = [name for name in config.candidates if name not in CANDIDATES]
    if unknown or len(set(config.candidates)) < max(2, len(config.candidates)):
        raise ExperimentError(f"--candidates must be two or more of {', '.join(CANDIDATES)}, got {config.candidates}")
    for name, least in (("cases", 50), ("steps", 2), ("num_samples", 1), ("at_once", 1)):
        if getattr(config, name) < least:
            raise ExperimentError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(config, name)}")
    if not 0 <= config.unobserved < 1:
        raise ExperimentError(f"--unobserved must be from 0 to below 1, got {config.unobserved}")
    if not config.strongest > 0:
        raise ExperimentError(f"--strongest must be above 0, got {config.strongest}")


def case(key: Key, config: Config) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Trains a network by a random rule; returns (posterior probabilities, index of the rule, strength)."""
    which_key, own_key, noise_key, strength_key, feedback_key, ask_key = jax.random.split(key, 6)
    which = jax.random.randint(which_key, (), 0, len(config.candidates))
    known = {name: _with_state(CANDIDATES[name], feedback_key) for name in config.candidates}
    branches = [_trained(made, config) for made in known.values()]
    trajectory, power = jax.lax.switch(which, branches, own_key)
    strength = config.strongest * jax.random.uniform(strength_key)
    sigma = RATE * jnp.sqrt(power) / strength
    leaves, tree = jax.tree.flatten(trajectory.change)
    keys = jax.random.split(noise_key, len(leaves))
    read = [x + sigma * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    hidden = jax.tree.map(
        lambda x, seen: jnp.where(seen, x, jnp.nan), jax.tree.unflatten(tree, read), trajectory.observed
    )
    found = identify(
        trajectory._replace(change=hidden), known, ask_key, noise=sigma if config.noise_known else None,
        num_samples=config.num_samples,
    )  # fmt: skip
    return jnp.stack([found.posterior[name] for name in config.candidates]), which, strength


def _with_state(estimator: nl.GradientEstimator, key: Key) -> nl.GradientEstimator:
    """The estimator with known feedback weights: `init` always returns the state that it draws from `key`."""
    return estimator._replace(init=lambda _, params: estimator.init(key, params))


def _trained(estimator: nl.GradientEstimator, config: Config) -> Callable[[Key], tuple[Trajectory, jax.Array]]:
    """A function that returns a network's noiseless trajectory by one rule, and Σ E‖ĝ‖² of the observed weights."""

    def trained(key: Key) -> tuple[Trajectory, jax.Array]:
        init_key, teacher_key, data_key, unit_key, step_key = jax.random.split(key, 5)
        inputs = jax.random.normal(data_key, (config.steps, EXAMPLES, 4))
        teacher = NETWORK.init(teacher_key)
        targets = jax.vmap(lambda x: 3 * NETWORK.apply(teacher, x))(inputs)
        units = jax.random.bernoulli(unit_key, 1 - config.unobserved, (5,)).at[0].set(True)  # at least one
        one = jax.tree.map(lambda w: jnp.ones(w.shape, bool), teacher)
        one["hidden1"] = {"weight": jnp.broadcast_to(units[None], (4, 5)), "bias": units}
        one["output"]["weight"] = jnp.broadcast_to(units[:, None], (5, 2))

        def step(params: Params, given: tuple[Key, Batch]) -> tuple[Params, tuple[Params, Params, jax.Array]]:
            key, batch = given
            state = estimator.init(key, params)
            several = jax.vmap(lambda k: estimator.estimate(k, state, params, batch)[0])(jax.random.split(key, 100))
            squares = jax.tree.map(lambda g, seen: jnp.sum(jnp.where(seen[None], g, 0) ** 2) / len(g), several, one)
            change = jax.tree.map(lambda g: -RATE * g[0], several)
            return optax.apply_updates(params, change), (params, change, optax.tree.sum(squares))

        keys = jax.random.split(step_key, config.steps)
        _, (params, change, squares) = jax.lax.scan(step, NETWORK.init(init_key), (keys, (inputs, targets)))
        observed = jax.tree.map(lambda seen: jnp.broadcast_to(seen[None], (config.steps, *seen.shape)), one)
        return Trajectory(params, (inputs, targets), change, observed), jnp.sum(squares)

    return trained


def confusion(found: Cases) -> np.ndarray:
    """The mean posterior of each candidate (columns) for each true rule (rows)."""
    names = range(found.posterior.shape[1])
    return np.array([found.posterior[found.which == i].mean(axis=0) for i in names])


def calibration(found: Cases) -> list[Bin]:
    """All stated probabilities by interval; intervals with fewer than ten are left out."""
    right = np.arange(found.posterior.shape[1])[None] == found.which[:, None]
    bins = []
    for low, high in itertools.pairwise(BINS):
        inside = (found.posterior >= low) & ((found.posterior < high) | (high == 1))
        if inside.sum() >= 10:
            p = np.clip(found.posterior[inside], 1e-12, 1 - 1e-12)
            error = np.sqrt(np.sum(p * (1 - p))) / len(p)
            bins.append(Bin(float(p.mean()), float(right[inside].mean()), float(error), len(p)))
    return bins


def judge(found: Cases) -> Verdict:
    """The largest deviation of what came true from what was stated, and the largest that chance allows.

    In the outermost intervals nearly all stated probabilities may be close to 0 or 1, so that one surprise is far from
    normal. Their error is therefore at least that of one case.
    """
    bins = calibration(found)
    off = [(one.right - one.stated) / max(one.error, 1 / one.times) for one in bins]
    return Verdict(float(np.max(np.abs(off))), allowed=float(scipy.stats.norm.isf(CHANCE / 2 / len(off))))


def table(found: Cases, config: Config) -> str:
    """The confusion matrix and the calibration as text."""
    names = config.candidates
    lines = [f"{'mean posterior, where true':28}" + "".join(f"{name:>21}" for name in names) + f"{'cases':>8}"]
    for name, row, count in zip(names, confusion(found), np.bincount(found.which, minlength=len(names)), strict=True):
        lines.append(f"{name:28}" + "".join(f"{p:>21.3f}" for p in row) + f"{count:>8}")
    best = np.mean(found.posterior.argmax(axis=1) == found.which)
    lines.append(f"the most probable rule is the true one in {100 * best:.1f} % of {len(found.which)} networks")
    lines.append(f"{'stated probability':>20}{'came true':>12}{'± error':>10}{'stated so often':>17}")
    for one in calibration(found):
        lines.append(f"{one.stated:>20.4f}{one.right:>12.4f}{one.error:>10.4f}{one.times:>17}")
    largest, allowed, unit = judge(found)
    lines.append(f"largest deviation: {largest:.1f} {unit}; chance allows {allowed:.1f}")
    return "\n".join(lines)


def plot(found: Cases, config: Config) -> Any:
    """The confusion matrix, the calibration curve, and the posterior against the strength."""
    from experiments.harness.plotting import figure, style

    canvas, (matrix, curve, strength) = figure(1, 3, size=(15.5, 5.2))
    names, mean = config.candidates, confusion(found)
    matrix.imshow(mean, cmap="Blues", vmin=0, vmax=1)
    for (row, column), p in np.ndenumerate(mean):
        matrix.text(column, row, f"{p:.2f}", ha="center", va="center", color="white" if p > 0.6 else "black")
    matrix.set_xticks(range(len(names)), names, rotation=30, ha="right")
    matrix.set_yticks(range(len(names)), names)
    matrix.grid(visible=False)
    matrix.set(title="mean posterior", xlabel="candidate", ylabel="rule that trained the network")
    bins = calibration(found)
    curve.plot([0, 1], [0, 1], color="grey", linewidth=1.2, label="as often as stated")
    curve.errorbar(
        [one.stated for one in bins], [one.right for one in bins], [one.error for one in bins],
        **{**style(2), "linestyle": "none", "markevery": None}, capsize=3, label="came true, ± binomial error",
    )  # fmt: skip
    curve.set(xlabel="stated probability", ylabel="fraction that came true", title="calibration", aspect="equal")
    curve.legend(loc="upper left", frameon=False)
    edges = np.linspace(0, config.strongest, 7)
    own = found.posterior[np.arange(len(found.which)), found.which]
    for index, name in enumerate(names):
        mine = [own[(found.which == index) & (found.strength >= a) & (found.strength < b)] for a, b in
                itertools.pairwise(edges)]  # fmt: skip
        centres = [(a + b) / 2 for (a, b), values in zip(itertools.pairwise(edges), mine, strict=True) if len(values)]
        means, errors = np.transpose([mean_and_error(values) for values in mine if len(values)])
        strength.errorbar(
            centres, means, np.where(np.isfinite(errors), errors, 0), **{**style(index), "markevery": None}, capsize=2,
            label=name,
        )  # fmt: skip
    strength.set(
        xlabel="size of all changes / noise of one reading", ylabel="mean posterior of the true rule", ylim=(0, 1.03),
        title="the stronger the learning, the surer",
    )  # fmt: skip
    strength.legend(loc="lower right", frameon=False)
    canvas.suptitle(
        f"{len(found.which)} networks, {config.steps} updates each; {100 * config.unobserved:.0f} % of hidden units "
        f"are not observed, noise is {'known' if config.noise_known else 'not known'}"
    )
    return canvas


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.identify")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
