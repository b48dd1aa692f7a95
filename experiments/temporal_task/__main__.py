"""Node and weight perturbation in trials of many steps, measured and in theory (Züge et al. 2023).

python -m experiments.temporal_task --help
"""

import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from tqdm.auto import tqdm

import nl_jax as nl
from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.results import Folder, Verdict
from nl_jax.theory import temporal

BLOCKS = 32  # of trials over which errors are averaged, per curve
LAST = 8  # blocks that define the final error
RELAXATIONS = 8  # e-folds of the weights' learning curve per run, which leave less than 1/1000 of the initial error
ALLOWED = 5.0  # standard errors; among a few hundred comparisons, 4 occurs by chance in one of a hundred runs
FEWEST = 100  # students; enough for the mean of their long-tailed errors to be nearly Gaussian


@dataclass(frozen=True)
class Config:
    """Train a linear network by node and weight perturbation in trials of T steps, with one scalar loss per trial.

    The inputs span N_eff dimensions. They are either drawn anew in each trial, with targets that no weights reach, or
    the same in all trials, with perturbations that are not small. Prints a table and writes config.json, metrics.jsonl,
    temporal_task.json and temporal_task.png to --out.
    """

    out: Path = Path("results/temporal_task")
    """Folder for the results; files of an earlier run there are replaced."""
    outputs: int = 3
    """M, the network's outputs."""
    inputs: int = 24
    """N, all inputs of the network; those beyond N_eff are silent."""
    steps: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """T, trial lengths, rising. Repeated inputs need N_eff ≤ T; they are left out at shorter lengths."""
    dimension: int = 8
    """N_eff of the runs that vary T."""
    dimensions: tuple[int, ...] = (1, 2, 4, 8, 16, 24)
    """N_eff, rising, of the runs at fixed T."""
    length: int = 16
    """T of the runs that vary N_eff."""
    irreducible: float = 0.1
    """E_opt, the irreducible error with fresh inputs; the initial excess error is 1."""
    sigma: float = 0.03
    """σ of weight perturbation with repeated inputs; node perturbation gets noise of equal strength at the outputs."""
    rate: float = 0.5
    """η of both rules, relative to the best rate of weight perturbation, below 2."""
    students: int = 200
    """Number of networks, each with its own inputs and noise; at least 100."""
    quick: bool = False
    """A small version, 100 students, short trials and few dimensions, in under half a minute."""


INPUTS = {"fresh": temporal.fresh, "repeated": temporal.repeated}
RULES: dict[str, tuple[Callable[..., nl.GradientEstimator], Any]] = {
    "node perturbation": (nl.node_perturbation, temporal.node_perturbation),
    "weight perturbation": (nl.weight_perturbation, temporal.weight_perturbation),
}


@dataclass(frozen=True)
class Setting:
    """One task: the kind of inputs, T, N_eff and the noise."""

    inputs: str
    steps: int
    dimension: int
    sigma: float
    irreducible: float

    @property
    def trials(self) -> temporal.Trials:
        """The task in the form that the theory takes."""
        return INPUTS[self.inputs](self.steps, self.dimension)

    def sigma_of(self, rule: str) -> float:
        """σ of a rule, of equal strength at the outputs for both rules."""
        return temporal.equal_sigma(self.sigma, self.trials) if rule == "node perturbation" else self.sigma


@dataclass(frozen=True)
class Curve:
    """Excess errors E − E_opt of one rule in one setting.

    Attributes:
      trials: last trial of each block, [blocks].
      measured: mean over each block, [blocks, students].
      law: its expected value, [blocks].
    """

    trials: np.ndarray
    measured: np.ndarray
    law: np.ndarray

    @property
    def final(self) -> np.ndarray:
        """Mean over the last blocks, [students]."""
        return self.measured[-LAST:].mean(axis=0)

    @property
    def final_law(self) -> float:
        """Expected value of `final`."""
        return float(self.law[-LAST:].mean())

    @property
    def deviations(self) -> np.ndarray:
        """Measured minus law in standard errors, for each block and, last, for the final error, [blocks + 1]."""
        errors = np.concatenate([self.measured, self.final[None]])
        off = errors.mean(axis=1) - np.append(self.law, self.final_law)
        return off / _standard_error(errors)


