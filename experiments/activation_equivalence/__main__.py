"""Compares sigmoid networks with the equal tanh networks they convert to (seed 000), and how each learns.

python -m experiments.activation_equivalence --help
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import tyro

from experiments.activation_equivalence.measuring import Comparison, Descent, Settings, compare, descend
from experiments.activation_equivalence.report import APART, DRIFT, ROUNDINGS, plot, table
from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.results import Folder, Verdict
from experiments.harness.settings import at_least


@dataclass(frozen=True)
class Config:
    """Convert random sigmoid networks to tanh; compare outputs and gradients; then train both at the same rate.

    Outputs agree to rounding, and gradients agree by the chain rule. Learning differs, because steepest descent
    depends on the parameterisation of a function. Prints a table and writes config.json, activation_equivalence.json
    and activation_equivalence.png to --out.
    """

    out: Path = Path("results/activation_equivalence")
    """Folder for the results; replaces files of an earlier run."""
    depths: tuple[int, ...] = (1, 2, 3)
    """Numbers of hidden layers of the random networks; each layer has eight units."""
    networks: int = 200
    """Number of random networks of each depth."""
    scale: float = 3.0
    """Factor on the parameters of LeCun's initialisation, at which units are almost linear."""
    rate: float = 0.5
    """Learning rate of gradient descent."""
    steps: int = 3000
    """Number of gradient descent steps."""
    runs: int = 20
    """Number of initialisations for gradient descent."""
    quick: bool = False
    """Run a small version: 50 networks of one depth and 5 runs of 1000 steps, in under half a minute."""

    @property
    def settings(self) -> Settings:
        """The settings that the parts share."""
        return Settings(*(getattr(self, name) for name in Settings._fields))


def run(config: Config) -> tuple[dict[str, Comparison], Descent]:
    """Compares the networks, then trains them.

    Raises:
      ExperimentError: if a setting or folder is invalid, or the equivalence does not hold.
    """
    if config.quick:
        config = dataclasses.replace(
            config, depths=config.depths[:1], networks=min(config.networks, 50), runs=min(config.runs, 5),
            steps=min(config.steps, 1000),
        )  # fmt: skip
    at_least(config, depths=1, networks=1, runs=1, steps=1)
    if not (0 < config.scale < np.inf and 0 < config.rate < np.inf):
        raise ExperimentError("--scale and --rate must be finite numbers above 0")
    folder = Folder(config.out, config, outputs=["activation_equivalence.json", "activation_equivalence.png"])
    comparisons = {}
    for dtype in ("float32", "float64"):
        with jax.enable_x64(dtype == "float64"):
            comparisons[dtype] = compare(dtype, config.settings)
    with jax.enable_x64(True):
        descent = descend(config.settings)
    worst = float(max(max(np.max(c.outputs), np.max(c.gradients)) for c in comparisons.values()))
    verdict = Verdict(worst, ROUNDINGS, "roundings")
    judged = {"drift": descent.drift, "drift_allowed": DRIFT, "apart": descent.apart, "apart_at_least": APART}
    data = {dtype: comparison._asdict() for dtype, comparison in comparisons.items()}
    folder.data("activation_equivalence", {**verdict._asdict(), **judged, **data, "descent": descent._asdict()})
    picture = folder.picture("activation_equivalence", plot(comparisons, descent, config.settings))
    print(table(comparisons, descent))
    print(f"picture and data: {picture.parent} ({picture.name}, activation_equivalence.json, config.json)")
    if not (verdict.agrees and descent.drift <= DRIFT and descent.apart >= APART):
        found = f"roundings {worst:.2g}, drift {descent.drift:.2g}, apart {descent.apart:.2g}"
        raise ExperimentError(f"the networks are not as equal, or not as different, as they should be: {found}")
    return comparisons, descent


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.activation_equivalence")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
