"""Principal components of digits by Hebbian rules: Hebb's diverges, Oja's and Sanger's converge (seed 000).

python -m experiments.hebbian_pca --help
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import tyro
from tqdm.auto import tqdm

from experiments.harness import extrapolation
from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.results import Folder
from experiments.hebbian_pca.learning import Digits, Settings, hebb, oja, sanger
from experiments.hebbian_pca.report import Found, arrays_of, plot, table


@dataclass(frozen=True)
class Config:
    """Teach linear units the digits without labels, by three local rules in full-batch steps, from random weights.

    Hebb's and Oja's flows are known in closed form. Runs with steps of η, η/2 and η/4 are extrapolated to η → 0 and
    compared with them. Sanger's units must converge to the eigenvectors of the covariance, in order. Exits with 1 if
    one of the rules disagrees with its theory. Prints a table and writes config.json, metrics.jsonl, hebbian_pca.json,
    hebbian_pca.npz and hebbian_pca.png to --out.
    """

    out: Path = Path("results/hebbian_pca")
    """Folder for the results; files of an earlier run there are replaced."""
    components: int = 5
    """Number of eigenvectors along which Hebb's and Oja's weights are measured."""
    units: int = 4
    """Units of Sanger's rule."""
    start: float = 0.1
    """Initial norm of each unit's weights."""
    steps: int = 5
    """Steps of the largest size η between two of the 200 measurements; Sanger's rule may take more."""
    quick: bool = False
    """A small version, at most 2 steps, in a few seconds."""

    @property
    def settings(self) -> Settings:
        """The settings that the parts share."""
        return Settings(*(getattr(self, name) for name in Settings._fields))


def run(config: Config) -> Found:
    """Trains by each rule in turn, saving as it goes; returns the results.

    Raises:
      ExperimentError: for an invalid setting or an unusable folder, or if theory and measurement disagree.
    """
    if config.quick:
        config = dataclasses.replace(config, steps=min(config.steps, 2))
    for name, least, most in (("components", 2, 20), ("units", 1, 8), ("steps", 1, 10**6)):
        if not least <= getattr(config, name) <= most:
            raise ExperimentError(f"--{name} must be from {least} to {most}, got {getattr(config, name)}")
    if not 0 < config.start < 1:
        raise ExperimentError(f"--start must be above 0 and below 1, got {config.start}")
    folder = Folder(config.out, config, outputs=["hebbian_pca.json", "hebbian_pca.npz", "hebbian_pca.png"])
    digits = Digits()
    measured: dict[str, Any] = {}
    with jax.enable_x64(True):
        for rule, measure in tqdm({"hebb": hebb, "oja": oja, "sanger": sanger}.items(), unit="rule"):
            measured[rule] = measure(digits, config.settings)
            folder.metric(rule=rule, deviation=measured[rule].deviation)
    found = Found(**measured)
    deviations = {rule: result.deviation for rule, result in found._asdict().items()}
    folder.arrays("hebbian_pca", arrays_of(found))
    folder.data(
        "hebbian_pca",
        {
            **extrapolation.verdict(deviations)._asdict(),
            "deviations": deviations,
            "hebb_growth": found.hebb.slopes,
            "eigenvalues": digits.values,
        },
    )
    picture = folder.picture("hebbian_pca", plot(found, digits))
    print(table(found, digits))
    print(f"picture and data: {picture.parent} ({picture.name}, hebbian_pca.npz, metrics.jsonl, config.json)")
    extrapolation.judge(deviations)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.hebbian_pca")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
