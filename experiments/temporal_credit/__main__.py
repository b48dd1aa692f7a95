"""Credit through time: what each rule reaches on three tasks, what it costs, and what the audit says of its updates.

python -m experiments.temporal_credit --help
"""

import dataclasses
import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import tyro
from tqdm.auto import tqdm

from experiments.harness import temporal_tasks
from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.finished import Finished
from experiments.harness.results import Folder, Verdict
from experiments.harness.temporal_networks import NETWORKS, OF_SPIKES, RULES
from experiments.harness.temporal_tasks import Task
from experiments.temporal_credit import training as temporal_training
from experiments.temporal_credit.training import Trained

TASKS = "adding", "delayed_xor", "mnist_1d"
BACKPROP, RTRL = "backprop through time", "RTRL"
ROUNDING = 1e-9  # allowed relative difference of RTRL's losses in double precision
PAPER, WITHIN = 0.09, 0.02  # error of the GRU on MNIST-1D (Greydanus 2020: accuracy 91 %), and the allowed excess
LEARNED = 4.0  # standard errors below chance
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


class Lesson(NamedTuple):
    """One rule, the network that it trains and the task."""

    task: str
    network: str
    rule: str

    def __str__(self) -> str:
        return " / ".join(self)


Results = Mapping[Lesson, Trained]
Facts = Mapping[tuple[str, str], Mapping[str, Any]]
"""By network and rule: bytes at two lengths, and the audit's findings."""


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
    verdict = Verdict(max((one["deviation"] for one in judged), default=0.0), 1.0, "parts of what is allowed")
    every = [{**lesson._asdict(), "chosen_rate": of.rates[of.best], **of._asdict()} for lesson, of in results.items()]
    rules = [{"network": network, "rule": rule, **of} for (network, rule), of in facts.items()]
    folder.data("temporal_credit", {**verdict._asdict(), "judged": judged, "rules": rules, "lessons": every})
    print("\n".join(f"{one['statement']}: {one['figure']}" for one in judged))
    print(f"pictures and data: {folder.path} (temporal_credit.png, curves.png, temporal_credit.json, config.json)")
    wrong = [f"{one['statement']} ({one['figure']})" for one in judged if not one["deviation"] <= 1]
    if wrong:
        raise ExperimentError(f"not so: {'; '.join(wrong)}")
    return results


def _check(config: Config) -> None:
    for name, known in (("tasks", TASKS), ("rules", tuple(RULES))):
        chosen = getattr(config, name)
        unknown = [one for one in chosen if one not in known]
        if unknown or not chosen or len(set(chosen)) < len(chosen):
            raise ExperimentError(f"--{name} must be some of {', '.join(known)}, each once; got {', '.join(chosen)}")
    counts = {"steps": 5, "units": 1, "spiking_units": 1, "updates": 1, "gru_updates": 1,
              "batch_size": 1, "seeds": 2}  # fmt: skip
    for name, least in counts.items():
        if getattr(config, name) < least:
            raise ExperimentError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(config, name)}")
    if not config.gru_units or min(config.gru_units) < (0 if len(config.gru_units) == 1 else 1):
        raise ExperimentError(f"--gru-units must be numbers of at least 1, or 0 alone; got {config.gru_units}")
    if not config.rates or not all(0 < rate < np.inf for rate in config.rates):
        raise ExperimentError(f"--rates must be finite numbers above 0, got {config.rates}")


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


