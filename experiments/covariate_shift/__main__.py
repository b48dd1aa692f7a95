"""Measures how a layer's input distribution shifts in training, with and without batch normalisation (seed 001 §5).

python -m experiments.covariate_shift --help
"""

import dataclasses
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from experiments.covariate_shift.network import ACTIVATIONS, SCHEMES, Settings, trained
from experiments.covariate_shift.report import ALLOWED, arrays_of, plot, row, table, verdict
from experiments.covariate_shift.shift import Results
from experiments.harness import data
from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.results import Folder
from experiments.harness.settings import at_least, positive
from experiments.harness.sweep import with_validation

MOMENTS = 40  # number of times at which shifts are measured, equally spaced


@dataclass(frozen=True)
class Config:
    """Measure how far an update moves the distribution of each layer's inputs, with and without batch normalisation.

    Every scheme learns digits at every rate, and validation chooses its rate. A third scheme is normalised, but random
    noise is added to its γ and β at every update: if shifts make learning slow, this scheme must be slow (Santurkar et
    al. 2018). The input of a normalised unit's activation has mean β and standard deviation |γ|, whatever lower layers
    do; exits with 1 if it has not. Prints a table and writes config.json, covariate_shift.json, covariate_shift.npz
    and covariate_shift.png to --out.
    """

    out: Path = Path("results/covariate_shift")
    """Folder for the results; replaces files of an earlier run."""
    hidden: tuple[int, ...] = (32, 32, 32)
    """Units of each hidden layer."""
    activation: str = "sigmoid"
    """Activation of the hidden layers: sigmoid or tanh."""
    jolt: float = 0.5
    """Largest absolute noise on γ and β in the third scheme, drawn anew at every update."""
    rates: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0)
    """Learning rates tried."""
    updates: int = 1000
    """Parameter updates."""
    batch_size: int = 50
    """Examples per update."""
    seeds: int = 5
    """Independent runs of each scheme at each rate."""
    quick: bool = False
    """Run a small version: 200 updates of 2 seeds at two of the rates, in about 15 seconds."""

    @property
    def settings(self) -> Settings:
        """The settings that the parts share."""
        return Settings(*(getattr(self, name) for name in Settings._fields))


def run(config: Config) -> Results:
    """Trains with every scheme and saves the results.

    Raises:
      ExperimentError: if a setting or folder is invalid, or theory and measurement disagree.
    """
    if config.quick:
        config = dataclasses.replace(
            config, updates=min(config.updates, 200), seeds=min(config.seeds, 2), rates=config.rates[2:4]
        )
    _check(config)
    folder = Folder(config.out, config, outputs=[f"covariate_shift.{kind}" for kind in ("json", "npz", "png")])
    sets = with_validation(data.digits())
    updates = np.unique(np.linspace(0, config.updates - 1, MOMENTS).round().astype(int))
    results = Results(updates, {})
    moments = np.stack([updates, updates + 1], axis=1).ravel().tolist()
    settings = config.settings
    for name, measured in itertools.chain(
        *(trained(normalised, sets, moments, settings) for normalised in (False, True))
    ):
        print(name)
        results.measured[name] = measured
        folder.metric(scheme=name, **row(name, results, settings))
    found = verdict(results)
    folder.data(
        "covariate_shift", {**found._asdict(), "rows": {name: row(name, results, settings) for name in SCHEMES}}
    )
    folder.arrays("covariate_shift", arrays_of(results))
    folder.picture("covariate_shift", plot(results, settings))
    print(table(results, settings))
    print(f"picture and data: {folder.path} (covariate_shift.png, .npz and .json, metrics.jsonl, config.json)")
    if not found.agrees:
        raise ExperimentError(
            f"law and measurement disagree: normalised units moved by {found.largest_deviation:.1e} standard "
            f"deviations more or less than γ and β, where {ALLOWED:g} are allowed"
        )
    return results


def _check(config: Config) -> None:
    if config.activation not in ACTIVATIONS:
        raise ExperimentError(f"unknown activation {config.activation}; there are {', '.join(ACTIVATIONS)}")
    at_least(config, updates=2, batch_size=2, seeds=1, hidden=1)
    positive(config, "rates")
    if not 0 <= config.jolt < np.inf:
        raise ExperimentError(f"--jolt must be a finite number of at least 0, got {config.jolt}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.covariate_shift")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
