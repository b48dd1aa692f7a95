"""Tabulates and draws the curves of several estimators."""

from typing import Any

import numpy as np

from experiments.compare.training import ESTIMATORS, Curve
from nl_jax._core.numerics import mean_and_error


def table(curves: dict[str, Curve], target: float) -> str:
    """Returns the comparison as text, one row per estimator; ± is one standard error over seeds.

    Args:
      curves: by estimator, each measured twice or more.
      target: test accuracy; the table gives the evaluations until it is reached.
    """
    price = f"to {100 * target:g} %"
    head = f"{'estimator':25}{'test accuracy %':>15}{'updates':>9}{'evaluations':>13}{price:>9}{'seconds':>9}"
    lines = [head + f"{'cosine':>15}"]
    for name, curve in curves.items():
        accuracy, error = mean_and_error(100 * curve.test_accuracy[-1])
        reached = [e for e, a in zip(curve.evaluations, curve.test_accuracy, strict=True) if a.mean() >= target]
        cosine = f"{curve.cosine[0].mean():.3f} → {curve.cosine[-1].mean():.3f}"
        lines.append(
            f"{name:25}{accuracy:>8.2f} ± {error:4.2f}{curve.update[-1]:>9,}{curve.evaluations[-1]:>13,}"
            f"{f'{reached[0]:,}' if reached else 'never':>9}{curve.seconds:>9.1f}{cosine:>15}"
        )
    every = next(iter(curves.values())).update[1]
    lines += [
        "± one standard error over seeds. evaluations: forward passes of the batch per seed, a reverse sweep counted",
        f"as two; {price}: those spent when that accuracy was first seen, looking every {every} updates. seconds:",
        "all updates of all seeds, an update timed by itself. cosine: one estimate to the exact gradient, start → end.",
    ]
    if {"backprop", "lagrangian_backprop"} <= curves.keys():
        a, b = (np.asarray(curves[name].train_loss) for name in ("backprop", "lagrangian_backprop"))
        points = min(len(a), len(b))
        gap = np.max(np.abs(a[:points] - b[:points]))
        lines.append(f"largest difference between the loss curves of backprop and lagrangian_backprop: {gap:.1e}")
    return "\n".join(lines)


def plot(curves: dict[str, Curve], title: str) -> Any:
    """Plots loss against updates and against evaluations, and cosine to backprop against updates."""
    from experiments.harness.plotting import band, figure, style

    canvas, (by_update, by_cost, by_angle) = figure(1, 3, size=(13, 4.6))
    order = list(dict.fromkeys([*ESTIMATORS, *curves]))
    for name, curve in curves.items():
        look, label = style(order.index(name)), name.replace("_", " ")
        loss, update, cost = np.asarray(curve.train_loss), np.asarray(curve.update), np.asarray(curve.evaluations)
        band(by_update, update, loss, look, label)
        band(by_cost, cost[1:], loss[1:], look, label)  # the cost before the first update, 0, has no logarithm
        band(by_angle, update, np.asarray(curve.cosine), look, label)
    for axes in (by_update, by_cost):
        axes.set(yscale="log", ylabel="training loss (nats)")
    by_update.set(xlabel="updates", title="training loss")
    if by_cost.get_xlim()[1] > 20 * by_cost.get_xlim()[0]:
        by_cost.xaxis.set_minor_formatter("")  # labels at decades suffice, except on a shorter axis
    by_cost.set(xlabel="objective evaluations (forward passes)", xscale="log", title="the same against evaluations")
    by_angle.set(
        xlabel="updates", ylabel="cosine to the exact gradient", ylim=(0, 1.05), title="quality of one estimate"
    )
    handles, labels = by_update.get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    canvas.suptitle(f"{title}: the same network and images, the gradient estimated in different ways")
    return canvas