Results = Mapping[tuple[Setting, str], Curve]


def run(config: Config) -> Results:
    """Measures every setting in turn, saving as it goes.

    Raises:
      ExperimentError: for an invalid setting or an unusable folder, or if measurement and law disagree.
    """
    if config.quick:
        config = dataclasses.replace(
            config,
            students=min(config.students, 100),
            inputs=16,
            steps=(2, 8),
            dimension=2,
            dimensions=(2, 6, 16),
            length=8,
        )
    _check(config)
    folder = Folder(config.out, config, outputs=["temporal_task.json", "temporal_task.png"])
    curves: dict[tuple[Setting, str], Curve] = {}
    for setting in tqdm(settings(config), unit="task"):
        for rule in RULES:
            curve = curves[setting, rule] = measure(setting, rule, config)
            folder.metric(**_summary(setting, rule, curve))
    worst = max(np.abs(curve.deviations).max() for curve in curves.values())
    comparisons = sum(len(curve.deviations) for curve in curves.values())
    every = [_summary(*key, curve) | _blocks(curve) for key, curve in curves.items()]
    verdict = Verdict(float(worst), ALLOWED)
    folder.data("temporal_task", {**verdict._asdict(), "comparisons": comparisons, "curves": every})
    picture = folder.picture("temporal_task", plot(curves, config))
    print(table(curves))
    print(f"largest deviation from the laws: {worst:.1f} standard errors in {comparisons} comparisons")
    print(f"picture and data: {picture.parent} ({picture.name}, temporal_task.json, metrics.jsonl, config.json)")
    if not verdict.agrees:
        raise ExperimentError(f"measurement and law differ by {worst:.1f} standard errors, more than {ALLOWED:g}")
    return curves


def _check(config: Config) -> None:
    for name in ("steps", "dimensions"):
        values = getattr(config, name)
        if not values or min(values) < 1 or sorted(set(values)) != list(values):
            raise ExperimentError(f"--{name} must be rising numbers of at least 1, got {values}")
    for name, least in (("outputs", 1), ("dimension", 1), ("length", 1), ("students", FEWEST)):
        if getattr(config, name) < least:
            raise ExperimentError(f"--{name} must be at least {least}, got {getattr(config, name)}")
    widest = max(config.dimension, *config.dimensions)
    if config.inputs < widest:
        raise ExperimentError(f"--inputs must be at least N_eff = {widest}, got {config.inputs}")
    if config.steps[-1] < config.dimension:
        raise ExperimentError(f"--steps must reach --dimension {config.dimension}, got {config.steps}")
    if not (0 < config.sigma < math.inf and 0 < config.irreducible < math.inf and 0 < config.rate < 2):
        raise ExperimentError("--sigma, --irreducible and --rate must be finite and above 0, and --rate below 2")


def settings(config: Config) -> list[Setting]:
    """All tasks, each once."""
    lengths = [(T, config.dimension) for T in config.steps]
    widths = [(config.length, n) for n in config.dimensions]
    # Perturbations of fresh inputs are nearly infinitesimal, so that only the irreducible error disturbs learning.
    fresh = [Setting("fresh", T, n, config.sigma / 10, config.irreducible) for T, n in lengths + widths]
    repeated = [Setting("repeated", T, n, config.sigma, 0.0) for T, n in lengths + widths if n <= T]
    return list(dict.fromkeys(fresh + repeated))


def output(weight: jax.Array, x: jax.Array, propagate: nl.base.Propagate = nl.propagation.feedforward) -> jax.Array:
    """y_t = x_t W at every step: [batch, T, N] -> [batch, T, M]."""
    return propagate("output", lambda weight, x: x @ weight, nl.activations.identity(), weight, x)