def judge(results: Results, exactness: Mapping[str, float], tasks: Mapping[str, Task]) -> list[dict[str, Any]]:
    """Each statement with its figure and its deviation; a deviation above 1 is a failure."""
    judged = []
    for name, difference in exactness.items():
        judged.append({
            "statement": f"{name}: RTRL's losses are those of backprop through time",
            "figure": f"relative difference {difference:.1e}, {ROUNDING:.0e} is rounding",
            "deviation": difference / ROUNDING if np.isfinite(difference) else np.inf,
        })  # fmt: skip
    for lesson, of in results.items():
        mean, error = of.test[of.best].mean(), _standard_error(of.test[of.best])
        if lesson.network == "GRU":
            judged.append({
                "statement": "the GRU comes within two points of its paper's 91 % on MNIST-1D",
                "figure": f"{100 * (1 - mean):.1f} ± {100 * error:.1f} %, {of.units} units each way",
                "deviation": max(0.0, (mean - PAPER) / WITHIN) if np.isfinite(mean) else np.inf,
            })  # fmt: skip
        task = tasks[lesson.task]
        if lesson.network == "spiking" and task.num_outputs > 1:  # regression from spikes needs more updates than these
            below = (task.chance - mean) / np.hypot(error, sampling_error(task))
            judged.append({
                "statement": f"{lesson.task}: a spiking network learns by {lesson.rule}",
                "figure": f"error {mean:.3f}, by chance {task.chance:.3f}: {below:.1f} standard errors below",
                "deviation": LEARNED / below if below > 0 else np.inf,
            })  # fmt: skip
    return judged


def sampling_error(task: Task) -> float:
    """Standard error of the chance level on a test set of this size."""
    targets = task.test.targets
    if task.num_outputs > 1:
        return float(np.sqrt(task.chance * (1 - task.chance) / len(targets)))
    return float(np.std((targets - task.train.targets.mean()) ** 2) / len(targets) ** 0.5)


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else float("nan")


ERRORS = {"adding": "squared error", "delayed_xor": "wrong answers (%)", "mnist_1d": "wrong answers (%)"}


def _scale(task: str) -> float:
    return 1.0 if task == "adding" else 100.0


def _rows(results: Results) -> dict[tuple[str, str], dict[str, Trained]]:
    """Results by network and rule, then by task."""
    rows: dict[tuple[str, str], dict[str, Trained]] = {}
    for network in NETWORKS:
        for lesson, of in results.items():
            if lesson.network == network:
                rows.setdefault(lesson[1:], {})[lesson.task] = of
    return rows


def table(results: Results, facts: Facts, tasks: Mapping[str, Task]) -> str:
    """Test errors and costs as text; ± is one standard error over seeds."""
    head = f"{'':33}" + "".join(f"{name:>18}" for name in tasks) + f"{'evaluations':>13}{'temporary kB':>16}  audit"
    lines = [head, f"{'chance':33}" + "".join(f"{_scale(name) * task.chance:>18.3f}" for name, task in tasks.items())]
    for (network, rule), by_task in _rows(results).items():
        line = f"{network:9}{rule:24}"
        for name in tasks:
            if name not in by_task:
                line += f"{'–':>18}"
                continue
            values = _scale(name) * by_task[name].test[by_task[name].best]
            line += f"{values.mean():>9.3f} ±{_standard_error(values):7.3f}"
        line += f"{next(iter(by_task.values())).evaluations:>13,}"
        known = facts.get((network, rule))
        if known:
            sizes = " → ".join(f"{size / 1e3:.0f}" for size in known["bytes"])
            audit = known["audit"]
            line += f"{sizes:>16}  {audit['when']}, memory {audit['memory']}; {audit['sees']}"
        lines.append(line)
    lines.append("test errors: of adding squared, of the others in %. evaluations: of the objective, one update.")
    for known in list(facts.values())[:1]:
        few, many = known["steps"]
        lines.append(f"temporary kB: of one compiled estimate at {few} and {many} steps.")
    return "\n".join(lines)


