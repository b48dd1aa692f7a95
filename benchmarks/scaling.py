"""Cost of an estimate against width, batch size and number of samples.

python -m benchmarks.scaling --help
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

import nl_jax as nl
from benchmarks import report
from benchmarks.problem import Problem, problem
from experiments.harness.failure import exit_code
from experiments.harness.plotting import figure, style
from experiments.harness.results import Folder
from nl_jax.evaluation.diagnostics.timing import Spread, interleaved, ratio


@dataclass(frozen=True)
class Config:
    """Time K samples relative to K forward passes, one size varied at a time around 784-256-256-10, batch 128, K = 32.

    Writes scaling.json and scaling.png to --out.
    """

    widths: tuple[int, ...] = (32, 64, 128, 256, 512, 1024, 2048)
    """Units of both hidden layers."""
    batch_sizes: tuple[int, ...] = (1, 8, 32, 128, 512)
    """Examples."""
    samples: tuple[int, ...] = (1, 4, 16, 64, 256)
    """K, random directions per estimate."""
    rounds: int = 7
    """Interleaved repeats; medians and quartiles are reported."""
    out: Path = Path("results/benchmarks/scaling")
    """Folder for the results."""
    quick: bool = False
    """Three sizes of each kind and three rounds."""


_WIDTH, _BATCH, _SAMPLES = 256, 128, 32

Curves = dict[str, list[Spread]]  # by estimator, one value per size


def run(config: Config) -> dict[str, Curves]:
    """Measures, prints tables and saves; returns the curves by the size that is varied."""
    if config.quick:
        some = {name: getattr(config, name)[:3] for name in ("widths", "batch_sizes", "samples")}
        config = dataclasses.replace(config, rounds=min(config.rounds, 3), **some)
    folder = Folder(config.out, config)
    sweeps = {
        "width": [(width, width, _BATCH, _SAMPLES) for width in config.widths],
        "batch": [(batch, _WIDTH, batch, _SAMPLES) for batch in config.batch_sizes],
        "K": [(samples, _WIDTH, _BATCH, samples) for samples in config.samples],
    }
    found: dict[str, Curves] = {}
    for varied, sizes in sweeps.items():
        found[varied] = {}
        for value, width, batch, samples in sizes:
            print(f"{varied} {value}")
            for name, spread in _ratios(problem((784, width, width, 10), batch), samples, config.rounds).items():
                found[varied].setdefault(name, []).append(spread)
    axes = {varied: [size[0] for size in sizes] for varied, sizes in sweeps.items()}
    for varied, curves in found.items():
        rows = [(f"over K forward passes; {varied} =", *map(str, axes[varied]))]
        rows += [(name, *(f"{value.median:.2f}" for value in values)) for name, values in curves.items()]
        print("\n".join(report.aligned(rows)))
    results: dict[str, Any] = {varied: {"sizes": sizes} for varied, sizes in axes.items()}
    for varied, curves in found.items():
        results[varied] |= {name: [value._asdict() for value in values] for name, values in curves.items()}
    report.save(folder, "scaling", results, _plot(axes, found))
    return found


def _estimators(objective: Any, samples: int) -> dict[str, nl.GradientEstimator]:
    signs, one = nl.directions.rademacher(), nl.directions.rank_one()
    return {
        "weights: Gaussian, vmapped": nl.weight_perturbation(objective, num_samples=samples, chunk=samples),
        "weights: signs": nl.weight_perturbation(objective, num_samples=samples, directions=signs),
        "weights: rank-one signs": nl.weight_perturbation(objective, num_samples=samples, directions=one),
        "nodes: signs": nl.node_perturbation(objective, num_samples=samples, directions=signs),
        "forward gradient in nodes: signs": nl.forward_gradient(
            objective, num_samples=samples, directions=signs, space=nl.spaces.nodes
        ),
    }


def _ratios(task: Problem, samples: int, rounds: int) -> dict[str, Spread]:
    key, at = jax.random.key(3), (task.params, task.data)
    forward = jax.jit(task.mean_loss)

    def timed(estimator: nl.GradientEstimator) -> Any:
        compiled = jax.jit(lambda params, batch: estimator.estimate(key, (), params, batch)[::2])
        return lambda: compiled(*at)

    functions = {name: timed(estimator) for name, estimator in _estimators(task.objective, samples).items()}
    unit = {"forward": lambda: [forward(*at) for _ in range(samples)]}
    seconds = interleaved(unit | functions, rounds, progress=False)
    return {name: ratio(seconds[name], seconds["forward"]) for name in functions}


def _plot(sizes: dict[str, list[int]], found: dict[str, Curves]) -> Any:
    canvas, panels = figure(1, len(found), size=(13, 4.6))
    labels = {"width": "width (units of a hidden layer)", "batch": "batch (examples)", "K": "K (samples)"}
    for axes, (varied, curves) in zip(panels, found.items(), strict=True):
        for index, (name, values) in enumerate(curves.items()):
            look = {**style(index), "markevery": 1}
            axes.plot(sizes[varied], [value.median for value in values], label=name, **look)
            low, high = np.array([value.low for value in values]), np.array([value.high for value in values])
            axes.fill_between(sizes[varied], low, high, color=look["color"], alpha=0.2, linewidth=0)
        axes.axhline(1, color="#000000", linestyle=":", linewidth=1)
        axes.set(xscale="log", yscale="log", xlabel=labels[varied])
        axes.set_xticks(sizes[varied], [str(size) for size in sizes[varied]], minor=False)
        axes.minorticks_off()
    panels[0].set_ylabel("time of K samples, in K forward passes (dotted: 1)")
    device = jax.devices()[0].device_kind
    canvas.suptitle(f"784-{_WIDTH}-{_WIDTH}-10 tanh, batch {_BATCH}, K = {_SAMPLES} unless varied; {device}")
    canvas.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return canvas


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m benchmarks.scaling")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
