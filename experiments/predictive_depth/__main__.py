"""Predictive coding in deep networks: inference in axons (activity) and in errors; learning rates at four depths.

python -m experiments.predictive_depth --help
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments.harness.failure import exit_code
from experiments.harness.results import Folder, with_error
from experiments.harness.settings import at_least, positive, rising
from experiments.harness.sweep import lowest
from experiments.predictive_depth.inference import Descent, descents
from experiments.predictive_depth.training import Curve, curves
from nl_jax._core.numerics import mean_and_error

RESIDUAL, ERROR = 1e-3, 1e-2  # targets of inference: relative ‖∂F/∂x‖, and relative error of ∂F/∂W
TARGETS = np.geomspace(1e-1, 1e-4, 13)  # targets of both in the figure


@dataclass(frozen=True)
class Config:
    """Measure predictive coding in axons and in errors (ePC) at 20 layers, and μPC's learning rates at 8 to 64 layers.

    Each kind of inference uses the best of the same step sizes. There is no theory to compare with. Prints two tables
    and writes config.json, predictive_depth.json and predictive_depth.png to --out.
    """

    out: Path = Path("results/predictive_depth")
    """Folder for the results; files of an earlier run there are replaced."""
    layers: int = 20
    """Number of layers with weights where inference is measured."""
    units: int = 32
    """Units of each hidden layer."""
    inference_rates: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 1.0)
    """Step sizes of inference to try."""
    steps_in_axons: int = 16384
    """Largest number of steps of inference in axons."""
    steps_in_errors: int = 4096
    """Largest number of steps of inference in errors; it has converged by then."""
    examples: int = 16
    """Digits for which axons are inferred."""
    depths: tuple[int, ...] = (8, 16, 32, 64)
    """Numbers of layers of the networks that learn, rising."""
    rates: tuple[float, ...] = tuple(2.0**-k for k in range(12, -1, -1))
    """Learning rates of Adam."""
    learning_inference_rates: tuple[float, ...] = (0.3, 0.03, 0.003)
    """Step sizes of ePC's inference while a network learns; the one with the lower loss is taken."""
    steps: int = 8
    """Steps of ePC's inference per update."""
    updates: int = 100
    """Updates after which losses are compared."""
    batch_size: int = 32
    """Examples per update."""
    seeds: int = 3
    """Independent networks."""
    quick: bool = False
    """A small version: inference in 5 layers, learning in 4, two seeds, in about half a minute."""


def run(config: Config) -> tuple[list[Descent], list[Curve]]:
    """Measures inference, then learning, and saves.

    Raises:
      ExperimentError: for an invalid setting or an unusable folder, or if no inference converges.
    """
    if config.quick:
        config = dataclasses.replace(
            config, layers=5, units=16, inference_rates=(0.05, 0.2), steps_in_axons=512, steps_in_errors=2048,
            examples=4, depths=(4,), rates=(2.0**-7, 2.0**-5, 2.0**-3), learning_inference_rates=(0.3,), updates=10,
            seeds=2,
        )  # fmt: skip
    _check(config)
    folder = Folder(config.out, config, outputs=[f"predictive_depth.{kind}" for kind in ("json", "png")])
    most = {"axons": config.steps_in_axons, "errors": config.steps_in_errors}
    inferred = descents(
        config.layers, config.units, config.inference_rates, most, seeds=config.seeds, examples=config.examples
    )
    print(inference_table(inferred))
    learned = curves(
        config.depths, config.rates, config.learning_inference_rates, units=config.units, updates=config.updates,
        batch_size=config.batch_size, steps=config.steps, seeds=config.seeds,
    )  # fmt: skip
    print(learning_table(learned))
    saved = {"inference": [one._asdict() for one in inferred], "learning": [one._asdict() for one in learned]}
    folder.data("predictive_depth", saved)
    folder.picture("predictive_depth", plot(inferred, learned))
    print(f"picture and data: {folder.path} (predictive_depth.png, predictive_depth.json, config.json)")
    return inferred, learned


