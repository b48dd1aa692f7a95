"""Credit through time: what each rule reaches on three tasks, what it costs, and what the audit says of its updates.

python -m experiments.temporal_credit --help
"""

import dataclasses
import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from tqdm.auto import tqdm

from experiments.harness import temporal_tasks
from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.finished import Finished
from experiments.harness.results import Folder, Verdict
from experiments.harness.settings import at_least, positive
from experiments.harness.temporal_networks import NETWORKS, OF_SPIKES, RULES
from experiments.harness.temporal_tasks import Task
from experiments.temporal_credit import training as temporal_training
from experiments.temporal_credit.figure import curves, plot
from experiments.temporal_credit.report import BACKPROP, RTRL, Lesson, Results, judge, table
from experiments.temporal_credit.training import Trained

TASKS = "adding", "delayed_xor", "mnist_1d"
LONGER = 4  # factor of sequence length, to measure the growth of memory


@dataclass(frozen=True)
class Config:
    """Train small recurrent networks on three temporal tasks by every rule, each tuned with the same number of trials.

    Every rule trains the same network from the same initial parameters at every learning rate; validation errors choose
    the rate. A GRU is trained by backprop as in its paper, and spiking networks by backprop and e-prop. Three things
    are judged: RTRL's losses equal those of backprop through time up to rounding, the GRU comes near its paper's
    figure, and spiking networks learn to classify. All other results are reported only. Prints a table and writes
    config.json, temporal_credit.json, temporal_credit.png and curves.png to --out. --resume continues an interrupted
    run.
    """

    out: Path = Path("results/temporal_credit")
    """Folder for the results."""
    tasks: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME [NAME ...]")] = TASKS
    """Tasks to train on; the default is all of them."""
    rules: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME [NAME ...]")] = tuple(RULES)
    """Rules to compare; the default is all of them. Judging RTRL takes backprop through time as well."""
    steps: int = 20
    """T, the sequence length of adding and delayed_xor; MNIST-1D has 40."""
    units: int = 12
    """Leaky units, the same for all rules."""
    spiking_units: int = 16
    """Adaptive integrate-and-fire units."""
    gru_units: tuple[int, ...] = (6, 8, 10)
    """Units of the GRU in each direction; validation errors choose among them. 0 leaves out the GRU and its judgement.
    The paper's has 6, with which one initialisation in three ends at 87 %."""
    updates: int = 800
    """Parameter updates per run."""
    gru_updates: int = 6000
    """Parameter updates per run of the GRU, in batches of 100, as in its paper."""
    batch_size: int = 16
    """Examples per update."""
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2)
    """Adam's learning rates to choose from, one trial each; each decays to zero along a cosine."""
    seeds: int = 3
    """Initialisations, the same for every rule and rate; all are trained at once with all rates."""
    resume: bool = False
    """Continue an interrupted run: reuse what a run with the same settings finished in --out."""
    quick: bool = False
    """A small version: delayed exclusive-or alone and no GRU, in about a minute and a half."""


def run(config: Config) -> Results:
    """Trains every lesson that is not finished yet, saving as it goes.

    Raises:
      ExperimentError: for an invalid setting or an unusable folder, or if a judged statement does not hold.
    """
    if config.quick:
        config = dataclasses.replace(
            config, tasks=("delayed_xor",), steps=10, units=6, spiking_units=8, gru_units=(0,),
            updates=min(config.updates, 200), seeds=min(config.seeds, 2), rates=config.rates[-2:],
        )  # fmt: skip
    _check(config)
    folder = Folder(config.out, config, outputs=["temporal_credit.json", "temporal_credit.png", "curves.png"])
    store = Finished(config.out, config, resume=config.resume, but=("tasks", "rules"))
    tasks = {name: _task(name, config) for name in config.tasks}
    results: dict[Lesson, Trained] = {}
    facts: dict[tuple[str, str], dict[str, Any]] = {}
    try:
        with tqdm(list(lessons(config)), unit="lesson") as bar:
            for lesson in bar:
                bar.set_postfix_str(str(lesson))
                results[lesson] = _taught(lesson, tasks[lesson.task], config, store)
                if lesson[1:] not in facts and lesson.network != "GRU":
                    facts[lesson[1:]] = _facts(lesson, tasks[lesson.task], config, store)
    finally:  # also after Ctrl-C: the results so far are shown
        if results:
            folder.picture("temporal_credit", plot(results, facts, tasks))
            folder.picture("curves", curves(results))
            print(table(results, facts, tasks))
    judged = judge(results, _exactness(tasks, config, store), tasks)
    verdict = Verdict(max((one["deviation"] for one in judged), default=0.0), 1.0, "times the allowed deviation")
    every = [{**lesson._asdict(), "chosen_rate": of.rates[of.best], **of._asdict()} for lesson, of in results.items()]
    rules = [{"network": network, "rule": rule, **of} for (network, rule), of in facts.items()]
    folder.data("temporal_credit", {**verdict._asdict(), "judged": judged, "rules": rules, "lessons": every})
    print("\n".join(f"{one['statement']}: {one['figure']}" for one in judged))
    print(f"pictures and data: {folder.path} (temporal_credit.png, curves.png, temporal_credit.json, config.json)")
    wrong = [f"{one['statement']} ({one['figure']})" for one in judged if not one["deviation"] <= 1]
    if wrong:
        raise ExperimentError(f"not confirmed: {'; '.join(wrong)}")
    return results


