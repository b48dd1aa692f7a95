"""Compares depth with width at equal numbers of parameters (seed 001: how many layers, and how many nodes).

python -m experiments.depth_width --help
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from tqdm.auto import tqdm

from experiments.depth_width.report import plot, table
from experiments.depth_width.training import Settings, Stopped, digits, mnist_1d, shape, taught
from experiments.harness.failure import exit_code
from experiments.harness.results import Folder
from experiments.harness.settings import at_least, positive, rising


@dataclass(frozen=True)
class Config:
    """Train networks of one to six hidden layers and equal numbers of parameters on handwritten digits and MNIST-1D.

    Every network learns at every rate; the validation loss chooses its rate and when to stop. No theory predicts the
    result. Prints a table and writes config.json, metrics.jsonl, depth_width.json and depth_width.png to --out.
    """

    out: Path = Path("results/depth_width")
    """Folder for the results; replaces files of an earlier run."""
    parameters: tuple[int, ...] = (1500, 6000)
    """Numbers of weights and biases; each network has the width that comes nearest."""
    depths: tuple[int, ...] = (1, 2, 3, 4, 6)
    """Numbers of hidden layers (tanh); all layers of a network have the same width."""
    rates: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)
    """Learning rates tried."""
    updates: int = 6000
    """Largest number of parameter updates."""
    batch_size: int = 50
    """Examples per update."""
    seeds: int = 5
    """Independent runs of each network at each rate."""
    quick: bool = False
    """Run a small version: two depths and 100 updates of 2 seeds at one rate, in about 15 seconds."""

    @property
    def settings(self) -> Settings:
        """The settings that training takes."""
        return Settings(*(getattr(self, name) for name in Settings._fields))


def run(config: Config) -> list[Stopped]:
    """Trains every network in turn, saving as it goes.

    Raises:
      ExperimentError: if a setting or folder is invalid, or a package is missing.
    """
    if config.quick:
        config = dataclasses.replace(
            config, depths=config.depths[:3:2], rates=config.rates[2:3], updates=min(config.updates, 100),
            seeds=min(config.seeds, 2), parameters=config.parameters[:1],
        )  # fmt: skip
    _check(config)
    tasks = {"digits": digits(), "MNIST-1D": mnist_1d()}
    todo = [(task, budget, depth) for task in tasks for budget in config.parameters for depth in config.depths]
    # shape() checks the settings before anything is written
    shapes = [shape(tasks[task].train[0].shape[1], depth, budget) for task, budget, depth in todo]
    folder = Folder(config.out, config, outputs=[f"depth_width.{kind}" for kind in ("json", "png")])
    found: list[Stopped] = []
    try:
        for (task, budget, _), of in zip(tqdm(todo, unit="network"), shapes, strict=True):
            found.append(taught(task, tasks[task], budget, of, config.settings))
            folder.metric(**found[-1]._asdict())
    finally:  # also after Ctrl-C: show the results so far
        if found:
            folder.data("depth_width", {"networks": [one._asdict() for one in found]})
            folder.picture("depth_width", plot(found))
            print(table(found))
            print(f"picture and data: {folder.path} (depth_width.png, depth_width.json, metrics.jsonl, config.json)")
    return found


def _check(config: Config) -> None:
    at_least(config, updates=1, batch_size=1, seeds=1)
    rising(config, "parameters", "depths")
    positive(config, "rates")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.depth_width")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