def _check(config: Config) -> None:
    at_least(
        config, layers=3, units=1, steps_in_axons=2, steps_in_errors=2, examples=1, steps=1, updates=1, batch_size=1,
        seeds=1,
    )  # fmt: skip
    positive(config, "inference_rates", "rates", "learning_inference_rates")
    rising(config, "depths", least=3)


def factor(axons: Descent, errors: Descent, criterion: str, target: float) -> np.ndarray:
    """Evaluations in axons over those in errors, each at its best rate, by seed; infinite or NaN if not reached."""
    taken = []
    for of in (axons, errors):
        values = getattr(of, criterion)
        taken.append(of.evaluations(values, target)[of.best(values, target)])
    return taken[0] / np.where(np.isfinite(taken[1]), taken[1], np.nan)


def _pairs(inferred: Sequence[Descent]) -> list[tuple[Descent, Descent]]:
    """Pairs of inference in axons and in errors, one for each network."""
    return [(inferred[i], inferred[i + 1]) for i in range(0, len(inferred), 2)]


def inference_table(inferred: Sequence[Descent]) -> str:
    """Evaluations to a small residual and to nearly the equilibrium's gradient; ± is one standard error over seeds."""
    lines = [f"{'network':10}{'until':>24}{'in axons':>20}{'rate':>7}{'in errors':>16}{'rate':>7}{'factor':>16}"]
    for axons, errors in _pairs(inferred):
        for criterion, target in (("residual", RESIDUAL), ("error", ERROR)):
            until = {"residual": "‖∂F/∂x‖ falls to", "error": "error of ∂F/∂W is"}[criterion]
            line = f"{axons.network:10}{f'{until} {target:g}':>24}"
            for of, width in ((axons, 20), (errors, 16)):
                values = getattr(of, criterion)
                best = of.best(values, target)
                line += f"{with_error(of.evaluations(values, target)[best], 0):>{width}}{of.rates[best]:>7g}"
            ratio = factor(axons, errors, criterion, target)
            lines.append(line + f"{with_error(ratio, 1):>16}")
    return "\n".join(lines)


def shift(of: Sequence[Curve]) -> np.ndarray:
    """log₂ of the best rate of the deepest network over that of the shallowest, by seed."""
    return of[-1].best - of[0].best


def regret(of: Sequence[Curve]) -> np.ndarray:
    """Loss of the deepest network at the shallowest network's best rate, over its loss at its own best, by seed."""
    deepest, shallowest = of[-1], of[0]
    return deepest.loss[lowest(shallowest.loss)] / deepest.loss[lowest(deepest.loss)]


def by_scaling(learned: Sequence[Curve]) -> dict[str, list[Curve]]:
    """The curves of each scaling, by increasing depth."""
    return {name: [c for c in learned if c.scaling == name] for name in dict.fromkeys(c.scaling for c in learned)}


def learning_table(learned: Sequence[Curve]) -> str:
    """Best rates and losses by depth, and how the rates transfer; ± is one standard error over seeds."""
    lines = [f"{'scaling':10}{'layers':>8}{'log₂ of the best rate':>24}{'loss there':>20}{'inference':>11}"]
    for name, of in by_scaling(learned).items():
        lines += [
            f"{name:10}{c.layers:>8}{with_error(c.best, 2):>24}{with_error(c.least, 3):>20}{c.inference_rate:>11g}"
            for c in of
        ]
        if len(of) == 1:
            continue
        lines.append(
            f"{name:10}from {of[0].layers} to {of[-1].layers} layers log₂ of the best rate shifts by "
            f"{with_error(shift(of), 2)}; the rate of {of[0].layers} layers loses a factor {with_error(regret(of), 2)}"
        )
    return "\n".join(lines)


