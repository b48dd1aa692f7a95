"""Tests whether decorrelated inputs bring node perturbation nearer to backprop (Dalm et al. 2023).

python -m experiments.decorrelation --help
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from tqdm.auto import tqdm

from experiments.decorrelation import training as decorrelation_training
from experiments.decorrelation.findings import Chosen, Lesson, Results, choose, findings
from experiments.decorrelation.report import plot, table
from experiments.decorrelation.training import METHODS, TASKS, Task, Trained, Trial
from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.finished import Finished
from experiments.harness.results import Folder
from experiments.harness.settings import at_least


@dataclass(frozen=True)
class Config:
    """Train the same networks by backprop, NP, INP and ANP, with and without decorrelated inputs.

    NP is node perturbation, INP perturbs one layer at a time, ANP measures the change of activity. Every method gets
    the same number of trials: without decorrelation, that many learning rates of the weights; with it, half as many
    over the same range, each with two rates of R. Validation data choose the trial that reaches the target loss from
    all initialisations in the fewest updates on average, without rising above 1.5 times the target later; its results
    on test data are reported. The test error of the trial with the lowest final validation loss is reported too. The
    experiment reports whether the results support the claim; no outcome is an error. Prints a table and writes
    config.json, decorrelation.json and decorrelation.png to --out. --resume continues an interrupted run there.
    """

    out: Path = Path("results/decorrelation")
    """Folder for the results."""
    tasks: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME [NAME ...]")] = tuple(TASKS)
    """Tasks to run; the default is all of them."""
    methods: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME [NAME ...]")] = tuple(METHODS)
    """Methods to run; the default is all of them. The others are compared with backprop."""
    updates: int = 1000
    """Updates of each run, by stochastic gradient descent."""
    measured: int = 50
    """Number of measurements during a run, equally spaced in updates."""
    batch_size: int = 100
    """Examples per update."""
    trials: int = 12
    """Number of settings tried with every method, an even number of at least 4."""
    lowest: float = 0.003
    """The lowest learning rate of the weights."""
    highest: float = 3.0
    """The highest learning rate of the weights; the rates between are spaced evenly on a logarithmic scale."""
    decorrelation_rates: tuple[float, float] = (0.003, 0.01)
    """Learning rates of R."""
    kappa: float = 0.0
    """κ of `nl.decorrelation`: 0 only decorrelates, as in the papers; larger values also bring variances to 1."""
    num_samples: int = 1
    """Noisy passes per update, K; for INP, per layer."""
    seeds: int = 3
    """Initialisations, the same for every method and trial; all seeds and trials train at once."""
    resume: bool = False
    """Keep the runs that an interrupted run with the same settings finished in --out."""
    quick: bool = False
    """Run a small version: only the student-teacher task, by backprop and NP, in a few seconds."""


def run(config: Config) -> Results:
    """Trains every lesson that is not finished yet, saving as it goes.

    Raises:
      ExperimentError: if a setting or folder is invalid.
    """
    if config.quick:
        config = dataclasses.replace(
            config, tasks=("student_teacher",), methods=("backprop", "NP"), updates=min(config.updates, 120), trials=4,
            seeds=min(config.seeds, 2), measured=min(config.measured, 12), lowest=0.01, highest=0.03,
        )  # fmt: skip
    _check(config)
    folder = Folder(config.out, config, outputs=["decorrelation.json", "decorrelation.png"])
    store = Finished(config.out, config, resume=config.resume, but=("tasks", "methods"))
    tasks = {name: TASKS[name]() for name in config.tasks}
    every = [Lesson(task, m, flag) for task in config.tasks for m in config.methods for flag in (False, True)]
    results: dict[Lesson, Chosen] = {}
    try:
        with tqdm(every, unit="lesson") as bar:
            for lesson in bar:
                bar.set_postfix_str(str(lesson))
                found = _trained(lesson, tasks[lesson.task], config, store)
                results[lesson] = choose(
                    found, trials(config, lesson.decorrelated), tasks[lesson.task], moments(config)
                )
    finally:  # also after Ctrl-C: show the results so far
        if results:
            folder.picture("decorrelation", plot(results, tasks, moments(config)))
            print(table(results, tasks))
    said = findings(results)
    of = [
        {**lesson._asdict(), **chosen._asdict(), "trial": chosen.trial._asdict()} for lesson, chosen in results.items()
    ]
    folder.data("decorrelation", {"findings": said, "moments": moments(config), "lessons": of})
    print("\n".join(f"{one['statement']}: {one['says']} ({one['figure']})" for one in said))
    print(f"picture and data: {folder.path} (decorrelation.png, decorrelation.json, config.json)")
    return results


def _check(config: Config) -> None:
    for name, known in (("tasks", tuple(TASKS)), ("methods", tuple(METHODS))):
        chosen = getattr(config, name)
        if not chosen or set(chosen) - set(known) or len(set(chosen)) < len(chosen):
            raise ExperimentError(f"--{name} must be some of {', '.join(known)}, each once; got {', '.join(chosen)}")
    at_least(config, measured=1, updates=config.measured, batch_size=1, trials=4, num_samples=1, seeds=2)
    if config.trials % 2:
        raise ExperimentError(f"--trials must be even, half of it for each rate of R; got {config.trials}")
    if not 0 < config.lowest < config.highest < np.inf:
        raise ExperimentError(f"--lowest must be above 0 and below --highest; got {config.lowest}, {config.highest}")
    if not all(0 < rate < np.inf for rate in config.decorrelation_rates):
        raise ExperimentError(f"--decorrelation-rates must be numbers above 0, got {config.decorrelation_rates}")
    if not 0 <= config.kappa <= 1:
        raise ExperimentError(f"--kappa must be from 0 to 1, got {config.kappa}")


def moments(config: Config) -> list[int]:
    """Returns the numbers of updates after which a run is measured."""
    return [config.updates * i // config.measured for i in range(config.measured + 1)]


def trials(config: Config, decorrelated: bool) -> list[Trial]:
    """Returns the settings to try, as many with decorrelation as without."""
    count = config.trials // 2 if decorrelated else config.trials
    rates = [float(rate) for rate in np.geomspace(config.lowest, config.highest, count)]
    return [Trial(rate, own) for rate in rates for own in (config.decorrelation_rates if decorrelated else (0.0,))]


def _trained(lesson: Lesson, task: Task, config: Config, store: Finished) -> Trained:
    def compute() -> dict[str, Any]:
        return decorrelation_training.train(
            METHODS[lesson.method], task, trials(config, lesson.decorrelated), decorrelated=lesson.decorrelated,
            kappa=config.kappa, num_samples=config.num_samples, seeds=config.seeds, batch_size=config.batch_size,
            moments=moments(config),
        )._asdict()  # fmt: skip

    left = store(str(lesson), compute)
    arrays = {name: np.array(values, float) for name, values in left.items() if name != "evaluations"}
    return Trained(**arrays, evaluations=left["evaluations"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.decorrelation")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
