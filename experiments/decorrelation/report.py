"""Tabulates and draws when each method's loss settles."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.decorrelation.findings import Results
from experiments.decorrelation.training import Task
from experiments.harness.results import with_error
from nl_jax._core.numerics import mean_and_error


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
