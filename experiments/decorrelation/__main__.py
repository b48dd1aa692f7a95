"""Tests whether decorrelated inputs bring node perturbation nearer to backprop (Dalm et al. 2023).

python -m experiments.decorrelation --help
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import tyro
from tqdm.auto import tqdm

from experiments.decorrelation import training as decorrelation_training
from experiments.decorrelation.training import METHODS, TASKS, Task, Trained, Trial
from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.finished import Finished
from experiments.harness.results import Folder, with_error
from experiments.harness.sweep import lowest
from nl_jax._core.numerics import mean_and_error

BACK = 1.5  # a run whose loss rises above this multiple of the target has not settled
CLEAR = 2.0  # least difference that counts, in standard errors


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


class Lesson(NamedTuple):
    """One method on one task, with or without decorrelation."""

    task: str
    method: str
    decorrelated: bool

    def __str__(self) -> str:
        return f"{self.task} / {self.method}{' / decorrelated' * self.decorrelated}"


class Chosen(NamedTuple):
    """Results of the chosen trials, by seed.

    Attributes:
      trial: the rates of the trial that first reaches the target loss.
      updates: its updates until the test loss has settled at the target; infinite if it never does.
      evaluations: objective evaluations in these updates.
      loss: its test loss, [seeds, moments].
      correlation: its final root mean square correlation between a layer's inputs.
      last: the rates of the trial with the lowest final validation loss.
      error: that trial's final test error.
    """

    trial: Trial
    updates: np.ndarray
    evaluations: np.ndarray
    loss: np.ndarray
    correlation: np.ndarray
    last: Trial
    error: np.ndarray


Results = Mapping[Lesson, Chosen]


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
    for name, least in {
        "measured": 1,
        "updates": config.measured,
        "batch_size": 1,
        "trials": 4,
        "num_samples": 1,
        "seeds": 2,
    }.items():
        if getattr(config, name) < least:
            raise ExperimentError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(config, name)}")
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


def choose(found: Trained, tried: Sequence[Trial], task: Task, at: Sequence[int]) -> Chosen:
    """Chooses trials on validation data and reports them on test data."""
    soonest = _soonest(settled(task.target, found.validation, at), found.validation)
    best = lowest(found.validation[..., -1])
    updates = settled(task.target, found.test[soonest], at)
    of_soonest = updates, updates * found.evaluations, found.test[soonest], found.correlation[soonest, :, -1]
    return Chosen(tried[soonest], *of_soonest, tried[best], found.error[best, :, -1])


def _soonest(updates: np.ndarray, validation: np.ndarray) -> int:
    """Returns the trial with the fewest mean updates, [trials, seeds].

    If every trial has a seed that never settles, the trial with the lowest final validation loss is chosen.
    """
    mean = updates.mean(axis=1)
    return int(np.argmin(mean)) if np.isfinite(mean).any() else lowest(validation[..., -1])


def settled(target: float, loss: np.ndarray, at: Sequence[int]) -> np.ndarray:
    """Returns the updates after which losses [..., moments] have settled at `target`; infinite if they never do.

    A loss has settled if it has fallen to the target and never rises above 1.5 times the target again. The logarithm
    of the loss is interpolated linearly between moments.
    """
    moments = np.asarray(at, float)

    def one(values: np.ndarray) -> float:
        high = np.flatnonzero(~(values <= BACK * target))  # NaN counts as high
        begin = int(high[-1]) + 1 if len(high) else 0
        low = np.flatnonzero(values[begin:] <= target)
        if not len(low):
            return np.inf
        first = begin + int(low[0])
        if first == 0:
            return float(moments[0])
        before, after = values[first - 1], values[first]
        part = np.log(before / target) / np.log(before / after) if np.isfinite(before) else 1.0
        return float(moments[first - 1] + part * (moments[first] - moments[first - 1]))

    return np.apply_along_axis(one, -1, loss)


def findings(results: Results) -> list[dict[str, Any]]:
    """Returns the effect of decorrelation on every method, by itself and relative to backprop.

    Each finding says "yes" or "no" if the difference exceeds two standard errors over seeds, else "undecided".
    """
    said: list[dict[str, Any]] = []
    for lesson, with_it in results.items():
        plain = results.get(lesson._replace(decorrelated=False))
        if not lesson.decorrelated or plain is None:
            continue
        own = plain.updates, with_it.updates
        said.append(_compared(f"{lesson.task}: {lesson.method} takes fewer updates with decorrelation", *own))
        backprop = [results.get(Lesson(lesson.task, "backprop", flag)) for flag in (False, True)]
        if lesson.method == "backprop" or None in backprop:
            continue
        base, decorrelated = (of.updates for of in backprop if of is not None)
        for what, other in (("without it", base), ("with it", decorrelated)):
            relative = [_relative(plain.updates, base), _relative(with_it.updates, other)]
            statement = f"{lesson.task}: decorrelation brings {lesson.method} nearer to backprop {what}"
            said.append(_compared(statement, *relative))
    return said


def _relative(updates: np.ndarray, to: np.ndarray) -> np.ndarray:
    """Returns the ratio by seed; infinite where backprop itself does not reach the target."""
    there = np.isfinite(to)
    return np.where(there, updates / np.where(there, to, 1), np.inf)


def _compared(statement: str, without: np.ndarray, with_it: np.ndarray) -> dict[str, Any]:
    """Judges whether values by seed got smaller; a side that is infinite in any seed counts as the larger one."""
    digits = 0 if with_it.min() > 20 else 2
    figure = f"{with_error(without, digits)} without, {with_error(with_it, digits)} with"
    lost = [not np.isfinite(values).all() for values in (without, with_it)]
    if any(lost):
        says = "undecided" if all(lost) else "yes" if lost[0] else "no"
    else:
        mean, error = mean_and_error(without - with_it)
        says = "undecided" if abs(mean) <= CLEAR * error else "yes" if mean > 0 else "no"
    return {"statement": statement, "says": says, "figure": figure, "without": without, "with": with_it}


def table(results: Results, tasks: Mapping[str, Task]) -> str:
    """Returns the results as text; ± is one standard error over seeds."""
    lines: list[str] = []
    for name, task in tasks.items():
        kind = "wrong (%)" if task.classes else "unexplained (%)"
        lines.append(f"{name}: updates and evaluations to a test loss of {task.target}, correlation, lowest {kind}")
        for lesson, of in results.items():
            if lesson.task == name:
                rates = f"η {of.trial.weights:.3g}" + f", R {of.trial.decorrelation:g}" * lesson.decorrelated
                label = f"{lesson.method}{' decorrelated' * lesson.decorrelated}"
                lines.append(
                    f"  {label:22}{with_error(of.updates, 0):>14}{with_error(of.evaluations, 0):>18}"
                    f"{with_error(of.correlation, 3):>18}{with_error(100 * of.error, 1):>16}  {rates}"
                )
    return "\n".join(lines)


def plot(results: Results, tasks: Mapping[str, Task], at: Sequence[int]) -> Any:
    """Plots learning curves, and updates and evaluations to the target, for each task."""
    from matplotlib.ticker import LogLocator, NullFormatter

    from experiments.harness.plotting import band, figure, style

    canvas, panels = figure(3, len(tasks), size=(max(6.5, 4.4 * len(tasks) + 0.6), 10))
    panels = np.reshape(panels, (3, len(tasks)))
    names = list(dict.fromkeys(lesson.method for lesson in results))
    for column, (name, task) in enumerate(tasks.items()):
        curves, updates, evaluations = panels[:, column]
        for lesson, of in results.items():
            if lesson.task != name:
                continue
            index = names.index(lesson.method)
            look = {**style(index), "markevery": (index, 10), "linestyle": "-" if lesson.decorrelated else ":"}
            look["markerfacecolor"] = look["color"] if lesson.decorrelated else "white"
            band(curves, np.asarray(at), of.loss.T, look, f"{lesson.method}{', decorrelated' * lesson.decorrelated}")
            for axes, values in ((updates, of.updates), (evaluations, of.evaluations)):
                mean, error = mean_and_error(values)
                place = index + (0.15 if lesson.decorrelated else -0.15)
                point = {"color": look["color"], "marker": look["marker"], "markerfacecolor": look["markerfacecolor"]}
                if np.isfinite(mean):
                    axes.errorbar(place, mean, error if np.isfinite(error) else 0, **point, markersize=8, capsize=4)
                else:
                    axes.annotate("not\nreached", (place, 0.9), xycoords=("data", "axes fraction"), ha="center",
                                  fontsize=7, color=look["color"])  # fmt: skip
        curves.axhline(task.target, color="grey", linewidth=1)
        curves.set(xlabel="updates", title=name.replace("_", " "))
        means = np.stack([of.loss.mean(axis=0) for lesson, of in results.items() if lesson.task == name])
        curves.set_ylim(0.8 * min(np.nanmin(means), task.target), 1.2 * means[:, 0].max())
        curves.set_ylabel("test loss (cross-entropy, nats)" if task.classes else "test loss (half the squared error)")
        for axes in (curves, updates, evaluations):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        for axes, what in ((updates, "updates"), (evaluations, "evaluations")):
            axes.set(ylabel=f"{what} to a test loss of {task.target}", xlim=(-0.6, len(names) - 0.4))
            axes.set_xticks(range(len(names)), names)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=4 if len(tasks) > 1 else 2, frameon=False)
    told = "Filled, solid: with decorrelated inputs; open, dotted: without", "Bars and bands: one standard error"
    canvas.suptitle((". " if len(tasks) > 1 else ".\n").join(told))
    return canvas


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.decorrelation")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
