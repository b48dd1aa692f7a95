"""Test error of the linear neuron across the peak at N = D, measured and in theory (seed 000, linear models).

python -m experiments.linear_neuron --help
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from tqdm.auto import tqdm

from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.results import Folder
from experiments.harness.settings import at_least, rising
from experiments.linear_neuron.measuring import Point, Settings, measure
from experiments.linear_neuron.report import ALLOWED, judged, plot, table, verdict


@dataclass(frozen=True)
class Config:
    """Fit a linear neuron to more and more random examples: by minimum norm and by gradient descent from zero.

    Inputs and noise are Gaussian, so the expected test error is known. Exits with 1 if the measured one differs.
    Prints a table and writes config.json, metrics.jsonl, linear_neuron.json, linear_neuron.npz and linear_neuron.png
    to --out.
    """

    out: Path = Path("results/linear_neuron")
    """Folder for the results; files of an earlier run there are replaced."""
    inputs: int = 30
    """D, the neuron's inputs."""
    examples: tuple[int, ...] = (
        3, 6, 9, 12, 15, 18, 20, 22, 24, 26, 27, 28, 29, 30, 31, 32, 33, 34, 36, 38, 40, 45, 52, 60, 75, 90, 105, 120,
    )  # fmt: skip
    """N, one or more numbers of training examples, rising."""
    noise: float = 0.5
    """Standard deviation of the noise on the targets; the teacher's weights have norm 1."""
    datasets: int = 1000
    """Random datasets for each N."""
    steps: tuple[int, ...] = (30, 1000)
    """Numbers of gradient descent steps after which the error is measured."""
    quick: bool = False
    """A small version, 200 datasets for every third N and at most 300 steps, in under a minute."""

    @property
    def settings(self) -> Settings:
        """The settings that the parts share."""
        return Settings(*(getattr(self, name) for name in Settings._fields))


def run(config: Config) -> list[Point]:
    """Measures at every N in turn, saving as it goes.

    Raises:
      ExperimentError: for an invalid setting or an unusable folder, or if law and measurement disagree.
    """
    if config.quick:
        steps = tuple(sorted({min(steps, 300) for steps in config.steps}))
        config = dataclasses.replace(
            config, examples=config.examples[::3], datasets=min(config.datasets, 200), steps=steps
        )
    _check(config)
    folder = Folder(config.out, config, outputs=["linear_neuron.json", "linear_neuron.npz", "linear_neuron.png"])
    settings = config.settings
    points: list[Point] = []
    try:
        for N in tqdm(config.examples, unit="N"):
            points.append(measure(N, settings))
            means = {
                field.name: np.mean(value, axis=-1)
                for field in dataclasses.fields(Point)
                if np.ndim(value := getattr(points[-1], field.name))
            }
            folder.metric(examples=N, law=points[-1].law, off_closed_form=points[-1].off_closed_form, **means)
    finally:  # also after Ctrl-C: what was measured so far is shown
        if points:
            names = [field.name for field in dataclasses.fields(Point)]
            folder.arrays("linear_neuron", {name: [getattr(point, name) for point in points] for name in names})
            deviations = judged(points, settings)
            if deviations:
                folder.data("linear_neuron", verdict(deviations)._asdict() | {"deviations": deviations})
            picture = folder.picture("linear_neuron", plot(points, settings))
            print(table(points, settings))
            print(f"picture and data: {picture.parent} ({picture.name}, linear_neuron.npz, metrics.jsonl, config.json)")
    if deviations and not verdict(deviations).agrees:
        raise ExperimentError(
            f"law and measurement disagree: by {verdict(deviations).largest_deviation:.1f} standard errors, where "
            f"chance allows {ALLOWED:g}"
        )
    return points


def _check(config: Config) -> None:
    rising(config, "examples", "steps")
    at_least(config, inputs=1, datasets=2)
    if not 0 <= config.noise < float("inf"):
        raise ExperimentError(f"--noise must be a finite number of at least 0, got {config.noise}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.linear_neuron")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
