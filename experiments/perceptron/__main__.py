"""The perceptron's mistakes and Novikoff's bound; and the exclusive or, which no single unit learns (seeds 000, 001).

python -m experiments.perceptron --help
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.results import Folder, judge, verdict
from experiments.harness.settings import at_least
from experiments.perceptron.single_units import LAYERS, PERCEPTRON, Failure, exclusive_or, passes_of, perceptron
from nl_jax.theory import perceptron as theory

MOST_PASSES = 20_000  # far more than Novikoff's bound requires
ORTHONORMAL = (4, 16, 64, 256)  # numbers of orthonormal inputs for which the bound is reached
HALF = 0.02  # allowed final distance of a sigmoid unit's output from ½ on the exclusive or


@dataclass(frozen=True)
class Config:
    """Count a perceptron's mistakes on random data of growing margin, and teach three learners the exclusive or.

    The perceptron learns by nl.rules.perceptron from one example at a time. On linearly separable data its mistakes
    must not exceed Novikoff's bound. On the exclusive or its weights must return to earlier values, which proves that
    it never stops. Prints a table and writes config.json, perceptron.json and perceptron.png to --out.
    """

    out: Path = Path("results/perceptron")
    """Folder for the results; files of an earlier run there are replaced."""
    inputs: int = 10
    """D, at least 2; inputs have length 1."""
    examples: int = 200
    """N, examples; every pass has the same order."""
    margins: tuple[float, ...] = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32)
    """γ, rising: the least distance of any example from the plane of a random teacher."""
    seeds: int = 20
    """Datasets of each margin, and initialisations of the two-layer network."""
    passes: int = 3000
    """Passes of the sigmoid unit and of the two-layer network through the four examples of the exclusive or."""
    quick: bool = False
    """A small version, four of the margins, 5 seeds and 1500 passes, in under half a minute."""


class Count(NamedTuple):
    """Perceptrons on datasets of one margin.

    Attributes:
      margin: γ, as requested.
      mistakes: per pass, [passes, seeds]; the last pass has none.
      bound: (R/γ)² of each dataset, with its own radius R and its teacher's margin, [seeds].
      off_theory: largest difference of weights from those of `nl.theory.perceptron.learn`.
    """

    margin: float
    mistakes: np.ndarray
    bound: np.ndarray
    off_theory: float


def run(config: Config) -> tuple[list[Count], Failure]:
    """Counts mistakes, then trains the learners on the exclusive or.

    Raises:
      ExperimentError: for an invalid setting or an unusable folder, or if a theorem does not hold.
    """
    if config.quick:
        config = dataclasses.replace(
            config, margins=config.margins[::2], seeds=min(config.seeds, 5), passes=min(config.passes, 1500)
        )
    _check(config)
    folder = Folder(config.out, config, outputs=["perceptron.json", "perceptron.png"])
    with jax.enable_x64(True):
        counts = [count(margin, config) for margin in config.margins]
        orthonormal = [_orthonormal(size) for size in ORTHONORMAL]
        failure = exclusive_or(config.passes, config.seeds)
    found = deviations([*counts, *orthonormal], failure)
    data = {
        "deviations": found, "counts": [one._asdict() for one in counts], "exclusive_or": failure._asdict(),
        "orthonormal": [one._asdict() for one in orthonormal],
    }  # fmt: skip
    folder.data("perceptron", verdict(found)._asdict() | data)
    picture = folder.picture("perceptron", plot(counts, orthonormal, failure))
    print(table(counts, failure))
    print("\n".join(f"{name}: {off:.3g} of what is allowed" for name, off in found.items()))
    print(f"picture and data: {picture.parent} ({picture.name}, perceptron.json, config.json)")
    judge(found)
    return counts, failure


def _check(config: Config) -> None:
    if not config.margins or sorted(set(config.margins)) != list(config.margins):
        raise ExperimentError(f"--margins must be rising numbers, got {config.margins}")
    if not 0 < config.margins[0] <= config.margins[-1] <= 0.5:
        raise ExperimentError(f"--margins must be above 0 and at most 0.5, got {config.margins}")
    at_least(config, inputs=2, examples=1, seeds=1, passes=1)


def apart(margin: float, config: Config, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs uniform on the part of the unit sphere with |uᵀx| ≥ γ, their labels ±1, and the teacher u."""
    random = np.random.default_rng((seed, round(1e6 * margin)))
    teacher = random.normal(size=config.inputs)
    teacher /= np.linalg.norm(teacher)
    kept = np.zeros((0, config.inputs))
    while len(kept) < config.examples:
        x = random.normal(size=(20 * config.examples, config.inputs))
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        kept = np.concatenate([kept, x[np.abs(x @ teacher) >= margin]])[: config.examples]
    return kept, np.sign(kept @ teacher), teacher


