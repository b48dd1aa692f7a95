"""Compares backprop with its relatives from the same Lagrangian: the error of each estimate, and its cost.

python -m experiments.constrained --help
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import tyro
from tqdm.auto import tqdm

from experiments.constrained.family import MEMBERS, SOLVERS
from experiments.constrained.figure import plot, plot_members
from experiments.constrained.lesson import MOMENTS, Settings, lesson_of
from experiments.constrained.measuring import along, descend, teach
from experiments.constrained.report import Results, arrays, table
from experiments.harness import data
from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.results import Folder, judge, verdict
from experiments.harness.settings import at_least

QUICK = ("backprop", "fixed_prediction", "primal_dual", "predictive_coding", "kolen_pollack")


@dataclass(frozen=True)
class Config:
    """Compare backprop and its relatives on digits, with one tanh network and half the squared error.

    Measures the error of predictive coding's estimate against its penalty μ, also in a linear network, where theory
    predicts it; the error of the iterative solvers' estimates after K iterations; what networks learn with each
    method, and with each μ; and the angle to the gradient of methods that need no weight transport. Exits with 1 if
    the exact members do not learn as backprop does, the error does not fall as 1/μ, the linear network deviates from
    theory, or a solver does not converge to the gradient. Prints a table and writes config.json, constrained.json,
    constrained.npz, constrained.png and members.png to --out.
    """

    out: Path = Path("results/constrained")
    """Folder for the results; replaces files of an earlier run."""
    members: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME [NAME ...]")] = tuple(MEMBERS)
    """Members of the family to train with; the default is all of them. Backprop is always included."""
    solvers: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME [NAME ...]")] = tuple(SOLVERS)
    """Iterative solvers to follow; the default is all of them."""
    hidden: tuple[int, ...] = (32, 32)
    """Units of each hidden layer."""
    penalties: tuple[float, ...] = (0.1, 1.0, 10.0, 100.0, 1e3, 1e4)
    """Penalties μ, in increasing order. The last two must be large: the slope of the error is judged between them."""
    iterations: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    """Numbers of iterations K, in increasing order; solvers are judged after the last."""
    updates: int = 600
    """Updates of each member, a multiple of 10."""
    batch_size: int = 50
    """Examples per update; errors of estimates are measured on the same number of examples."""
    learning_rate: float = 0.05
    """Learning rate of gradient descent."""
    decay: float = 0.02
    """Weight decay, multiplied by the learning rate; Kolen and Pollack's feedback needs it to learn."""
    seeds: int = 5
    """Independent networks, trained at once."""
    quick: bool = False
    """Run a small version: 5 members, 3 solvers, 100 updates and 2 seeds, in less than half a minute."""

    @property
    def settings(self) -> Settings:
        """The settings that the parts share."""
        return Settings(*(getattr(self, name) for name in Settings._fields))


def run(config: Config) -> Results:
    """Measures part by part, saving as it goes.

    Raises:
      ExperimentError: if a setting or folder is invalid, an iteration diverges, or a deviation exceeds its limit.
    """
    if config.quick:
        config = dataclasses.replace(
            config,
            members=tuple(name for name in config.members if name in QUICK),
            solvers=tuple(name for name in config.solvers if name in QUICK),
            updates=min(config.updates, 100),
            seeds=min(config.seeds, 2),
        )
    digits = data.digits()
    _check(config, len(digits.train.labels))
    pictures = ["constrained.png", "members.png"]
    folder = Folder(config.out, config, outputs=["constrained.json", "constrained.npz", *pictures])
    members = list(dict.fromkeys(("backprop", *config.members)))
    settings = config.settings
    results = Results()
    try:
        with jax.enable_x64(True), tqdm(total=1 + len(config.solvers) + len(members)) as progress:
            lesson = lesson_of(settings, digits)
            progress.set_description("along μ")
            results.along = along(lesson)
            progress.update()
            for name in config.solvers:
                progress.set_description(SOLVERS[name].label)
                results.descents[name] = descend(name, lesson)
                folder.metric(solver=name, **results.descents[name]._asdict())
                progress.update()
            for name in members:
                progress.set_description(MEMBERS[name].label)
                results.courses[name] = teach(name, lesson)
                folder.metric(member=name, **results.courses[name]._asdict())
                progress.update()
    except FloatingPointError as error:
        raise ExperimentError(str(error)) from error
    finally:  # also after Ctrl-C: show the measurements so far
        if results.along is not None:
            deviations = results.deviations(settings)
            folder.arrays("constrained", arrays(results))
            folder.data("constrained", verdict(deviations)._asdict() | {"deviations": deviations})
            folder.picture("constrained", plot(results, settings))
            folder.picture("members", plot_members(results, settings))
            print(table(results, settings))
            print(f"pictures and data: {folder.path} (*.png, constrained.npz and .json, metrics.jsonl, config.json)")
    judge(results.deviations(settings))
    return results


def _check(config: Config, examples: int) -> None:
    for setting, given, known in (("members", config.members, MEMBERS), ("solvers", config.solvers, SOLVERS)):
        unknown = [name for name in given if name not in known]
        if unknown:
            raise ExperimentError(f"unknown {setting[:-1]} {', '.join(unknown)}; there are {', '.join(known)}")
    for setting, numbers in (("penalties", config.penalties), ("iterations", config.iterations)):
        if len(numbers) < 2 or sorted(set(numbers)) != list(numbers) or numbers[0] <= 0:
            raise ExperimentError(f"--{setting} must be two or more rising numbers above 0, got {numbers}")
    at_least(config, hidden=1)
    if config.updates < MOMENTS or config.updates % MOMENTS:
        raise ExperimentError(f"--updates must be a multiple of {MOMENTS}, got {config.updates}")
    at_least(config, batch_size=1, seeds=1)
    if config.batch_size > examples:
        raise ExperimentError(f"--batch-size must be at most the {examples} training examples")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.constrained")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
