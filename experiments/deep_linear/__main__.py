"""Compares the learning curves of the modes of deep linear networks with theory (Saxe et al. 2014).

python -m experiments.deep_linear --help
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import tyro
from tqdm.auto import tqdm

from experiments.deep_linear.measuring import Course, Settings, measure
from experiments.deep_linear.report import arrays_of, plot, table
from experiments.harness import extrapolation
from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.results import Folder
from experiments.harness.settings import at_least


@dataclass(frozen=True)
class Config:
    """Train linear networks of several depths on a linear map, by gradient descent from small balanced weights.

    Every mode of the map follows its own sigmoid curve, known in closed form, and the loss falls in steps. Results at
    step sizes η, η/2 and η/4 are extrapolated to η → 0, where theory must hold; exits with 1 if it does not. Prints a
    table and writes config.json, metrics.jsonl, deep_linear.json, deep_linear.npz and deep_linear.png to --out.
    """

    out: Path = Path("results/deep_linear")
    """Folder for the results; replaces files of an earlier run."""
    depths: tuple[int, ...] = (2, 3, 4)
    """Numbers of weight layers L, each at least 2."""
    strengths: tuple[float, ...] = (4.0, 2.5, 1.6, 1.0)
    """Strengths s of the modes of the map to learn; there are as many outputs."""
    start: float = 1e-3
    """Initial strength u₀ of each mode."""
    inputs: int = 8
    """Number of inputs, at least the number of modes."""
    hidden: int = 16
    """Units of each hidden layer, at least the number of modes."""
    steps: int = 20
    """Steps of the largest size η between two of the 200 moments; at the last the weakest mode is learned to 98 %."""
    seeds: int = 20
    """Additional networks of each depth that start from small random weights; they are shown, not judged."""
    quick: bool = False
    """Run a small version: the first two depths, at most 10 steps and 5 seeds, in about 15 seconds."""

    @property
    def settings(self) -> Settings:
        """The settings that the parts share."""
        return Settings(*(getattr(self, name) for name in Settings._fields))


def run(config: Config) -> list[Course]:
    """Measures at every depth in turn, saving as it goes.

    Raises:
      ExperimentError: if a setting or folder is invalid, or theory and measurement disagree.
    """
    if config.quick:
        config = dataclasses.replace(
            config, depths=config.depths[:2], steps=min(config.steps, 10), seeds=min(config.seeds, 5)
        )
    _check(config)
    folder = Folder(config.out, config, outputs=["deep_linear.json", "deep_linear.npz", "deep_linear.png"])
    settings = config.settings
    courses: list[Course] = []
    try:
        with jax.enable_x64(True):
            for depth in tqdm(config.depths, unit="depth"):
                courses.append(measure(depth, settings))
                folder.metric(depth=depth, deviation=courses[-1].deviation, errors=courses[-1].errors)
    finally:  # also after Ctrl-C: show the measurements so far
        if courses:
            folder.arrays("deep_linear", arrays_of(courses))
            deviations = {str(course.depth): course.deviation for course in courses}
            folder.data("deep_linear", extrapolation.verdict(deviations)._asdict() | {"deviations": deviations})
            picture = folder.picture("deep_linear", plot(courses, settings))
            print(table(courses, settings))
            print(f"picture and data: {picture.parent} ({picture.name}, deep_linear.npz, metrics.jsonl, config.json)")
    extrapolation.judge({f"the law of {course.depth} layers": course.deviation for course in courses})
    return courses


def _check(config: Config) -> None:
    if not config.depths or min(config.depths) < 2 or len(set(config.depths)) < len(config.depths):
        raise ExperimentError(f"--depths must be different numbers of at least 2, got {config.depths}")
    if sorted(set(config.strengths), reverse=True) != list(config.strengths) or not config.strengths:
        raise ExperimentError(f"--strengths must be falling numbers, got {config.strengths}")
    if not np.isfinite(config.strengths[0]):
        raise ExperimentError(f"--strengths must be finite, got {config.strengths}")
    if not 0 < config.start < config.strengths[-1] / 2:
        raise ExperimentError(f"--start must be above 0 and below half the weakest strength, got {config.start}")
    modes = len(config.strengths)
    at_least(config, inputs=modes, hidden=modes, steps=1, seeds=1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.deep_linear")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