def measure(setting: Setting, rule: str, config: Config) -> Curve:
    """Students' learning curves, and the expected one."""
    T, n, M = setting.steps, setting.dimension, config.outputs
    law, weights = RULES[rule][1](setting.trials, M), temporal.weight_perturbation(setting.trials, M)
    rate, sigma = config.rate * temporal.best_rate(weights), setting.sigma_of(rule)
    per_block = math.ceil(RELAXATIONS / (rate * (2 - config.rate)) / BLOCKS)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(list(RULES).index(rule)), T), n)
    measured = _students(rule, T, config.inputs, M)(
        jax.random.split(key, config.students), jnp.arange(config.inputs) < n, setting.inputs == "repeated",
        rate, (2 / (M * n)) ** 0.5 / sigma, (2 * setting.irreducible / M) ** 0.5 / sigma, per_block,
    )  # fmt: skip
    trials = np.arange(1, BLOCKS * per_block + 1)
    curve = temporal.learning_curve(law, trials, 1.0, rate=rate, sigma=sigma, irreducible=setting.irreducible)
    return Curve(
        trials=trials[per_block - 1 :: per_block],
        measured=sigma**2 * np.asarray(measured, float).T,
        law=np.asarray(curve).reshape(BLOCKS, per_block).mean(axis=1),
    )


@functools.cache
def _students(rule: str, T: int, N: int, M: int) -> Callable[..., jax.Array]:
    """Mean excess errors of blocks of trials, [students, blocks]; compiled once for all settings but T.

    Weights and targets are in units of σ and errors in units of σ², which changes nothing in a linear network.
    """
    objective = nl.supervised(output, lambda y, target: nl.losses.half_squared_error(y, target) / T)
    estimator = RULES[rule][0](objective, sigma=1.0)

    def student(
        key: jax.Array, active: jax.Array, repeated: bool, rate: float, start: float, residual: float, per_block: int
    ) -> jax.Array:
        learner = nl.learner(estimator, optax.sgd(rate))
        first, walk = jax.random.split(key)
        # Columns of a rotation, so that Σ_t x_t x_tᵀ/T = I in the active dimensions.
        same = T**0.5 * jnp.linalg.qr(jax.random.normal(first, (T, T)))[0]
        same = jnp.pad(same, ((0, 0), (0, max(0, N - T))))[:, :N]

        def trial(t: jax.Array, at: tuple[nl.LearnerState, jax.Array]) -> tuple[nl.LearnerState, jax.Array]:
            state, total = at
            noise, data = jax.random.split(jax.random.fold_in(walk, t))
            x, d = jnp.split(jax.random.normal(data, (T, N + M)), [N], axis=1)
            x = jnp.where(repeated, same, x) * active
            state, _ = learner.step(noise, state, (x[None], residual * d[None]))
            return state, total + jnp.sum(active[:, None] * state.params**2) / 2

        def block(state: nl.LearnerState, index: jax.Array) -> tuple[nl.LearnerState, jax.Array]:
            begin = index * per_block
            state, total = jax.lax.fori_loop(begin, begin + per_block, trial, (state, jnp.zeros(())))
            return state, total / per_block

        # The teacher is W* = 0: only the distance from it matters.
        weight = start * jnp.broadcast_to(active[:, None], (N, M)).astype(float)
        return jax.lax.scan(block, learner.init(first, weight), jnp.arange(BLOCKS))[1]

    return jax.jit(jax.vmap(student, in_axes=(0, *[None] * 6)))


def _standard_error(values: np.ndarray) -> np.ndarray:
    """Standard error of the mean over the last axis."""
    return values.std(axis=-1, ddof=1) / values.shape[-1] ** 0.5


def _summary(setting: Setting, rule: str, curve: Curve) -> dict[str, Any]:
    return dataclasses.asdict(setting) | {
        "rule": rule, "trials": curve.trials[-1], "final_error": curve.final.mean(),
        "standard_error": _standard_error(curve.final), "law": curve.final_law, "off": curve.deviations[-1],
    }  # fmt: skip


def _blocks(curve: Curve) -> dict[str, np.ndarray]:
    mean, error = curve.measured.mean(axis=1), _standard_error(curve.measured)
    return {"at": curve.trials, "mean": mean, "error": error, "expected": curve.law}


