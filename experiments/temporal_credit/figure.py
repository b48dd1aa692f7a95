"""Draws what each rule reached and costs, and its learning curves."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.harness.temporal_networks import NETWORKS
from experiments.harness.temporal_tasks import Task
from experiments.temporal_credit.report import BACKPROP, RTRL, Facts, Lesson, Results, rows_of, scale_of, standard_error

ERRORS = {"adding": "squared error", "delayed_xor": "wrong answers (%)", "mnist_1d": "wrong answers (%)"}


def plot(results: Results, facts: Facts, tasks: Mapping[str, Task]) -> Any:
    """Rules from top to bottom: test errors on each task, evaluations, memory at two lengths, the audit's findings."""
    from matplotlib.ticker import LogLocator, NullFormatter

    from experiments.harness.plotting import figure, style

    rows = rows_of(results)
    canvas, panels = figure(1, len(tasks) + 2, size=(4.5 + 2.7 * (len(tasks) + 2), 1.9 + 0.36 * len(rows)))
    looks = {network: style(index) for network, index in zip(NETWORKS, (2, 3, 6), strict=True)}
    places = {key: row for row, key in enumerate(rows)}
    point: dict[str, Any] = {"linestyle": "none", "markersize": 7}
    for name, axes in zip(tasks, panels, strict=False):
        for (network, rule), by_task in rows.items():
            if name not in by_task:
                continue
            values = scale_of(name) * by_task[name].test[by_task[name].best]
            if np.isfinite(values).all():
                axes.errorbar(
                    values.mean(), places[network, rule], xerr=standard_error(values), capsize=3, **point,
                    color=looks[network]["color"], marker=looks[network]["marker"],
                )  # fmt: skip
        axes.axvline(scale_of(name) * tasks[name].chance, color="grey", linestyle=":", linewidth=1.4, label="chance")
        axes.set(xlabel=f"test: {ERRORS[name]}", title=f"{name.replace('_', ' ')}, T = {tasks[name].steps}")
        axes.set_xlim(-0.05 * scale_of(name) * tasks[name].chance, 1.3 * scale_of(name) * tasks[name].chance)
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
    evaluations.set(xscale="log", xlabel="evaluations", title="cost of an update")
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
