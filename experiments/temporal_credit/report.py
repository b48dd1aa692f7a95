"""Judges and tabulates what each rule reached, and at what cost."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.harness.temporal_networks import NETWORKS
from experiments.harness.temporal_tasks import Task
from experiments.temporal_credit.training import Trained

BACKPROP, RTRL = "backprop through time", "RTRL"
ROUNDING = 1e-9  # allowed relative difference of RTRL's losses in double precision
PAPER, WITHIN = 0.09, 0.02  # error of the GRU on MNIST-1D (Greydanus 2020: accuracy 91 %), and the allowed excess
LEARNED = 4.0  # standard errors below chance


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
        mean, error = of.test[of.best].mean(), standard_error(of.test[of.best])
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


def standard_error(values: np.ndarray) -> float:
    """Returns the standard error of the mean; NaN for one value."""
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else float("nan")


def scale_of(task: str) -> float:
    """Returns the factor by which errors are shown: wrong answers are in %."""
    return 1.0 if task == "adding" else 100.0


def rows_of(results: Results) -> dict[tuple[str, str], dict[str, Trained]]:
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
    lines = [head, f"{'chance':33}" + "".join(f"{scale_of(name) * task.chance:>18.3f}" for name, task in tasks.items())]
    for (network, rule), by_task in rows_of(results).items():
        line = f"{network:9}{rule:24}"
        for name in tasks:
            if name not in by_task:
                line += f"{'–':>18}"
                continue
            values = scale_of(name) * by_task[name].test[by_task[name].best]
            line += f"{values.mean():>9.3f} ±{standard_error(values):7.3f}"
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
