"""Which rule trained the network? Posteriors over learning rules from noisy, partly observed changes of weights.

python -m experiments.identify --help
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import tyro
from tqdm.auto import tqdm

from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.hasty import hasty
from experiments.harness.results import Folder
from experiments.harness.settings import at_least
from experiments.identify.report import Cases, calibration, confusion, judge, plot, table
from experiments.identify.simulation import CANDIDATES, Settings, case


@dataclass(frozen=True)
class Config:
    """Train small networks, each by one of five rules drawn at random, and infer which rule it was.

    Weight changes are observed with noise. Some hidden units are not observed, nor any weight to or from them. The size
    of the learning relative to the noise is drawn at random, too. The parameters before each step, the examples, the
    noise of an observation and, for feedback alignment, the feedback weights are known. The posterior must be
    calibrated: of the cases given a probability, that fraction should be right. Prints the confusion matrix and writes
    config.json, metrics.jsonl, identify.json and identify.png to --out. Fails if probabilities are further off than
    chance allows.
    """

    out: Path = Path("results/identify")
    """Folder for the results; files of an earlier run there are replaced."""
    candidates: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME [NAME ...]")] = tuple(CANDIDATES)
    """Two or more rules; one of them trains each network. The default is all of them."""
    cases: int = 600
    """Number of networks, at least 50."""
    steps: int = 8
    """Observed updates per network."""
    unobserved: float = 0.4
    """Expected fraction of hidden units that are not observed."""
    strongest: float = 40.0
    """Largest size of the learning, over all steps and weights, relative to the noise of one observation; the size is
    uniform between 0 and this."""
    num_samples: int = 1000
    """Estimates that measure how random rules scatter; with 1 the scatter is ignored and random rules are missed."""
    noise_known: bool = True
    """Whether the noise of an observation is known; otherwise it is inferred as well."""
    at_once: int = 50
    """Networks simulated in parallel."""
    quick: bool = False
    """A small version: three rules, 150 networks of 4 steps and 300 estimates, in under half a minute."""

    @property
    def settings(self) -> Settings:
        """The settings that the parts share."""
        return Settings(*(getattr(self, name) for name in Settings._fields))


def run(config: Config) -> Cases:
    """Simulates and judges networks, saving as it goes.

    Raises:
      ExperimentError: for an invalid setting or an unusable folder, or if the probabilities are not calibrated.
    """
    if config.quick:
        config = dataclasses.replace(
            config,
            cases=min(config.cases, 150),
            steps=min(config.steps, 4),
            num_samples=min(config.num_samples, 300),
            candidates=tuple(dict.fromkeys(config.candidates[:1] + config.candidates[-2:])),
        )
    _check(config)
    folder = Folder(config.out, config, outputs=["identify.json", "identify.png"])
    judged = jax.jit(jax.vmap(lambda key: case(key, config.settings)))
    keys = jax.random.split(jax.random.key(0), config.cases)
    parts = []
    with hasty(config.quick):
        for start in tqdm(range(0, config.cases, config.at_once), unit="batch", leave=False):
            parts.append(jax.device_get(judged(keys[start : start + config.at_once])))
            for posterior, which, strength in zip(*parts[-1], strict=True):
                folder.metric(which=config.candidates[which], strength=strength, posterior=posterior)
    found = Cases(*(np.concatenate(values) for values in zip(*parts, strict=True)))
    verdict = judge(found)
    folder.data(
        "identify",
        {
            **verdict._asdict(), "names": config.candidates, "confusion": confusion(found),
            "calibration": [bin._asdict() for bin in calibration(found)],
        },
    )  # fmt: skip
    picture = folder.picture("identify", plot(found, config.settings))
    print(table(found, config.settings))
    print(f"picture and data: {picture.parent} ({picture.name}, .json, metrics.jsonl, config.json)")
    if not verdict.agrees:
        raise ExperimentError(
            f"probabilities are not calibrated: off by {verdict.largest_deviation:.1f} standard "
            f"errors, where chance allows {verdict.allowed:.1f}"
        )
    return found


def _check(config: Config) -> None:
    unknown = [name for name in config.candidates if name not in CANDIDATES]
    if unknown or len(set(config.candidates)) < max(2, len(config.candidates)):
        raise ExperimentError(f"--candidates must be two or more of {', '.join(CANDIDATES)}, got {config.candidates}")
    at_least(config, cases=50, steps=2, num_samples=1, at_once=1)
    if not 0 <= config.unobserved < 1:
        raise ExperimentError(f"--unobserved must be from 0 to below 1, got {config.unobserved}")
    if not config.strongest > 0:
        raise ExperimentError(f"--strongest must be above 0, got {config.strongest}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.identify")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
