"""Continuous functions fitted by one hidden layer of more and more sigmoid units (seed 001; Hornik 1991).

python -m experiments.universal_approximation --help
"""

import dataclasses
import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import tyro
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from experiments.harness.failure import exit_code
from experiments.harness.results import Folder
from experiments.harness.settings import at_least, positive, rising
from experiments.universal_approximation.fitting import TARGETS, Fit, fine_grid, fitted
from experiments.universal_approximation.report import plot, table


@dataclass(frozen=True)
class Config:
    """Fit G(x) = Σ v_m σ(Σ w_jm x_j), one hidden layer of M sigmoid units, to given functions on [0, 1]^p.

    Hidden units learn by backprop and Adam. At every update the read-out v is the least-squares solution for the
    current hidden units. Prints a table and writes config.json, metrics.jsonl, an array file for each function and
    universal_approximation.png to --out.
    """

    out: Path = Path("results/universal_approximation")
    """Folder for the results; files of an earlier run there are replaced."""
    units: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """M, one or more numbers of hidden units, rising."""
    restarts: int = 8
    """Random initialisations of each fit; the best is kept and the spread shown."""
    updates: int = 3000
    """Full-batch updates of each run."""
    learning_rate: float = 0.1
    """Adam's initial learning rate; it decays to zero along a cosine."""
    quick: bool = False
    """A small version, at most 16 units, 4 restarts and 500 updates, in under a minute."""


def run(config: Config) -> dict[str, dict[int, Fit]]:
    """Fits every function with every number of units in turn, saving as it goes.

    Raises:
      ExperimentError: for an invalid setting or an unusable folder, or if all runs diverge.
    """
    if config.quick:
        config = dataclasses.replace(
            config,
            units=tuple(M for M in config.units if M <= 16) or config.units[:1],
            restarts=min(config.restarts, 4),
            updates=min(config.updates, 500),
        )
    _check(config)
    outputs = ["universal_approximation.png", *(f"{name}.npz" for name in TARGETS)]
    folder = Folder(config.out, config, outputs)
    fits: dict[str, dict[int, Fit]] = {}
    # LAPACK threads inside JAX's threads are hundreds of times slower.
    with threadpool_limits(1), jax.enable_x64(True):
        try:
            for name, M in tqdm(list(itertools.product(TARGETS, config.units)), unit="fit"):
                fit = fitted(
                    TARGETS[name], M, restarts=config.restarts, updates=config.updates,
                    learning_rate=config.learning_rate,
                )  # fmt: skip
                fits.setdefault(name, {})[M] = fit
                figures = {field: value for field, value in fit._asdict().items() if field != "best"}
                folder.metric(target=name, units=M, **figures)
        finally:  # also after an error or Ctrl-C: the results so far are shown
            for name, found in fits.items():
                _save(folder, name, found)
            if fits:
                picture = folder.picture("universal_approximation", plot(fits))
                print(table(fits))
                print(f"picture and data: {picture.parent} ({picture.name}, metrics.jsonl, *.npz, config.json)")
    return fits


def _check(config: Config) -> None:
    rising(config, "units")
    at_least(config, restarts=1, updates=1)
    positive(config, "learning_rate")


def _save(folder: Folder, name: str, found: Mapping[int, Fit]) -> None:
    x = fine_grid(TARGETS[name])
    columns = {field: [getattr(fit, field) for fit in found.values()] for field in Fit._fields}
    folder.arrays(name, {"units": list(found), "x": x, "target": TARGETS[name].function(x), **columns})


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.universal_approximation")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
