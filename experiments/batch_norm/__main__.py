"""Trains a deep sigmoid network on digits with and without batch normalisation (seed 001 §5), by two rules.

python -m experiments.batch_norm --help
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from experiments.batch_norm.report import plot, table
from experiments.batch_norm.training import RULES, Curve, Settings, train
from experiments.harness import data
from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.results import Folder
from experiments.harness.settings import at_least, positive


@dataclass(frozen=True)
class Config:
    """Train a deep sigmoid network on digits with and without batch normalisation, by backprop and node perturbation.

    Plain gradient descent trains every scheme at every learning rate; each scheme is judged at its own best rate. With
    batch normalisation, node perturbation must credit all noise by the loss of the whole batch. Prints a table and
    writes config.json, metrics.jsonl, batch_norm.npz and batch_norm.png to --out.
    """

    out: Path = Path("results/batch_norm")
    """Folder for the results; replaces files of an earlier run."""
    hidden: tuple[int, ...] = (32, 32, 32)
    """Units of each hidden layer (logistic sigmoid)."""
    updates: int = 600
    """Parameter updates."""
    batch_size: int = 50
    """Examples per update."""
    num_samples: int = 32
    """Random directions per update of node perturbation."""
    backprop_rates: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0)
    """Learning rates tried with backprop."""
    node_rates: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)
    """Learning rates tried with node perturbation."""
    seeds: int = 5
    """Independent runs of each scheme at each learning rate, trained at once."""
    quick: bool = False
    """Run a small version: 200 updates of 2 seeds at two of the learning rates, in about a minute."""

    @property
    def settings(self) -> Settings:
        """The settings that the parts share."""
        return Settings(*(getattr(self, name) for name in Settings._fields))


def run(config: Config) -> list[Curve]:
    """Trains with every rule, scheme and learning rate, saving as it goes; returns all curves.

    Raises:
      ExperimentError: if a setting or folder is invalid.
    """
    if config.quick:
        config = dataclasses.replace(
            config, updates=min(config.updates, 200), seeds=min(config.seeds, 2),
            backprop_rates=config.backprop_rates[1:3], node_rates=config.node_rates[1:3],
        )  # fmt: skip
    _check(config)
    dataset = data.digits()
    folder = Folder(config.out, config, outputs=["batch_norm.png", "batch_norm.npz"])
    print(
        f"{dataset.name}: {len(dataset.train.labels)} images to train, {len(dataset.test.labels)} to test, "
        f"{config.seeds} seeds, {config.updates} updates of batch {config.batch_size}"
    )
    curves: list[Curve] = []
    try:
        for rule, schemes in RULES.items():
            for scheme in schemes:
                print(f"{rule}, {scheme}")
                for rate in config.backprop_rates if rule == "backprop" else config.node_rates:
                    curves.append(train(rule, scheme, rate, config.settings, dataset))
                    folder.metric(**dataclasses.asdict(curves[-1]))
    finally:  # also after an error or Ctrl-C: show the results so far
        if curves:
            folder.arrays("batch_norm", {f"{c.rule}/{c.scheme}/{c.learning_rate:g}": c.train_loss for c in curves})
            picture = folder.picture("batch_norm", plot(curves, dataset.name))
            print(table(curves))
            print(f"picture and data: {picture.parent} ({picture.name}, metrics.jsonl, batch_norm.npz, config.json)")
    return curves


def _check(config: Config) -> None:
    at_least(config, updates=1, num_samples=1, seeds=1, hidden=1)
    if not 2 <= config.batch_size <= 1437:
        raise ExperimentError(f"--batch-size must be 2 to the 1437 training examples, got {config.batch_size}")
    positive(config, "backprop_rates", "node_rates")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.batch_norm")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
