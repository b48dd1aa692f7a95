"""Learning curves and best rates of backprop, node and weight perturbation (seed 000; Werfel, Xie & Seung 2004).

python -m experiments.student_teacher --help
"""

import dataclasses
import functools
import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.stats
import tyro
from tqdm.auto import tqdm

import nl_jax as nl
from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.results import Folder, Verdict
from nl_jax.theory import student_teacher as theory


class Rule(NamedTuple):
    """A learning rule and its theory."""

    estimator: Callable[[nl.base.Objective, float], nl.GradientEstimator]
    """`estimator(objective, sigma)`."""
    recursion: Callable[[int, int, float], theory.Recursion]
    """`recursion(M, N, sigma)`."""


RULES = {
    "backprop": Rule(
        lambda objective, sigma: nl.backprop(objective),
        lambda M, N, sigma: theory.backprop(N),
    ),
    "node perturbation": Rule(
        lambda objective, sigma: nl.node_perturbation(objective, sigma=sigma),
        lambda M, N, sigma: theory.node_perturbation(M, N, sigma=sigma),
    ),
    "weight perturbation": Rule(
        lambda objective, sigma: nl.weight_perturbation(objective, sigma=sigma),
        lambda M, N, sigma: theory.weight_perturbation(M, N, sigma=sigma),
    ),
}

POINTS = 12  # per learning curve
FAR = 100.0  # scale of the teacher where the contraction is measured, so that the error stays far above σ's floor
CHANCE = 1e-3  # probability of rejecting a correct theory


@dataclass(frozen=True)
class Config:
    """Teach linear networks of M outputs and N inputs by three rules, and compare the results with theory.

    Every step sees one new example. Learning curves are at the theory's best rate. The measured best rate comes from
    the contraction per step at many rates. Prints a table and writes config.json, metrics.jsonl, student_teacher.npz,
    student_teacher.json and student_teacher.png to --out. Fails if theory and measurement disagree by more
    than chance allows.
    """

    out: Path = Path("results/student_teacher")
    """Folder for the results; files of an earlier run there are replaced."""
    outputs: tuple[int, ...] = (4, 8, 16)
    """M, two or more numbers of outputs, rising."""
    inputs: tuple[int, ...] = (4, 8, 16)
    """N, two or more numbers of inputs, rising."""
    sigma: float = 0.1
    """Standard deviation of the noise; the teacher's weights are ±1."""
    runs: int = 300
    """Students per learning curve, at least 200; as many others, each with its own rate, measure the contraction."""
    time: float = 3.0
    """Length of the learning curves, in steps times best rate; the error above its floor falls e-fold per unit."""
    quick: bool = False
    """A small version, with the two smallest of --outputs and --inputs only, in under a minute."""


@dataclass(frozen=True)
class Measurement:
    """Measurements of one rule at one M and N, and the theory."""

    rule: str
    M: int
    N: int
    recursion: theory.Recursion
    steps: np.ndarray
    """Steps at which the learning curve is measured, [points]."""
    errors: np.ndarray
    """‖Δ‖²/MN at these steps, at the theory's best rate, [points, runs]."""
    rates: np.ndarray
    """η of the other runs, [runs]."""
    contraction: np.ndarray
    """Mean of ‖Δ′‖²/‖Δ‖² − 1 over the steps of these runs, [runs]."""

    def predicted(self, steps: np.ndarray) -> np.ndarray:
        """E‖Δ_t‖²/MN by theory, with initial value 1."""
        size = self.M * self.N
        return self.recursion.curve(size, self.recursion.best_rate, steps) / size

    @property
    def curve_deviations(self) -> np.ndarray:
        """Mean error minus theory, in standard errors, [points]."""
        standard_error = self.errors.std(axis=1, ddof=1) / self.errors.shape[1] ** 0.5
        return (self.errors.mean(axis=1) - self.predicted(self.steps)) / standard_error

    @functools.cached_property
    def log_best_rate(self) -> tuple[float, float]:
        """Log of the rate with the largest contraction, and its standard error.

        The contraction is −2 a η + C η². Divided by η it is a straight line, whose slope and intercept give a/C.
        """
        scale = self.recursion.best_rate  # makes the numbers about 1; the result does not depend on it
        (slope, intercept), covariance = np.polyfit(
            self.rates / scale, self.contraction / self.rates * scale, 1, cov=True
        )
        gradient = np.array([-1 / slope, 1 / intercept])
        return float(np.log(-intercept / (2 * slope) * scale)), float((gradient @ covariance @ gradient) ** 0.5)

    @property
    def rate_deviation(self) -> float:
        """Log of the measured best rate minus log of the theory's, in standard errors."""
        value, error = self.log_best_rate
        return (value - float(np.log(self.recursion.best_rate))) / error


