"""Node and weight perturbation in trials of many steps, measured and in theory (Züge et al. 2023).

python -m experiments.temporal_task --help
"""

import dataclasses
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from tqdm.auto import tqdm

from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.results import Folder, Verdict
from experiments.harness.settings import at_least, rising
from experiments.temporal_task.measuring import RULES, Curve, Results, Setting, measure
from experiments.temporal_task.report import blocks, plot, summary, table

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
            curve = curves[setting, rule] = measure(
                setting, rule, outputs=config.outputs, inputs=config.inputs, students=config.students,
                relative_rate=config.rate,
            )  # fmt: skip
            folder.metric(**summary(setting, rule, curve))
    worst = max(np.abs(curve.deviations).max() for curve in curves.values())
    comparisons = sum(len(curve.deviations) for curve in curves.values())
    every = [summary(*key, curve) | blocks(curve) for key, curve in curves.items()]
    verdict = Verdict(float(worst), ALLOWED)
    folder.data("temporal_task", {**verdict._asdict(), "comparisons": comparisons, "curves": every})
    picture = folder.picture("temporal_task", plot(curves, config.dimension, config.length, config.outputs))
    print(table(curves))
    print(f"largest deviation from the laws: {worst:.1f} standard errors in {comparisons} comparisons")
    print(f"picture and data: {picture.parent} ({picture.name}, temporal_task.json, metrics.jsonl, config.json)")
    if not verdict.agrees:
        raise ExperimentError(f"measurement and law differ by {worst:.1f} standard errors, more than {ALLOWED:g}")
    return curves


def _check(config: Config) -> None:
    rising(config, "steps", "dimensions")
    at_least(config, outputs=1, dimension=1, length=1, students=FEWEST)
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.temporal_task")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
