"""Local minima of a single sigmoid unit, found from many initialisations and counted by theory (Auer et al. 1996).

python -m experiments.restarts --help
"""

import dataclasses
import functools
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax.nn import initializers
from scipy.optimize import brentq
from scipy.special import expit
from scipy.stats import binom, norm

import nl_jax as nl
from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.results import Folder, Verdict

INPUTS = 1.0, 10.0  # of the two examples along each axis
TARGETS = 0.8, 0.3  # their targets, which need weights of opposite signs
ALLOWED = 4.5  # standard errors, for at most a hundred comparisons
COUNTED_FROM = 10.0  # counts of smaller variance are not Gaussian and are not judged
CONVERGED = 1e-3  # largest distance of weights from a minimum


@dataclass(frozen=True)
class Config:
    """Train one sigmoid unit of D inputs from many random weights and count where the runs end.

    Each axis has two examples that no weight fits both, so each weight has two minima of its own and the unit has 2^D.
    Gradient descent stays on the side of each barrier where it started and ends in the minimum there. Conjugate
    gradients, whose line searches couple the weights, find the same minima but no such law holds for them. Prints a
    table and writes config.json, restarts.json and restarts.png to --out.
    """

    out: Path = Path("results/restarts")
    """Folder for the results; files of an earlier run there are replaced."""
    inputs: int = 5
    """D, between 1 and 10."""
    restarts: int = 2000
    """Number of random initialisations."""
    spread: float = 1.0
    """Standard deviation of the initial weights."""
    steps: int = 10_000
    """Steps of gradient descent."""
    conjugate_steps: int = 100
    """Steps of conjugate gradients, each a line search."""
    quick: bool = False
    """A small version, 400 restarts, in about ten seconds."""


class Landscape(NamedTuple):
    """The loss ½ Σ_i (σ(w x_i) − y_i)² of one weight: two minima and the maximum between them.

    Attributes:
      best: weight at the lower minimum.
      barrier: weight at the maximum.
      worse: weight at the higher minimum.
    """

    best: float
    barrier: float
    worse: float


class Runs(NamedTuple):
    """Where the runs of one optimizer ended.

    Attributes:
      minimum: the minimum as D binary digits, 1 where a weight is in the worse minimum, [restarts].
      loss: summed over examples, [restarts].
      distance: largest distance of any weight from that minimum's, [restarts].
      gradient: norm of the gradient, [restarts].
      curvature: smallest eigenvalue of the Hessian, [restarts].
    """

    minimum: np.ndarray
    loss: np.ndarray
    distance: np.ndarray
    gradient: np.ndarray
    curvature: np.ndarray

    @property
    def misses(self) -> np.ndarray:
        """Number of weights in the worse minimum, [restarts]."""
        return np.bitwise_count(self.minimum)

    @property
    def converged(self) -> np.ndarray:
        """Whether each run is at a minimum, [restarts]."""
        return (self.distance < CONVERGED) & (self.curvature > 0)


def loss(w: np.ndarray | float) -> np.ndarray:
    """½ Σ_i (σ(w x_i) − y_i)², elementwise."""
    return sum(
        ((expit(np.multiply(w, x)) - y) ** 2 / 2 for x, y in zip(INPUTS, TARGETS, strict=True)), start=np.zeros(())
    )


def landscape() -> Landscape:
    """The zeros of the loss's derivative, between the weights that fit one example each."""

    def slope(w: float) -> float:
        outputs = [expit(w * x) for x in INPUTS]
        return sum((o - y) * o * (1 - o) * x for o, x, y in zip(outputs, INPUTS, TARGETS, strict=True))

    grid = np.linspace(-1, 2, 301)
    signs = np.sign([slope(w) for w in grid])
    turns = [brentq(slope, a, b) for a, b, s, t in zip(grid, grid[1:], signs, signs[1:], strict=False) if s != t]
    return Landscape(*turns)


def law(config: Config) -> np.ndarray:
    """P(k of D weights in the worse minimum), [D + 1]: binomial, with the probability of starting beyond the barrier.

    Weights do not interact, since no example has two inputs. With a step below 1/curvature, a weight never moves past a
    stationary point.
    """
    beyond = norm.sf(landscape().barrier / config.spread)
    return binom.pmf(np.arange(config.inputs + 1), config.inputs, beyond)