class Exponents(NamedTuple):
    """Exponents of η* ∝ M^a N^b, fitted over the grid; pairs are (a, b)."""

    measured: np.ndarray
    error: np.ndarray
    predicted: np.ndarray
    """The same fit to the theory's best rates at the same M and N."""

    @property
    def deviations(self) -> np.ndarray:
        """Measured minus predicted, in standard errors."""
        return (self.measured - self.predicted) / self.error


def run(config: Config) -> list[Measurement]:
    """Measures every rule at every M and N in turn, saving as it goes.

    Raises:
      ExperimentError: for an invalid setting or an unusable folder, or if theory and measurement disagree.
    """
    if config.quick:
        config = dataclasses.replace(config, outputs=config.outputs[:2], inputs=config.inputs[:2])
    _check(config)
    folder = Folder(config.out, config, outputs=[f"student_teacher.{kind}" for kind in ("npz", "json", "png")])
    found: list[Measurement] = []
    for name, M, N in tqdm(list(itertools.product(RULES, config.outputs, config.inputs)), unit="curve"):
        found.append(_measure(name, M, N, config))
        value, error = found[-1].log_best_rate
        folder.metric(
            rule=name, M=M, N=N, steps=found[-1].steps, error=found[-1].errors.mean(axis=1),
            predicted=found[-1].predicted(found[-1].steps), curve_deviations=found[-1].curve_deviations,
            best_rate=np.exp(value), log_error=error, predicted_best_rate=found[-1].recursion.best_rate,
            rate_deviation=found[-1].rate_deviation,
        )  # fmt: skip
    exponents, verdict = scaling(found), judge(found)
    arrays = ("rule", "M", "N", "steps", "errors", "rates", "contraction")
    folder.arrays("student_teacher", {field: [getattr(one, field) for one in found] for field in arrays})
    folder.data(
        "student_teacher",
        {
            **verdict._asdict(),
            "compared": len(deviations(found)),
            "exponents": {rule: law._asdict() for rule, law in exponents.items()},
        },
    )
    picture = folder.picture("student_teacher", plot(found, config))
    print(table(found))
    print(f"picture and data: {picture.parent} ({picture.name}, .json, .npz, metrics.jsonl, config.json)")
    if not verdict.agrees:
        raise ExperimentError(
            f"theory and measurement disagree: by {verdict.largest_deviation:.1f} standard errors, where chance allows "
            f"{verdict.allowed:.1f}"
        )
    return found


def _check(config: Config) -> None:
    for name in ("outputs", "inputs"):
        values = getattr(config, name)
        if len(values) < 2 or min(values) < 1 or sorted(set(values)) != list(values):
            raise ExperimentError(f"--{name} must be two or more rising numbers of at least 1, got {values}")
    for name in ("sigma", "time"):
        if not 0 < getattr(config, name) < float("inf"):
            raise ExperimentError(f"--{name} must be a finite number above 0, got {getattr(config, name)}")
    if config.runs < 200:
        raise ExperimentError(f"--runs must be at least 200, for means to be all but Gaussian; got {config.runs}")


def _measure(name: str, M: int, N: int, config: Config) -> Measurement:
    rule = RULES[name]
    recursion = rule.recursion(M, N, config.sigma)
    every = max(1, round(config.time * recursion.contraction / POINTS))
    network = nl.mlp([N, M], activation=lambda nu: nu, bias=False)
    estimator = rule.estimator(nl.supervised(network.apply, nl.losses.half_squared_error), config.sigma)

    @jax.jit
    @jax.vmap
    def learn(key: jax.Array, rate: jax.Array, teacher: jax.Array) -> tuple[jax.Array, jax.Array]:
        """One student: ‖Δ‖² at every point, and the mean of ‖Δ′‖²/‖Δ‖² − 1."""
        learner = nl.learner(estimator, optax.sgd(rate))

        def error(state: nl.LearnerState) -> jax.Array:
            return jnp.sum((state.params["output"]["weight"] - teacher) ** 2)

        def step(carry: tuple[nl.LearnerState, jax.Array], _: None) -> tuple[Any, None]:
            state, total = carry
            inputs_key, noise_key = jax.random.split(jax.random.fold_in(key, state.step))
            x = jax.random.normal(inputs_key, (1, N))
            after, _info = learner.step(noise_key, state, (x, x @ teacher))
            return (after, total + (error(after) / error(state) - 1)), None

        def stretch(carry: tuple[nl.LearnerState, jax.Array], _: None) -> tuple[Any, jax.Array]:
            carry, _ = jax.lax.scan(step, carry, length=every)
            return carry, error(carry[0])

        state = learner.init(key, {"output": {"weight": jnp.zeros((N, M))}})
        (_, total), errors = jax.lax.scan(stretch, (state, jnp.zeros(())), length=POINTS)
        return errors, total / (POINTS * every)

    runs, best = config.runs, recursion.best_rate
    rates = 2 * best * (1 + np.arange(runs)) / runs
    teachers = np.random.default_rng((M, N)).choice([-1.0, 1.0], (2 * runs, N, M))
    teachers[runs:] *= FAR
    keys = jax.random.split(jax.random.fold_in(jax.random.key(M), N), 2 * runs)
    at = (jnp.asarray(values, jnp.float32) for values in ([best] * runs + list(rates), teachers))
    errors, contraction = (np.asarray(values, np.float64) for values in learn(keys, *at))
    steps = every * (1 + np.arange(POINTS))
    return Measurement(name, M, N, recursion, steps, errors[:runs].T / (M * N), rates, contraction[runs:])