def table(curves: Results) -> str:
    """The final errors as text; ± is one standard error over students."""
    lines = [f"{'inputs':10}{'T':>4}{'N_eff':>7}  {'rule':20}{'trials':>8}{'final error':>13}{'law':>19}{'off':>7}"]
    for (setting, rule), curve in curves.items():
        lines.append(
            f"{setting.inputs:10}{setting.steps:>4}{setting.dimension:>7}  {rule:20}{curve.trials[-1]:>8,}"
            f"{curve.final.mean():>13.5f} ±{_standard_error(curve.final):8.5f}{curve.final_law:>9.5f}"
            f"{curve.deviations[-1]:>+7.1f}"
        )
    lines.append("final error: E − E_opt, mean over the last quarter of the trials. off: in standard errors.")
    return "\n".join(lines)


EXCESS = "$E - E_{opt}$"
TITLES = {"fresh": "fresh inputs, unreachable targets", "repeated": "repeated inputs, strong noise"}


def plot(curves: Results, config: Config) -> Any:
    """Rows: fresh and repeated inputs. Columns: learning curves, final error against T and against N_eff."""
    from experiments.harness.plotting import figure, style

    canvas, panels = figure(2, 3, size=(15, 8.5))
    looks = {rule: style(index) for rule, index in zip(RULES, (2, 3), strict=True)}
    for (kind, title), (learning, against_steps, against_dimension) in zip(TITLES.items(), panels, strict=True):
        here = {key: curve for key, curve in curves.items() if key[0].inputs == kind}
        by_steps = {key: curve for key, curve in here.items() if key[0].dimension == config.dimension}
        by_dimension = {key: curve for key, curve in here.items() if key[0].steps == config.length}
        lengths = sorted({setting.steps for setting, _ in by_steps})
        for T, hollow in {lengths[-1]: False, lengths[0]: True}.items():
            shown = {rule: curve for (setting, rule), curve in by_steps.items() if setting.steps == T}
            for rule, curve in shown.items():
                part, look = curve.trials / curve.trials[-1], looks[rule]
                learning.plot(part, curve.law, color=look["color"], linestyle="--" if hollow else "-", linewidth=1.3)
                _dots(learning, part, curve.measured, look, f"{rule}, T = {T}", hollow)
        learning.set(yscale="log", xlabel="trials, in parts of the run", ylabel=EXCESS, title=title)
        learning.legend(frameon=False, fontsize=9)
        _final(against_steps, {(s.steps, rule): curve for (s, rule), curve in by_steps.items()}, looks)
        _final(against_dimension, {(s.dimension, rule): curve for (s, rule), curve in by_dimension.items()}, looks)
        against_steps.set(xlabel="T, steps of a trial", title=f"final error at $N_{{eff}}$ = {config.dimension}")
        against_dimension.set(xlabel="$N_{eff}$, dimensions of the inputs", title=f"final error at T = {config.length}")
        against_steps.axvline(config.dimension, color="grey", linestyle=":", linewidth=1.4)
        against_dimension.axvline(config.length, color="grey", linestyle=":", linewidth=1.4, label="T = $N_{eff}$")
    handles, labels = panels[0, 2].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    canvas.suptitle(
        f"Node and weight perturbation at one learning rate: {config.outputs} outputs, {config.students} students"
    )
    return canvas


def _final(axes: Any, curves: Mapping[tuple[int, str], Curve], looks: Mapping[str, Mapping[str, Any]]) -> None:
    """Plots final errors and their laws against T or N_eff."""
    from experiments.harness.plotting import joined

    for rule, look in looks.items():
        x = sorted(at for at, of in curves if of == rule)
        chosen = [curves[at, rule] for at in x]
        law = joined(x, {"color": look["color"], "linewidth": 1.3})
        axes.plot(x, [c.final_law for c in chosen], label=f"{rule}, law", **law)
        _dots(axes, np.array(x), np.stack([c.final for c in chosen]), look, f"{rule}, measured")
        axes.set(xscale="log", yscale="log", ylabel=EXCESS)
        axes.xaxis.minorticks_off()
        axes.set_xticks(x, [str(at) for at in x])


def _dots(
    axes: Any, x: np.ndarray, values: np.ndarray, look: Mapping[str, Any], label: str, hollow: bool = False
) -> None:
    axes.errorbar(
        x, values.mean(axis=-1), _standard_error(values), label=label, color=look["color"], marker=look["marker"],
        markersize=6, fillstyle="none" if hollow else "full", linestyle="none", zorder=look["zorder"],
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.temporal_task")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
