"""Trains one network on the same images with different estimators of the same gradient.

python -m experiments.compare --help
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from experiments.compare.report import plot, table
from experiments.compare.training import ESTIMATORS, Curve, Settings, train_with
from experiments.harness import data
from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.finished import Finished
from experiments.harness.results import Folder
from experiments.harness.settings import at_least, positive
from experiments.harness.users_own import is_place

DATASETS = {"digits": data.digits, "mnist": data.mnist}


@dataclass(frozen=True)
class Config:
    """Train one network on the same images with different gradient estimators, side by side.

    Prints a table and writes config.json, metrics.jsonl, arrays (.npz) and compare.png to --out.
    """

    dataset: str = "digits"
    """digits (ships with scikit-learn) or mnist (downloaded through scikit-learn)."""
    data_dir: Path | None = None
    """Folder of MNIST-style IDX files, gzipped or not, to use instead of --dataset: train-images-idx3-ubyte[.gz]
    and so on. If there are only t10k files, four fifths of them are used for training."""
    out: Path = Path("results/compare")
    """Folder for the results; replaces files of an earlier run."""
    estimators: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME [NAME ...]")] = tuple(ESTIMATORS)
    """Estimators to compare, in this order. The default lists the built-in ones; module:factory adds one of your own,
    where factory(objective) makes the estimator."""
    hidden: tuple[int, ...] = (32,)
    """Units of each hidden layer (tanh)."""
    updates: int = 2000
    """Parameter updates of each estimator."""
    batch_size: int = 100
    """Examples per update."""
    num_samples: int = 16
    """Random directions per update, for estimators that use them."""
    learning_rate: float = 1e-2
    """Adam's learning rate, the same for all estimators."""
    seeds: int = 5
    """Independent runs per estimator, trained at once."""
    target: float = 0.9
    """Test accuracy; the table gives the objective evaluations needed to reach it."""
    resume: bool = False
    """Keep the estimators that an interrupted run with the same settings finished in --out."""
    quick: bool = False
    """Run a small version: 300 updates of 3 seeds, in under a minute."""

    @property
    def settings(self) -> Settings:
        """The settings that the parts share."""
        return Settings(*(getattr(self, name) for name in Settings._fields))


def run(config: Config) -> dict[str, Curve]:
    """Trains with every estimator in turn, saving as it goes; returns a curve for each.

    Raises:
      ExperimentError: if a setting, the data or a folder is invalid, or a loss is not finite.
    """
    if config.quick:
        config = dataclasses.replace(config, updates=min(config.updates, 300), seeds=min(config.seeds, 3))
    _check(config)
    dataset = data.idx_folder(config.data_dir) if config.data_dir else DATASETS[config.dataset]()
    if config.batch_size > len(dataset.train.labels):
        raise ExperimentError(f"--batch-size must be at most the {len(dataset.train.labels)} training examples")
    folder = Folder(
        config.out,
        config,
        outputs=["compare.png", *(f"{name.replace(':', '.')}.npz" for name in {*ESTIMATORS, *config.estimators})],
    )
    print(
        f"{dataset.name}: {len(dataset.train.labels)} images to train, {len(dataset.test.labels)} to test, "
        f"{config.seeds} seeds, {config.updates} updates of batch {config.batch_size}"
    )
    finished = Finished(config.out, config, resume=config.resume, but=("estimators",))
    curves: dict[str, Curve] = {}
    try:
        for name in config.estimators:
            print(name)
            if name in finished:
                curves[name] = _again(name, finished[name], folder)
            else:
                curves[name] = Curve()
                finished[name] = train_with(name, config.settings, dataset, folder, curves[name])
    finally:  # also after an error or Ctrl-C: show the results so far
        measured = {name: curve for name, curve in curves.items() if len(curve.update) > 1}
        if measured:
            picture = folder.picture("compare", plot(measured, dataset.name))
            print(table(measured, config.target))
            print(f"picture and data: {picture.parent} ({picture.name}, metrics.jsonl, *.npz, config.json)")
    return curves


def _check(config: Config) -> None:
    unknown = [name for name in config.estimators if name not in ESTIMATORS and not is_place(name)]
    if unknown or not config.estimators:
        raise ExperimentError(
            f"unknown estimator {', '.join(unknown) or '(none)'}; there are {', '.join(ESTIMATORS)}, "
            "and module:factory for one of your own"
        )
    twice = {name for name in config.estimators if config.estimators.count(name) > 1}
    if twice:
        raise ExperimentError(f"--estimators names {', '.join(sorted(twice))} twice")
    if config.dataset not in DATASETS:
        raise ExperimentError(f"unknown dataset {config.dataset}; there are {', '.join(DATASETS)}")
    at_least(config, updates=1, batch_size=1, num_samples=1, seeds=1, hidden=1)
    positive(config, "learning_rate")


def _again(name: str, part: dict[str, Any], folder: Folder) -> Curve:
    """Returns a curve that an earlier run finished, and writes it to the folder again."""
    curve = Curve()
    for field, values in part["curve"].items():
        setattr(curve, field, list(map(np.array, values)))
    folder.arrays(name.replace(":", "."), part["recorded"])
    for row in curve.rows():
        folder.metric(estimator=name, **row)
    return curve


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.compare")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