def scaling(found: Sequence[Measurement]) -> dict[str, Exponents]:
    """The exponents of each rule's best rate in M and N, by weighted least squares over the grid."""
    exponents = {}
    for rule in dict.fromkeys(one.rule for one in found):
        grid = [one for one in found if one.rule == rule]
        values, errors = np.array([one.log_best_rate for one in grid]).T
        predicted = np.log([one.recursion.best_rate for one in grid])
        design = np.array([[np.log(one.M), np.log(one.N), 1] for one in grid])
        solve = np.linalg.pinv(design / errors[:, None]) / errors
        exponents[rule] = Exponents(
            measured=(solve @ values)[:2],
            error=((solve * errors) ** 2).sum(axis=1)[:2] ** 0.5,
            predicted=(solve @ predicted)[:2],
        )
    return exponents


def deviations(found: Sequence[Measurement]) -> np.ndarray:
    """Deviations from theory, in standard errors: every point of every curve, every best rate and every exponent."""
    return np.concatenate([
        *(one.curve_deviations for one in found),
        [one.rate_deviation for one in found],
        *(law.deviations for law in scaling(found).values()),
    ])  # fmt: skip


def judge(found: Sequence[Measurement]) -> Verdict:
    """The largest deviation, and the largest that chance allows."""
    off = deviations(found)
    return Verdict(float(np.max(np.abs(off))), allowed=float(scipy.stats.norm.isf(CHANCE / 2 / off.size)))


def table(found: Sequence[Measurement]) -> str:
    """The exponents as text, a row for each rule, and the deviations of measurement from theory."""
    lines = [
        f"{'':20}{'best rate falls as':^44}{'off, at most':>21}",
        f"{'rule':20}{'M to the':>15}{'theory':>7}{'N to the':>15}{'theory':>7}{'curve':>12}{'rate':>9}",
    ]
    for rule, law in scaling(found).items():
        cells = "".join(
            f"{value:>7.3f} ±{error:6.3f}{predicted:>7.3f}"
            for value, error, predicted in zip(law.measured, law.error, law.predicted, strict=True)
        )
        mine = [one for one in found if one.rule == rule]
        curve = max(np.abs(one.curve_deviations).max() for one in mine)
        lines.append(f"{rule:20}{cells}{curve:>12.1f}{max(abs(one.rate_deviation) for one in mine):>9.1f}")
    largest, allowed, unit = judge(found)
    lines += [
        "off: measured minus theory, in standard errors over runs; theory's exponents are fitted over the same M and N",
        "rates are those of the loss ½‖y − y*‖²; of seed 000's, which has no ½, each is half as large",
        f"largest deviation of {len(deviations(found))} compared: {largest:.1f} {unit}; chance allows {allowed:.1f}",
    ]
    return "\n".join(lines)