def count(margin: float, config: Config) -> Count:
    """Trains one perceptron per seed, each on its own dataset, until a pass has no mistakes."""
    x, y, teachers = (np.stack(of) for of in zip(*(apart(margin, config, s) for s in range(config.seeds)), strict=True))
    return _counted(margin, x, y, teachers)


def _orthonormal(size: int) -> Count:
    """Orthonormal inputs, each independent of the others, for which the bound is reached."""
    y = np.where(np.arange(size) % 2, 1.0, -1.0)[None]
    return _counted(size**-0.5, np.eye(size)[None], y, y)


def _counted(margin: float, x: np.ndarray, y: np.ndarray, teachers: np.ndarray) -> Count:
    sets, _, inputs = x.shape
    one_pass = jax.jit(jax.vmap(passes_of(perceptron(inputs))))
    params: Any = {"output": {"weight": jnp.zeros((sets, inputs, 1))}}
    mistakes: list[np.ndarray] = []
    while not mistakes or mistakes[-1].any():
        if len(mistakes) == MOST_PASSES:
            raise ExperimentError(f"a perceptron still errs after {MOST_PASSES} passes at margin {margin:g}")
        params, wrong = one_pass(params, x, y)
        mistakes.append(np.asarray(wrong))
    expected, _ = jax.vmap(lambda x, y: theory.learn(x, y, len(mistakes)))(jnp.asarray(x), jnp.asarray(y))
    off = float(jnp.max(jnp.abs(params["output"]["weight"][..., 0] - expected)))
    bound = jax.vmap(theory.mistake_bound)(*map(jnp.asarray, (x, y, teachers)))
    return Count(margin, np.stack(mistakes), np.asarray(bound), off)


def deviations(counts: Sequence[Count], failure: Failure) -> dict[str, float]:
    """Judged deviations, each in units of what is allowed; for a theorem, any violation is too much."""
    ratios = [one.mistakes.sum(axis=0) / one.bound for one in counts]
    for_ever = (failure.period > 0).all() and (failure.wrong[PERCEPTRON][failure.before.max() :] > 0).all()
    solved = (failure.wrong[LAYERS][-1] == 0).mean()
    return {
        "mistakes over Novikoff's bound": float(max(np.max(ratio) for ratio in ratios) / (1 + 1e-9)),
        "weights are those of nl.theory.perceptron": max(one.off_theory for one in counts) / 1e-9,
        "on the exclusive or the perceptron cycles, for ever wrong": 0.0 if for_ever else np.inf,
        "there the sigmoid unit comes to rest at ½": float(np.abs(failure.outputs - 0.5).max() / HALF),
        "most two-layer networks learn it": 0.5 / solved if solved else np.inf,
    }