def plot(inferred: Sequence[Descent], learned: Sequence[Curve]) -> Any:
    """Above, inference in axons and in errors. Below, losses against the learning rate, and the best rate by depth."""
    from experiments.harness.plotting import figure

    canvas, (above, below) = figure(2, 3, size=(15, 9))
    _show_inference(above, inferred)
    _show_learning(below, by_scaling(learned))
    return canvas


def _show_inference(panels: Any, inferred: Sequence[Descent]) -> None:
    from experiments.harness.plotting import band, style

    residual, error, factors = panels
    for i, of in enumerate(inferred):
        look = {**style((0, 2, 1, 3)[i % 4]), "markevery": 4}
        for axes, criterion, target in ((residual, "residual", RESIDUAL), (error, "error", ERROR)):
            values = getattr(of, criterion)
            of_seeds = np.log(np.maximum(values[of.best(values, target)], 1e-12))
            axes.plot(2 * of.steps + 3, np.exp(of_seeds.mean(axis=0)), label=f"{of.network}, in {of.variables}", **look)
    residual.axhline(RESIDUAL, color="grey", linestyle=":")
    error.axhline(ERROR, color="grey", linestyle=":")
    residual.set(ylabel="‖∂F/∂x‖ / initial ‖∂F/∂x‖", title="progress of inference", ylim=(1e-8, 3))
    error.set(ylabel="‖g − g*‖ / ‖g*‖ of the worst layer", title="error of g = ∂F/∂W", ylim=(1e-8, 30))
    for axes in (residual, error):
        axes.set(xlabel="evaluations", xscale="log", yscale="log")
    residual.set_xlim(left=0.5)  # room for the legend
    residual.legend(frameon=False, fontsize=9, loc="lower left")
    for i, (axons, errors) in enumerate(_pairs(inferred)):
        for criterion, name in (("residual", "‖∂F/∂x‖"), ("error", "error of g")):
            ratios = np.array([factor(axons, errors, criterion, target) for target in TARGETS])
            ratios[~np.isfinite(ratios).all(axis=1)] = np.nan
            look = {**style((0, 1)[i % 2]), "linestyle": "-" if criterion == "residual" else "--", "markevery": 3}
            band(factors, TARGETS, ratios, look, f"{axons.network}, {name}")
    factors.axhline(100, color="grey", linestyle=":")
    factors.set(
        xlabel="residual reached", ylabel="evaluations in axons / in errors", title="saved by inference in errors",
        xscale="log", yscale="log",
    )  # fmt: skip
    factors.invert_xaxis()
    factors.legend(frameon=False, fontsize=9)


def _show_learning(panels: Any, learned: Mapping[str, Sequence[Curve]]) -> None:
    from experiments.harness.plotting import band, joined, style

    *losses, best = panels
    for axes, (name, of) in zip(losses, learned.items(), strict=False):
        for i, curve in enumerate(of):
            look = {**style((0, 2, 1, 3)[i % 4]), "markevery": 2}
            band(axes, curve.rates, curve.loss, look, f"{curve.layers} layers")
        axes.set(xlabel="learning rate", ylabel="training loss", title=f"{name}: loss after training", xscale="log",
                 yscale="log", ylim=(None, 2.5))  # fmt: skip
        low, high = axes.get_ylim()
        axes.set_yticks([tick for tick in (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2) if low < tick < high])
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
        axes.legend(frameon=False, fontsize=9)
    for i, (name, of) in enumerate(learned.items()):
        depths = [curve.layers for curve in of]
        mean, off = zip(*(mean_and_error(curve.best) for curve in of), strict=True)
        look = joined(depths, {**style((2, 3)[i % 2]), "markevery": 1})
        best.errorbar(depths, mean, yerr=np.nan_to_num(off, posinf=0.0), capsize=3, label=name, **look)
        best.set_xscale("log")
        best.set_xticks(depths, [str(depth) for depth in depths])
    best.set(xlabel="layers", ylabel="log₂ of the best learning rate", title="transfer of the learning rate")
    best.minorticks_off()
    best.margins(y=0.3)
    best.legend(frameon=False, fontsize=9)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.predictive_depth")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