def plot(found: Sequence[Measurement], config: Config) -> Any:
    """Above, each rule's learning curves. Below, contraction against rate, and best rates against N and M."""
    from experiments.harness.plotting import figure

    canvas, axes = figure(2, 3, size=(14, 9))
    ends = (config.outputs[0], config.inputs[-1]), (config.outputs[-1], config.inputs[0])
    square = tuple(zip(config.outputs, config.inputs, strict=False))
    for panel in axes[0, 1:]:
        panel.sharex(axes[0, 0])
        panel.sharey(axes[0, 0])
    for panel, rule in zip(axes[0], RULES, strict=False):
        _curves(panel, [one for one in found if one.rule == rule and (one.M, one.N) in square + ends])
        panel.set_title(rule)
    axes[0, 0].set_ylabel("E‖Δ‖² / MN")
    ticks = [tick for tick in (1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01) if tick > axes[0, 0].get_ylim()[0]]
    axes[0, 0].set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes[0, 0].yaxis.minorticks_off()
    panel.legend(frameon=False, loc="lower left")
    _contractions(axes[1, 0], found)
    _best_rates(axes[1, 1], found, "N", "M")
    _best_rates(axes[1, 2], found, "M", "N")
    canvas.suptitle(
        "Linear student–teacher of M outputs and N inputs. Lines and dashes: theory; markers: measured, with one "
        f"standard error ({config.runs} runs, σ = {config.sigma:g})"
    )
    return canvas


def _curves(axes: Any, found: Sequence[Measurement]) -> None:
    from experiments.harness.plotting import style

    for index, one in enumerate(found):
        look = style(index)
        steps = np.unique(np.geomspace(1, one.steps[-1], 200).astype(int))
        axes.plot(steps, one.predicted(steps), color=look["color"], linewidth=1.2)
        error = one.errors.std(axis=1, ddof=1) / one.errors.shape[1] ** 0.5
        _dots(axes, look, one.steps, one.errors.mean(axis=1), error, label=f"M = {one.M}, N = {one.N}")
    axes.set(xlabel="steps t", xscale="log", yscale="log")


def _contractions(axes: Any, found: Sequence[Measurement]) -> None:
    """All M and N at once: in units of C, every rule has the same parabola."""
    from experiments.harness.plotting import style

    u = np.linspace(0, 2, 100)
    axes.plot(u, u**2 - 2 * u, color="black", linewidth=1.2, label="theory: $(ηC)^2 - 2ηC$")
    for index, rule in enumerate(RULES):
        mine = [one for one in found if one.rule == rule]
        scales = [one.recursion.contraction for one in mine]
        rates, values = (
            np.concatenate([getattr(one, name) * C for one, C in zip(mine, scales, strict=True)])
            for name in ("rates", "contraction")
        )
        bins = np.array_split(np.argsort(rates, kind="stable"), 10)
        error = [values[b].std(ddof=1) / len(b) ** 0.5 for b in bins]
        _dots(axes, style(index), [rates[b].mean() for b in bins], [values[b].mean() for b in bins], error, label=rule)
    axes.set(xlabel="rate η times C", ylabel="(E‖Δ′‖²/‖Δ‖² − 1) times C", title="contraction per step, all M and N")
    axes.legend(frameon=False, loc="upper center")


def _best_rates(axes: Any, found: Sequence[Measurement], along: str, at: str) -> None:
    from experiments.harness.plotting import LINE, joined, style

    least, most = (limit(getattr(one, at) for one in found) for limit in (min, max))
    index = "MN".index(along)
    for number, (rule, law) in enumerate(scaling(found).items()):
        look = style(number)
        exponent = f"{law.measured[index]:.3f} ± {law.error[index]:.3f}".replace("-", "−")
        sizes = {getattr(one, along) for one in found}
        label = f"{rule}: {along} to the {exponent}" if len(sizes) >= LINE else rule  # two sizes fit any exponent
        for value, fill in ((least, "none"), (most, "full")):
            mine = [one for one in found if one.rule == rule and getattr(one, at) == value]
            x = np.array([getattr(one, along) for one in mine])
            logs, errors = np.array([one.log_best_rate for one in mine]).T
            theory = joined(x, {"color": look["color"], "linewidth": 1.2})
            axes.plot(x, [one.recursion.best_rate for one in mine], **theory)
            shown = label if value == least else None
            _dots(axes, look, x, np.exp(logs), np.exp(logs) * errors, label=shown, fillstyle=fill)
    axes.set(xscale="log", yscale="log", xlabel=along, ylabel="best rate")
    axes.set(title=f"best rate against {along} ({at} = {least} open, {most} filled)")
    lowest, highest = axes.get_ylim()
    axes.set_ylim(lowest * (lowest / highest) ** 0.35, highest)  # room for the legend
    axes.set_xticks(x, [str(tick) for tick in x])
    axes.xaxis.minorticks_off()
    axes.legend(frameon=False, loc="lower left")


def _dots(axes: Any, look: Any, x: Any, y: Any, error: Any, *, label: str | None, fillstyle: str = "none") -> None:
    axes.errorbar(
        x, y, error, color=look["color"], marker=look["marker"], markersize=6, fillstyle=fillstyle, linestyle="none",
        label=label,
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.student_teacher")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
