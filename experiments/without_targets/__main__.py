"""The ladder: one small layer of features, learned with more and more supervision, from none to the full error.

python -m experiments.without_targets --help
"""

import dataclasses
import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from experiments.harness import data
from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.finished import Finished
from experiments.harness.results import Folder
from experiments.harness.settings import at_least
from experiments.without_targets.ladder import METHODS, RUNGS
from experiments.without_targets.lesson import Settings
from experiments.without_targets.report import plot, receptive_fields, table
from experiments.without_targets.teaching import Scores, teach

DATASETS = {"digits": data.digits, "mnist": data.mnist}


@dataclass(frozen=True)
class Config:
    """Train the same small network without labels, by a reward alone, layer by layer, and by the full error.

    Features are the hidden layer's outputs. All features are scored by a linear read-out trained afterwards and by the
    nearest class mean: both are supervised, and neither changes the features. Networks that learned to answer are also
    scored by their own answers. Prints a table and writes config.json, metrics.jsonl, weights (.npz),
    without_targets.png and receptive_fields.png to --out.
    """

    dataset: str = "digits"
    """digits (ships with scikit-learn) or mnist (downloaded through scikit-learn)."""
    data_dir: Path | None = None
    """Folder of MNIST-style IDX files, gzipped or not, to use instead of --dataset: train-images-idx3-ubyte[.gz]
    and so on. If only t10k files are there, four fifths of them are the training set."""
    out: Path = Path("results/without_targets")
    """Folder for the results; files of an earlier run there are replaced."""
    methods: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME [NAME ...]")] = tuple(
        name for names in RUNGS.values() for name in names
    )
    """Methods to compare, shown by rung; the default is all of them."""
    hidden: int = 32
    """Hidden units, the features; at most the number of pixels."""
    updates: int = 3000
    """Parameter updates of each learning method."""
    batch_size: int = 50
    """Examples per update."""
    num_samples: int = 10
    """Noisy samples of each example per update, for methods that explore by noise."""
    seeds: int = 5
    """Independent runs of each method, trained at once."""
    resume: bool = False
    """Continue an interrupted run: reuse what a run with the same settings finished in --out."""
    quick: bool = False
    """A small version, 200 updates of 2 seeds, in under a minute."""


def run(config: Config) -> dict[str, Scores]:
    """Trains by each method in turn, saving as it goes; returns the results by method.

    Raises:
      ExperimentError: for an invalid setting, data or folder, or if learning diverges.
    """
    if config.quick:
        config = dataclasses.replace(config, updates=min(config.updates, 200), seeds=min(config.seeds, 2))
    _check(config)
    dataset = data.idx_folder(config.data_dir) if config.data_dir else DATASETS[config.dataset]()
    examples, pixels = dataset.train.images.shape
    if config.batch_size > examples:
        raise ExperimentError(f"--batch-size must be at most the {examples} training examples")
    if config.hidden > min(examples, pixels):
        raise ExperimentError(f"--hidden must be at most {min(examples, pixels)}, as there are principal components")
    pictures = ["without_targets.png", "receptive_fields.png"]
    folder = Folder(config.out, config, outputs=[*pictures, *(f"{name}.npz" for name in METHODS)])
    print(
        f"{dataset.name}: {examples} images to train, {len(dataset.test.labels)} to test, {config.hidden} hidden "
        f"units, {config.seeds} seeds, {config.updates} updates of batch {config.batch_size}"
    )
    settings = Settings(config.hidden, config.updates, config.num_samples)
    finished = Finished(config.out, config, resume=config.resume, but=("methods",))
    scores: dict[str, Scores] = {}
    try:
        for name in config.methods:
            print(name)
            compute = functools.partial(
                teach, name, dataset, settings, seeds=config.seeds, batch_size=config.batch_size
            )
            kept = finished(name, compute)
            scores[name] = Scores._make(np.array(value) if isinstance(value, list) else value for value in kept)
            measured = scores[name]._asdict()
            folder.arrays(name, {"weights": measured.pop("weights")})
            folder.metric(method=name, **measured)
    finally:  # also after an error or Ctrl-C: the results so far are shown
        if scores:
            folder.picture("without_targets", plot(scores, dataset.name))
            fields = receptive_fields(scores, dataset.name)
            if fields is not None:
                folder.picture("receptive_fields", fields)
            print(table(scores))
            print(f"pictures and data: {folder.path} (*.png, metrics.jsonl, *.npz, config.json)")
    return scores


def _check(config: Config) -> None:
    unknown = [name for name in config.methods if name not in METHODS]
    if unknown or not config.methods:
        raise ExperimentError(f"unknown method {', '.join(unknown) or '(none)'}; there are {', '.join(METHODS)}")
    twice = {name for name in config.methods if config.methods.count(name) > 1}
    if twice:
        raise ExperimentError(f"--methods names {', '.join(sorted(twice))} twice")
    if config.dataset not in DATASETS:
        raise ExperimentError(f"unknown dataset {config.dataset}; there are {', '.join(DATASETS)}")
    at_least(config, hidden=1, updates=1, batch_size=1, num_samples=2, seeds=1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.without_targets")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
