"""Descending a narrow valley: steepest descent, conjugate gradients and Adam.

python -m experiments.optimizers --help
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import tyro

from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.results import Folder
from experiments.optimizers.descending import (
    OPTIMIZERS,
    Function,
    Path2D,
    Settings,
    descend,
    diverged,
    price,
    rosenbrock,
    straight,
)
from experiments.optimizers.report import plot, table


@dataclass(frozen=True)
class Config:
    """Minimise two functions of two variables by every optimizer of seed 003 §3, and plot the paths.

    The functions are a straight valley, where conjugate gradients end after two line searches, and Rosenbrock's curved
    valley. Optimizers with a learning rate get the best of several. Prints a table and writes config.json,
    metrics.jsonl, arrays (.npz) and optimizers.png to --out.
    """

    condition: float = 20.0
    """Condition number of the straight valley: the ratio of its curvatures."""
    evaluations: int = 2000
    """Budget of each optimizer, in evaluations of value and gradient."""
    rates: int = 17
    """Learning rates tried, from 1 down to 1e-4, evenly on a logarithmic scale."""
    target: float = 1e-12
    """Value, relative to the one at the start, at which a path ends."""
    out: Path = Path("results/optimizers")
    """Folder for the results; files of an earlier run there are replaced."""
    quick: bool = False
    """A small version, 500 evaluations and nine rates."""

    @property
    def settings(self) -> Settings:
        """The settings that the parts share."""
        return Settings(*(getattr(self, name) for name in Settings._fields))


def run(config: Config) -> dict[str, dict[str, Path2D]]:
    """Runs every optimizer on both functions, saving as it goes; returns paths by function and optimizer.

    Raises:
      ExperimentError: for an invalid setting or an unusable folder, or if an optimizer diverged at all its rates.
    """
    if config.quick:
        config = dataclasses.replace(config, evaluations=min(config.evaluations, 500), rates=min(config.rates, 9))
    if config.evaluations < 1 or config.rates < 1:
        raise ExperimentError("--evaluations and --rates must be at least 1")
    if not 1 <= config.condition < float("inf"):
        raise ExperimentError(f"--condition must be a finite number of at least 1, got {config.condition}")
    valleys: dict[str, tuple[Function, tuple[float, float]]] = {
        "straight valley": straight(config.condition),
        "Rosenbrock's valley": (rosenbrock, (-1.2, 1.0)),
    }
    folder = Folder(config.out, config, outputs=["optimizers.png", "straight.npz", "rosenbrock.npz"])
    paths: dict[str, dict[str, Path2D]] = {}
    with jax.enable_x64(True):
        for name, (function, start) in valleys.items():
            paths[name] = {}
            for of, search in OPTIMIZERS.items():
                path = descend(function, start, search, config.settings)
                paths[name][of] = path
                folder.metric(
                    function=name, optimizer=of, rate=path.rate, final_value=path.values[-1],
                    evaluations_to_target=price(path, config.target), steps=len(path.values) - 1,
                )  # fmt: skip
            arrays = {f"{of} {part}": getattr(path, part) for of, path in paths[name].items() for part in path._fields}
            folder.arrays(name.removesuffix(" valley").removesuffix("'s").lower(), arrays)
        print(table(paths, config.settings))
        picture = folder.picture("optimizers", plot(paths, {name: f for name, (f, _) in valleys.items()}))
    print(f"picture and data: {picture.parent} ({picture.name}, metrics.jsonl, *.npz, config.json)")
    lost = [f"{of} in {name}" for name, ways in paths.items() for of, path in ways.items() if diverged(path)]
    if lost:
        raise ExperimentError(f"diverged at all rates: {', '.join(lost)}: try more --rates")
    return paths


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.optimizers")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
