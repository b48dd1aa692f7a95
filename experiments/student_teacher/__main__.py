"""Learning curves and best rates of backprop, node and weight perturbation (seed 000; Werfel, Xie & Seung 2004).

python -m experiments.student_teacher --help
"""

import dataclasses
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from tqdm.auto import tqdm

from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.results import Folder
from experiments.harness.settings import positive
from experiments.student_teacher.figure import plot
from experiments.student_teacher.measuring import RULES, Measurement, measure
from experiments.student_teacher.report import deviations, judge, scaling, table


@dataclass(frozen=True)
class Config:
    """Teach linear networks of M outputs and N inputs by three rules, and compare the results with theory.

    Every step sees one new example. Learning curves are at the theory's best rate. The measured best rate comes from
    the contraction per step at many rates. Prints a table and writes config.json, metrics.jsonl, student_teacher.npz,
    student_teacher.json and student_teacher.png to --out. Fails if theory and measurement disagree by more
    than chance allows.
    """

    out: Path = Path("results/student_teacher")
    """Folder for the results; files of an earlier run there are replaced."""
    outputs: tuple[int, ...] = (4, 8, 16)
    """M, two or more numbers of outputs, rising."""
    inputs: tuple[int, ...] = (4, 8, 16)
    """N, two or more numbers of inputs, rising."""
    sigma: float = 0.1
    """Standard deviation of the noise; the teacher's weights are ±1."""
    runs: int = 300
    """Students per learning curve, at least 200; as many others, each with its own rate, measure the contraction."""
    time: float = 3.0
    """Length of the learning curves, in steps times best rate; the error above its floor falls e-fold per unit."""
    quick: bool = False
    """A small version, with the two smallest of --outputs and --inputs only, in under a minute."""


def run(config: Config) -> list[Measurement]:
    """Measures every rule at every M and N in turn, saving as it goes.

    Raises:
      ExperimentError: for an invalid setting or an unusable folder, or if theory and measurement disagree.
    """
    if config.quick:
        config = dataclasses.replace(config, outputs=config.outputs[:2], inputs=config.inputs[:2])
    _check(config)
    folder = Folder(config.out, config, outputs=[f"student_teacher.{kind}" for kind in ("npz", "json", "png")])
    found: list[Measurement] = []
    for name, M, N in tqdm(list(itertools.product(RULES, config.outputs, config.inputs)), unit="curve"):
        found.append(measure(name, M, N, sigma=config.sigma, runs=config.runs, time=config.time))
        value, error = found[-1].log_best_rate
        folder.metric(
            rule=name, M=M, N=N, steps=found[-1].steps, error=found[-1].errors.mean(axis=1),
            predicted=found[-1].predicted(found[-1].steps), curve_deviations=found[-1].curve_deviations,
            best_rate=np.exp(value), log_error=error, predicted_best_rate=found[-1].recursion.best_rate,
            rate_deviation=found[-1].rate_deviation,
        )  # fmt: skip
    exponents, verdict = scaling(found), judge(found)
    arrays = ("rule", "M", "N", "steps", "errors", "rates", "contraction")
    folder.arrays("student_teacher", {field: [getattr(one, field) for one in found] for field in arrays})
    folder.data(
        "student_teacher",
        {
            **verdict._asdict(),
            "compared": len(deviations(found)),
            "exponents": {rule: law._asdict() for rule, law in exponents.items()},
        },
    )
    picture = folder.picture("student_teacher", plot(found, config.sigma))
    print(table(found))
    print(f"picture and data: {picture.parent} ({picture.name}, .json, .npz, metrics.jsonl, config.json)")
    verdict.insist("theory")
    return found


def _check(config: Config) -> None:
    for name in ("outputs", "inputs"):
        values = getattr(config, name)
        if len(values) < 2 or min(values) < 1 or sorted(set(values)) != list(values):
            raise ExperimentError(f"--{name} must be two or more rising numbers of at least 1, got {values}")
    positive(config, "sigma", "time")
    if config.runs < 200:
        raise ExperimentError(f"--runs must be at least 200, so that means are nearly Gaussian; got {config.runs}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.student_teacher")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