def run(config: Config) -> dict[str, Runs]:
    """Runs both optimizers from the same initialisations.

    Raises:
      ExperimentError: for an invalid setting or an unusable folder, or if runs do not end where theory predicts.
    """
    if config.quick:
        config = dataclasses.replace(config, restarts=min(config.restarts, 400))
    for name, least in (("inputs", 1), ("restarts", 20), ("steps", 1), ("conjugate_steps", 1)):
        if getattr(config, name) < least:
            raise ExperimentError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(config, name)}")
    if config.inputs > 10 or not 0 < config.spread < np.inf:
        raise ExperimentError("--inputs must be at most 10, and --spread a finite number above 0")
    folder = Folder(config.out, config, outputs=["restarts.json", "restarts.png"])
    runs = {}
    with jax.enable_x64(True):
        # The loss's second derivative is nowhere above 7; the objective is a mean over 2 D examples.
        descent = optax.sgd(2 * config.inputs * 0.1)
        runs["gradient descent"] = train(descent, config.steps, config)
        runs["conjugate gradients"] = train(nl.optimizers.conjugate_gradient(), config.conjugate_steps, config)
    judged = judge(runs, config)
    folder.data("restarts", judged | {"runs": {name: found._asdict() for name, found in runs.items()}})
    picture = folder.picture("restarts", plot(runs, config))
    print(table(runs, judged, config))
    print(f"picture and data: {picture.parent} ({picture.name}, restarts.json, config.json)")
    if judged["astray"]:
        raise ExperimentError(f"{judged['astray']} runs of gradient descent ended at no minimum: take more --steps")
    if not judged["largest_deviation"] <= ALLOWED:
        raise ExperimentError(
            f"counts differ from theory by {judged['largest_deviation']:.1f} standard errors, more than {ALLOWED:g}"
        )
    return runs


def train(optimizer: optax.GradientTransformation, steps: int, config: Config) -> Runs:
    """Trains all restarts at once and finds their minima."""
    D, sigmoid = config.inputs, nl.activations.sigmoid()
    net = nl.mlp([D, 1], activation=sigmoid, weight_init=initializers.normal(config.spread), bias=False,
                 output_activation=sigmoid)  # fmt: skip
    x = jnp.concatenate([along * jnp.eye(D) for along in INPUTS])
    data = x, jnp.repeat(jnp.array(TARGETS), D)[:, None]
    objective = nl.supervised(net.apply, nl.losses.half_squared_error)

    def total(params: Any) -> jax.Array:
        return jnp.sum(objective(params, data))

    found = nl.restarts(
        nl.learner(nl.backprop(objective), optimizer), jax.random.key(0),
        functools.partial(net.init, dtype=float), data, score=total, num_restarts=config.restarts, num_steps=steps,
        record=lambda state, info: (),
    )  # fmt: skip
    w = found.states.params["output"]["weight"]

    @jax.jit
    @jax.vmap
    def derivatives(w: jax.Array) -> tuple[jax.Array, jax.Array]:
        def of(flat: jax.Array) -> jax.Array:
            return total({"output": {"weight": flat[:, None]}})

        flat = w[:, 0]
        return jnp.linalg.norm(jax.grad(of)(flat)), jnp.linalg.eigvalsh(jax.hessian(of)(flat))[0]

    gradient, curvature = map(np.asarray, derivatives(w))
    weights, here = np.asarray(w)[:, :, 0], landscape()
    missed = weights > here.barrier
    distance = np.abs(weights - np.where(missed, here.worse, here.best)).max(axis=1)
    return Runs(missed @ (1 << np.arange(D)), np.asarray(found.scores), distance, gradient, curvature)


def judge(runs: Mapping[str, Runs], config: Config) -> dict[str, Any]:
    """Compares descent's counts with the law, by loss and by minimum, and each optimizer's halves with each other."""
    D, R = config.inputs, config.restarts
    levels = law(config)
    minima = np.array([levels[k] / math.comb(D, k) for k in np.bitwise_count(np.arange(2**D))])
    descent = runs["gradient descent"]
    deviations = []
    for expected, counts in (
        (levels, np.bincount(descent.misses, minlength=D + 1)),
        (minima, np.bincount(descent.minimum, minlength=2**D)),
    ):
        variance = R * expected * (1 - expected)
        judged = variance >= COUNTED_FROM
        deviations += list((counts - R * expected)[judged] / np.sqrt(variance[judged]))
    halves = []
    for found in runs.values():
        first, second = (np.mean(half == 0) for half in np.array_split(found.misses, 2))
        pooled = np.mean(found.misses == 0)
        halves.append((first - second) / math.sqrt(max(4 * pooled * (1 - pooled) / R, 1e-300)))
    return {
        **Verdict(float(np.abs(deviations + halves).max()), ALLOWED)._asdict(),
        "law": levels, "deviations": deviations, "halves": halves, "comparisons": len(deviations + halves),
        "astray": int(np.sum(~descent.converged)),
        "restarts_needed": {name: needed(np.mean(found.misses == 0)) for name, found in runs.items()},
        "restarts_needed_by_law": needed(levels[0]),
    }  # fmt: skip


def needed(fraction: float) -> float:
    """Restarts that find a minimum of this fraction with probability 99 %: log 0.01 / log(1 − fraction), at least 1."""
    return (
        float(np.maximum(1, np.log(0.01) / np.log1p(-fraction)))
        if 0 < fraction < 1
        else (1.0 if fraction else math.inf)
    )