def plot(results: Results, facts: Facts, tasks: Mapping[str, Task]) -> Any:
    """Rules from top to bottom: test errors on each task, evaluations, memory at two lengths, the audit's findings."""
    from matplotlib.ticker import LogLocator, NullFormatter

    from experiments.harness.plotting import figure, style

    rows = _rows(results)
    canvas, panels = figure(1, len(tasks) + 2, size=(4.5 + 2.7 * (len(tasks) + 2), 1.9 + 0.36 * len(rows)))
    looks = {network: style(index) for network, index in zip(NETWORKS, (2, 3, 6), strict=True)}
    places = {key: row for row, key in enumerate(rows)}
    point: dict[str, Any] = {"linestyle": "none", "markersize": 7}
    for name, axes in zip(tasks, panels, strict=False):
        for (network, rule), by_task in rows.items():
            if name not in by_task:
                continue
            values = _scale(name) * by_task[name].test[by_task[name].best]
            if np.isfinite(values).all():
                axes.errorbar(
                    values.mean(), places[network, rule], xerr=_standard_error(values), capsize=3, **point,
                    color=looks[network]["color"], marker=looks[network]["marker"],
                )  # fmt: skip
        axes.axvline(_scale(name) * tasks[name].chance, color="grey", linestyle=":", linewidth=1.4, label="chance")
        axes.set(xlabel=f"test: {ERRORS[name]}", title=f"{name.replace('_', ' ')}, T = {tasks[name].steps}")
        axes.set_xlim(-0.05 * _scale(name) * tasks[name].chance, 1.3 * _scale(name) * tasks[name].chance)
    evaluations, memory = panels[-2:]
    for (network, rule), by_task in rows.items():
        row, look = places[network, rule], looks[network]
        spent = next(iter(by_task.values())).evaluations
        evaluations.plot(spent, row, color=look["color"], marker=look["marker"], **point)
        known = facts.get((network, rule))
        if known:
            sizes = np.array(known["bytes"]) / 1e3
            memory.plot(sizes, [row, row], color=look["color"], linewidth=1.6)
            for size, full in zip(sizes, (False, True), strict=True):
                fill = "full" if full else "none"
                memory.plot(size, row, color=look["color"], marker="o", fillstyle=fill, **point)
            said = f"{known['audit']['when']}, memory {known['audit']['memory']}"
            memory.annotate(
                said, (1.03, row), xycoords=("axes fraction", "data"), va="center", annotation_clip=False, fontsize=9
            )
    evaluations.set(xscale="log", xlabel="evaluations", title="an update's price")
    memory.set(xscale="log", xlabel="temporary kB", title="memory")
    for axes in (evaluations, memory):
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    if facts:
        few, many = next(iter(facts.values()))["steps"]
        memory.set_xlabel(f"temporary kB, T = {few} (open), {many}")
        memory.annotate("the audit says", (1.03, 1), xycoords="axes fraction", xytext=(0, 6),
                        textcoords="offset points", annotation_clip=False)  # fmt: skip
    for axes in panels:
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks([])
    panels[0].set_yticks(range(len(rows)), [f"{rule} ({network})" for network, rule in rows])
    for label, (network, _) in zip(panels[0].get_yticklabels(), rows, strict=True):
        label.set_color(looks[network]["color"])
    panels[0].legend(frameon=False, fontsize=9)
    canvas.suptitle(
        "Credit through time: rules tuned by an equal number of trials; bars: one standard error over seeds"
    )
    return canvas


SHOWN = (BACKPROP, "truncated backprop", RTRL, "e-prop, random", "UORO", "node perturbation", "three-factor")


def curves(results: Results) -> Any:
    """Training losses of the leaky network against updates, at each rule's chosen rate, a panel for each task."""
    from experiments.harness.plotting import band, figure, style

    names = list(dict.fromkeys(lesson.task for lesson in results if lesson.network == "leaky"))
    canvas, panels = figure(1, max(1, len(names)), size=(max(8, 5 * len(names)), 5))
    for name, axes in zip(names, np.ravel(panels), strict=True):
        for index, rule in enumerate(SHOWN):
            of = results.get(Lesson(name, "leaky", rule))
            if of is not None:
                # The two differ only by rounding, so both are shown at the same rate.
                chosen = results.get(Lesson(name, "leaky", BACKPROP), of).best if rule == RTRL else of.best
                look = {**style(index), "markevery": (index, 7)}
                band(axes, of.updates, of.loss[chosen].T, look, rule)
        scale = "linear" if name == "mnist_1d" else "log"
        axes.set(xlabel="updates", title=name.replace("_", " "), yscale=scale)
        axes.set_ylabel("half the squared error" if name == "adding" else "cross-entropy (nats)")
    handles: dict[str, Any] = {}
    for axes in np.ravel(panels):
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        canvas.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=4, frameon=False)
    canvas.suptitle(
        "Training loss of the leaky network at each rule's chosen rate (RTRL: backprop's); bands: one standard error"
    )
    return canvas


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.temporal_credit")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
