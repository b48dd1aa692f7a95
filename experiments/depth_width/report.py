"""Shows depth against width, as a table and a figure."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.depth_width.training import Stopped
from experiments.harness.results import with_error
from nl_jax._core.numerics import mean_and_error


def table(found: Sequence[Stopped]) -> str:
    """Returns the results as text, one row per network; ± is one standard error over seeds."""
    lines = [
        f"{'':10}{'hidden layers':>15}{'parameters':>12}{'rate':>6}{'updates':>18}{'training loss':>18}"
        f"{'test loss':>18}{'test error %':>15}"
    ]
    for one in found:
        lines.append(
            f"{one.task:10}{f'{one.shape.depth} × {one.shape.width}':>15}{one.shape.parameters:>12,}{one.rate:>6g}"
            f"{with_error(one.updates, 0):>18}{with_error(one.train_loss, 4):>18}{with_error(one.test_loss, 4):>18}"
            f"{with_error(100 * one.test_error, 2):>15}"
        )
    lines.append("rate: by validation, and stopped where the validation loss is least, after so many updates.")
    return "\n".join(lines)


def plot(found: Sequence[Stopped]) -> Any:
    """Plots test errors and updates against the number of hidden layers, one column per task."""
    from experiments.harness.plotting import band, figure, style

    tasks, budgets = (list(dict.fromkeys(values)) for values in zip(*((o.task, o.budget) for o in found), strict=True))
    canvas, axes = figure(2, len(tasks), size=(6 * len(tasks), 8.5))
    for column, task in zip(np.reshape(axes, (2, len(tasks))).T, tasks, strict=True):
        for i, budget in enumerate(budgets):
            ours = [one for one in found if (one.task, one.budget) == (task, budget)]
            if not ours:
                continue
            depths = np.array([one.shape.depth for one in ours])
            look = {**style((0, 2, 3, 6)[i % 4]), "markevery": None}
            label = f"{budget:,} parameters"
            band(column[0], depths, np.array([100 * one.test_error for one in ours]), look, label)
            band(column[1], depths, np.array([one.updates for one in ours]), look, label)
            for one in ours:
                where = one.shape.depth, mean_and_error(100 * one.test_error)[0]
                column[0].annotate(f"{one.shape.width}", where, xytext=(6, 4), textcoords="offset points", fontsize=8)
        column[0].set(ylabel="test error (%)", title=f"{task} (numbers: width)")
        column[1].set(ylabel="updates to the least validation loss", yscale="log")
        for panel in column:
            panel.set(xlabel="hidden layers")
            panel.set_xticks(sorted({one.shape.depth for one in found}))
    canvas.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    canvas.suptitle("Depth against width at equal numbers of parameters")
    return canvas