def losses_of_levels(config: Config) -> np.ndarray:
    """Loss with k weights in the worse minimum, [D + 1]."""
    here, k = landscape(), np.arange(config.inputs + 1)
    return k * loss(here.worse) + (config.inputs - k) * loss(here.best)


def table(runs: Mapping[str, Runs], judged: Mapping[str, Any], config: Config) -> str:
    """The counts as text; ± is one binomial standard error."""
    D, R = config.inputs, config.restarts
    lines = [f"{'k':>2}{'minima':>8}{'loss':>9}{'law':>9}" + "".join(f"{name:>26}" for name in runs)]
    for k, (at, expected) in enumerate(zip(losses_of_levels(config), judged["law"], strict=True)):
        line = f"{k:>2}{math.comb(D, k):>8}{at:>9.4f}{expected:>9.4f}"
        for found in runs.values():
            fraction = np.mean(found.misses == k)
            line += f"{fraction:>17.4f} ±{np.sqrt(fraction * (1 - fraction) / R):7.4f}"
        lines.append(line)
    lines.append(
        f"k: weights in the worse of their two minima; fractions of {R:,} restarts. The law is gradient descent's."
    )
    for name, found in runs.items():
        there = found.converged
        lines += [
            f"{name}: {np.mean(there):.1%} at a minimum; gradient there at most "
            f"{found.gradient[there].max(initial=0):.0e}, curvature at least "
            f"{found.curvature[there].min(initial=np.inf):.3f};",
            f"    {len(np.unique(found.minimum))} of {2**D} minima found; the best would be found with 99 % by "
            f"{judged['restarts_needed'][name]:.0f} restarts",
        ]
    lines += [
        f"by law it takes gradient descent {judged['restarts_needed_by_law']:.0f} restarts",
        f"largest deviation from the law, and of one half of the restarts from the other: "
        f"{judged['largest_deviation']:.1f} standard errors in {judged['comparisons']} comparisons",
    ]
    return "\n".join(lines)


def plot(runs: Mapping[str, Runs], config: Config) -> Any:
    """Plots the loss of one weight, the distribution of final losses, and the probability of missing the best one."""
    from experiments.harness.plotting import figure, style

    canvas, (along, distribution, chance) = figure(1, 3, size=(16, 4.8))
    R, here, levels = config.restarts, landscape(), losses_of_levels(config)
    w = np.linspace(-2.5, 4, 500)
    along.plot(w, loss(w), color="black", linewidth=1.6)
    begin = along.twinx()
    begin.fill_between(w, norm.pdf(w, scale=config.spread), color="grey", alpha=0.2, linewidth=0)
    begin.set(yticks=[], ylim=(0, 1.5 / config.spread))
    begin.spines[:].set_visible(False)
    for at, look in ((here.best, style(6)), (here.worse, style(3))):
        along.plot(at, loss(at), color=look["color"], marker="o", markersize=9)
    along.axvline(here.barrier, color="grey", linestyle=":", linewidth=1.4)
    along.set(xlabel="one weight", ylabel="its part of the loss", title="two minima; grey: beginnings")
    tries = np.arange(1, 4 * math.ceil(needed(law(config)[0])) // 2)
    for offset, (index, (name, found)) in zip((-0.2, 0.2), zip((2, 3), runs.items(), strict=True), strict=True):
        look = style(index)
        fractions = np.bincount(found.misses, minlength=len(levels)) / R
        error = np.sqrt(fractions * (1 - fractions) / R)
        k = np.arange(len(levels))
        distribution.bar(k + offset, fractions, 0.4, yerr=error, color=look["color"], alpha=0.75, label=name)
        chance.plot(tries, (1 - fractions[0]) ** tries, color=look["color"], linewidth=1.8, label=name)
    expected = law(config)
    distribution.plot(
        np.arange(len(levels)) - 0.2, expected, "k_", markersize=24, markeredgewidth=2, label="law of gradient descent"
    )
    distribution.set_xticks(
        np.arange(len(levels)), [f"{at:.2f}\n({math.comb(config.inputs, k)})" for k, at in enumerate(levels)]
    )
    distribution.set(xlabel="final loss (and how many minima have it)", ylabel="fraction of restarts",
                     title=f"{2**config.inputs} minima, {R:,} restarts")  # fmt: skip
    distribution.legend(frameon=False)
    chance.plot(tries, (1 - expected[0]) ** tries, "k--", linewidth=1.2, label="law of gradient descent")
    chance.axhline(0.01, color="grey", linestyle=":", linewidth=1.4, label="1 %")
    chance.set(
        xlabel="restarts", yscale="log", ylabel="chance not to have found the best", title="how many restarts it takes"
    )
    chance.legend(frameon=False)
    canvas.suptitle(f"One sigmoid unit of {config.inputs} inputs, {2 * config.inputs} examples")
    return canvas


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.restarts")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