def _check(config: Config) -> None:
    for name, known in (("tasks", TASKS), ("rules", tuple(RULES))):
        chosen = getattr(config, name)
        unknown = [one for one in chosen if one not in known]
        if unknown or not chosen or len(set(chosen)) < len(chosen):
            raise ExperimentError(f"--{name} must be some of {', '.join(known)}, each once; got {', '.join(chosen)}")
    at_least(config, steps=5, units=1, spiking_units=1, updates=1, gru_updates=1, batch_size=1, seeds=2)
    if not config.gru_units or min(config.gru_units) < (0 if len(config.gru_units) == 1 else 1):
        raise ExperimentError(f"--gru-units must be numbers of at least 1, or 0 alone; got {config.gru_units}")
    positive(config, "rates")


def _task(name: str, config: Config) -> Task:
    if name == "mnist_1d":
        return temporal_tasks.mnist_1d(0)
    make = {"adding": temporal_tasks.adding, "delayed_xor": temporal_tasks.delayed_xor}[name]
    return make(0, steps=config.steps)


def lessons(config: Config) -> Iterator[Lesson]:
    """All runs to train, in the order of the tables."""
    for task in config.tasks:
        if task == "mnist_1d" and any(config.gru_units) and BACKPROP in config.rules:
            yield Lesson(task, "GRU", BACKPROP)
        yield from (Lesson(task, "leaky", rule) for rule in config.rules)
        yield from (Lesson(task, "spiking", rule) for rule in config.rules if rule in OF_SPIKES)


def _taught(lesson: Lesson, task: Task, config: Config, store: Finished) -> Trained:
    if lesson.network != "GRU":
        return _trained(lesson, task, config, store, _units(lesson.network, config))
    widths = [_trained(lesson, task, config, store, units) for units in config.gru_units]
    return min(widths, key=lambda of: np.nan_to_num(of.validation[of.best].mean(), nan=np.inf))


def _trained(lesson: Lesson, task: Task, config: Config, store: Finished, units: int) -> Trained:
    def compute() -> dict[str, Any]:
        is_gru = lesson.network == "GRU"
        found = temporal_training.train(
            RULES[lesson.rule], NETWORKS[lesson.network](task, units), task,
            rates=config.rates, seeds=config.seeds, updates=config.gru_updates if is_gru else config.updates,
            batch_size=100 if is_gru else config.batch_size,
        )  # fmt: skip
        return found._replace(units=units)._asdict()

    left = store(f"{lesson} / {units} units", compute)
    arrays = {name: np.array(left[name], float) for name in ("validation", "test", "updates", "loss")}
    return Trained(**{**left, **arrays})


def _units(network: str, config: Config) -> int:
    return {"leaky": config.units, "spiking": config.spiking_units}[network]


def _facts(lesson: Lesson, task: Task, config: Config, store: Finished) -> dict[str, Any]:
    make, net = RULES[lesson.rule], NETWORKS[lesson.network](task, _units(lesson.network, config))

    def compute() -> dict[str, Any]:
        lengths = task.steps, LONGER * task.steps
        bytes_ = [temporal_training.temporary_bytes(make, net, task, T, config.batch_size) for T in lengths]
        return {"steps": list(lengths), "bytes": bytes_}

    known = store(f"{lesson.task} / memory / {lesson.network} / {lesson.rule}", compute)
    return {**known, "audit": temporal_training.audited(make, net, task)}


def _exactness(tasks: Mapping[str, Task], config: Config, store: Finished) -> dict[str, float]:
    """Difference of RTRL from backprop through time by task, if both are among the rules."""
    if not {RTRL, BACKPROP} <= set(config.rules):
        return {}

    def of(task: Task) -> float:
        net = NETWORKS["leaky"](task, config.units)
        return temporal_training.difference_to_backprop(RULES[RTRL], net, task, rate=1e-2, batch_size=config.batch_size)

    return {name: store(f"{name} / exactness", functools.partial(of, task)) for name, task in tasks.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.temporal_credit")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