def table(counts: Sequence[Count], failure: Failure) -> str:
    """The results as text."""
    lines = [f"{'margin γ':>10}{'(R/γ)²':>12}{'mistakes':>12}{'most':>8}{'of the bound':>14}{'passes':>8}"]
    for one in counts:
        total = one.mistakes.sum(axis=0)
        lines.append(
            f"{one.margin:>10g}{one.bound.mean():>12.1f}{total.mean():>12.1f}{total.max():>8}"
            f"{np.max(total / one.bound):>14.3f}{len(one.mistakes):>8}"
        )
    lines.append("means over data sets; most, of the bound, passes: of the one that needed most")
    for name, wrong in failure.wrong.items():
        line = f"exclusive or, {name}: {wrong[-1].mean():.2f} of 4 wrong in the last pass"
        if name in failure.losses:
            line += f", loss {failure.losses[name].mean():.4f}; {np.mean(wrong[-1] == 0):.0%} of runs solve it"
        lines.append(line)
    period = failure.period.max()
    lines.append(
        f"the perceptron's weights come back {'every pass' if period == 1 else f'every {period} passes'}, from pass "
        f"{failure.before.max()} on at the latest; a loss of 0.125 is that of outputs of ½"
    )
    return "\n".join(lines)


def plot(counts: Sequence[Count], orthonormal: Sequence[Count], failure: Failure) -> Any:
    """Plots mistakes against the bound, against passes, and on the exclusive or."""
    from experiments.harness.plotting import figure, style

    canvas, (bounds, learning, failing) = figure(1, 3, size=(16, 5.2))
    ends = [min(min(one.bound) for one in orthonormal), max(max(one.bound) for one in counts)]
    bounds.plot(ends, ends, color="black", linewidth=1.4, label="Novikoff's bound")
    for index, label, group in ((2, "random inputs", counts), (3, "orthonormal inputs", orthonormal)):
        x, y = (np.concatenate(of) for of in zip(*((o.bound, o.mistakes.sum(axis=0)) for o in group), strict=True))
        look = style(index)
        bounds.plot(x, y, color=look["color"], marker=look["marker"], linestyle="none", fillstyle="none", label=label)
    bounds.set(
        xscale="log",
        yscale="log",
        xlabel="(R/γ)², radius over margin",
        ylabel="total mistakes",
        title="mistakes and bound; margins grow to the left",
    )
    bounds.legend(frameon=False)
    for index, one in enumerate(counts[:: max(1, (len(counts) - 1) // 2)]):
        look = style(index)
        sums = np.cumsum(one.mistakes, axis=0)
        steps = np.arange(1, len(sums) + 1)
        learning.plot(steps, sums, color=look["color"], linewidth=0.5, alpha=0.4)
        learning.plot(steps, sums.mean(axis=1), color=look["color"], linewidth=2, label=f"γ = {one.margin:g}")
    sums = np.cumsum(failure.wrong[PERCEPTRON], axis=0).mean(axis=1)
    look = style(3)
    learning.plot(
        np.arange(1, len(sums) + 1), sums, color=look["color"], linestyle=":", linewidth=2, label="exclusive or"
    )
    learning.set(
        xscale="log", yscale="log", xlabel="passes", ylabel="mistakes so far", title="each data set and the mean"
    )
    learning.legend(frameon=False)
    for index, dashes, (name, wrong) in zip((3, 0, 2), "-:-", failure.wrong.items(), strict=True):
        steps, look = np.arange(1, len(wrong) + 1), style(index)
        mean, error = wrong.mean(axis=1), wrong.std(axis=1, ddof=1) / wrong.shape[1] ** 0.5 if wrong.shape[1] > 1 else 0
        failing.plot(steps, mean, color=look["color"], linestyle=dashes, linewidth=2, label=name)
        failing.fill_between(steps, mean - error, mean + error, color=look["color"], alpha=0.2, linewidth=0)
    failing.set(xscale="log", ylim=(-0.1, 4.6), xlabel="passes", ylabel="errors out of 4", title="the exclusive or")
    failing.legend(frameon=False, loc="center left", bbox_to_anchor=(0, 0.3))
    canvas.suptitle("Perceptrons that learn from mistakes, one example after the other")
    return canvas


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.perceptron")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
