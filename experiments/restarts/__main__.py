"""Local minima of a single sigmoid unit, found from many initialisations and counted by theory (Auer et al. 1996).

python -m experiments.restarts --help
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import optax
import tyro

import nl_jax as nl
from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.results import Folder
from experiments.harness.settings import at_least
from experiments.restarts.report import ALLOWED, judge, plot, table
from experiments.restarts.theory import Settings
from experiments.restarts.training import Runs, train


@dataclass(frozen=True)
class Config:
    """Train one sigmoid unit of D inputs from many random weights and count where the runs end.

    Each axis has two examples that no weight fits both, so each weight has two minima of its own and the unit has 2^D.
    Gradient descent stays on the side of each barrier where it started and ends in the minimum there. Conjugate
    gradients, whose line searches couple the weights, find the same minima but no such law holds for them. Prints a
    table and writes config.json, restarts.json and restarts.png to --out.
    """

    out: Path = Path("results/restarts")
    """Folder for the results; files of an earlier run there are replaced."""
    inputs: int = 5
    """D, between 1 and 10."""
    restarts: int = 2000
    """Number of random initialisations."""
    spread: float = 1.0
    """Standard deviation of the initial weights."""
    steps: int = 10_000
    """Steps of gradient descent."""
    conjugate_steps: int = 100
    """Steps of conjugate gradients, each a line search."""
    quick: bool = False
    """A small version, 400 restarts, in about ten seconds."""

    @property
    def settings(self) -> Settings:
        """The settings that the parts share."""
        return Settings(*(getattr(self, name) for name in Settings._fields))


def run(config: Config) -> dict[str, Runs]:
    """Runs both optimizers from the same initialisations.

    Raises:
      ExperimentError: for an invalid setting or an unusable folder, or if runs do not end where theory predicts.
    """
    if config.quick:
        config = dataclasses.replace(config, restarts=min(config.restarts, 400))
    at_least(config, inputs=1, restarts=20, steps=1, conjugate_steps=1)
    if config.inputs > 10 or not 0 < config.spread < np.inf:
        raise ExperimentError("--inputs must be at most 10, and --spread a finite number above 0")
    folder = Folder(config.out, config, outputs=["restarts.json", "restarts.png"])
    runs = {}
    with jax.enable_x64(True):
        # The loss's second derivative is nowhere above 7; the objective is a mean over 2 D examples.
        descent = optax.sgd(2 * config.inputs * 0.1)
        runs["gradient descent"] = train(descent, config.steps, config.settings)
        runs["conjugate gradients"] = train(nl.optimizers.conjugate_gradient(), config.conjugate_steps, config.settings)
    judged = judge(runs, config.settings)
    folder.data("restarts", judged | {"runs": {name: found._asdict() for name, found in runs.items()}})
    picture = folder.picture("restarts", plot(runs, config.settings))
    print(table(runs, judged, config.settings))
    print(f"picture and data: {picture.parent} ({picture.name}, restarts.json, config.json)")
    if judged["astray"]:
        raise ExperimentError(f"{judged['astray']} runs of gradient descent ended at no minimum: take more --steps")
    if not judged["largest_deviation"] <= ALLOWED:
        raise ExperimentError(
            f"counts differ from theory by {judged['largest_deviation']:.1f} standard errors, more than {ALLOWED:g}"
        )
    return runs


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.restarts")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
