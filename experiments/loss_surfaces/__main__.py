"""Surfaces and gradients of the losses of seed 003: p-norms, Kullback–Leibler, normalised (eq. 13–18).

python -m experiments.loss_surfaces --help
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import tyro

from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.results import Folder, judge, verdict
from experiments.loss_surfaces.formulas import SURFACES
from experiments.loss_surfaces.measuring import compare, drawn, share, two_variables
from experiments.loss_surfaces.report import plot, table


@dataclass(frozen=True)
class Config:
    """Draw losses and their gradients on the simplex of three outputs, of two outputs of any sum, and of one output.

    Automatic differentiation of the library's losses is compared with the seed's formulas at random outputs. The
    minimum of each loss is checked as well. Prints a table and writes config.json, loss_surfaces.json,
    loss_surfaces.npz and loss_surfaces.png to --out.
    """

    out: Path = Path("results/loss_surfaces")
    """Folder for the results; files of an earlier run there are replaced."""
    targets: tuple[float, ...] = (0.5, 0.3, 0.2)
    """x̄, the targets: three numbers above 0 that sum to 1."""
    points: int = 10_000
    """Number of random outputs, with sums from 0.1 to 10, at which gradients are compared."""
    quick: bool = False
    """A small version, 500 points, in a few seconds."""


def run(config: Config) -> dict[str, float]:
    """Compares, then draws; returns the judged errors.

    Raises:
      ExperimentError: for an invalid setting or an unusable folder, or if a loss differs from the seed's.
    """
    if config.quick:
        config = dataclasses.replace(config, points=min(config.points, 500))
    if len(config.targets) != 3 or min(config.targets) <= 0 or abs(sum(config.targets) - 1) > 1e-6:
        raise ExperimentError(f"--targets must be three numbers above 0 that sum to 1, got {config.targets}")
    if config.points < 1:
        raise ExperimentError(f"--points must be at least 1, got {config.points}")
    folder = Folder(config.out, config, outputs=[f"loss_surfaces.{kind}" for kind in ("json", "npz", "png")])
    with jax.enable_x64(True):
        targets = np.array(config.targets)
        found = {name: compare(surface, targets, config.points) for name, surface in SURFACES.items()}
        found["two-variable Kullback–Leibler"] = two_variables(share(targets), config.points)
        judged = {f"{name}: {what}": off for name, of in found.items() for what, off in of.items()}
        arrays = drawn(targets)
        picture_of = plot(arrays, targets)
    folder.data("loss_surfaces", verdict(judged)._asdict() | {"deviations": judged})
    folder.arrays("loss_surfaces", arrays)
    picture = folder.picture("loss_surfaces", picture_of)
    print(table(found))
    print(f"picture and data: {picture.parent} ({picture.name}, .json, .npz, config.json)")
    judge(judged)
    return judged


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.loss_surfaces")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
