"""Draws the family's two figures: estimates against their cost, and what the members learn."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.constrained.family import GROUPS, MEMBERS, SOLVERS
from experiments.constrained.lesson import MOMENTS, Settings
from experiments.constrained.report import Results
from nl_jax._core.numerics import mean_and_error


def plot(results: Results, settings: Settings) -> Any:
    """Plots results against μ, errors after K iterations, and the residuals of one solver."""
    from experiments.harness.plotting import LINE, band, figure, joined, style

    canvas, ((cosines, errors, accuracies), (by_steps, by_cost, residuals)) = figure(2, 3, size=(15, 8.8))
    mu = np.array(settings.penalties)
    if results.along is not None:
        along = results.along
        band(cosines, mu, along.cosine, _dense(style(0)), "predictive coding")
        band(errors, mu, along.error, _dense(style(0)), "tanh network")
        band(errors, mu, along.linear_error, {**_dense(style(2)), "linestyle": "none"}, "linear network")
        theory = joined(mu, {"color": style(2)["color"]})
        errors.plot(mu, along.law.mean(axis=-1), label="its theory (Innocenti et al. 2024)", **theory)
        if len(mu) >= LINE:
            errors.plot(mu[-LINE:], along.error[-1].mean() * mu[-1] / mu[-LINE:] / 2, color="grey", label="slope −1")
        band(accuracies, mu, 100 * along.accuracy, _dense(style(0)), "predictive coding")
    if "backprop" in results.courses:
        exact, error = mean_and_error(100 * results.courses["backprop"].accuracy[-1])
        accuracies.axhline(exact, color=style(3)["color"], linestyle="--", label="backprop")
        accuracies.axhspan(exact - error, exact + error, color=style(3)["color"], alpha=0.15, linewidth=0)
    for axes in (cosines, errors, accuracies):
        axes.set(xscale="log", xlabel="penalty μ")
        axes.legend(frameon=False)
    cosines.set(ylabel="cosine to the gradient", title="predictive coding: the direction of the estimate")
    errors.set(yscale="log", ylabel="relative error", title="error falls as 1/μ")
    accuracies.set(ylabel="test accuracy (%)", title=f"after {settings.updates} updates")

    steps = np.array(settings.iterations)
    for name, descent in results.descents.items():
        look = _dense(style(list(SOLVERS).index(name)))
        shown = np.maximum(descent.error, 1e-14)  # smaller errors are rounding
        band(by_steps, steps, shown, look, SOLVERS[name].label)
        by_cost.plot(descent.evaluations.mean(axis=-1), shown.mean(axis=-1), **look)
    for axes, of in ((by_steps, "inner iterations K"), (by_cost, "objective evaluations")):
        axes.set(xscale="log", yscale="log", ylim=(1e-10, 2), xlabel=of, ylabel="relative error")
    by_steps.set(title="error of the estimate")
    by_cost.set(title="the same against evaluations")
    if results.descents:
        by_steps.legend(frameon=False, fontsize="small")
        followed = "primal_dual" if "primal_dual" in results.descents else next(iter(results.descents))
        descent = results.descents[followed]
        for i, layer in enumerate(descent.primal):
            look = {**_dense(style((2, 3, 6, 1)[i % 4])), "linestyle": "-"}
            # residuals are 0 in layers that credit has not reached yet: leave them out of the log plot
            primal, dual = (np.where(of > 1e-12, of, np.nan) for of in (descent.primal[layer], descent.dual[layer]))
            residuals.plot(steps, primal.mean(axis=-1), label=f"{layer}, primal", **look)
            dashed = {**look, "linestyle": "--", "markerfacecolor": "white"}
            residuals.plot(steps, dual.mean(axis=-1), label=f"{layer}, dual", **dashed)
        residuals.legend(frameon=False, ncols=2, fontsize="small")
        residuals.set(title=f"residuals by layer: {SOLVERS[followed].label}")
    residuals.set(xscale="log", yscale="log", xlabel="inner iterations K", ylabel="norm of ∂L/∂λ, ∂L/∂x")
    canvas.suptitle(f"One Lagrangian, many ways to its stationary point: {_network_name(settings)} on digits")
    return canvas


def plot_members(results: Results, settings: Settings) -> Any:
    """Plots the accuracies of all members, and the angles of the feedback methods, layer by layer."""
    from experiments.harness.plotting import band, figure, style

    layers = [f"hidden{l}" for l, _ in enumerate(settings.hidden, start=1)]
    canvas, panels = figure(1, 1 + len(layers), size=(6.5 + 4.2 * len(layers), 5.6))
    accuracies, *angles = panels
    row, ticks, headings = 0, {}, []
    for group, members in GROUPS.items():
        here = [name for name in members if name in results.courses]
        if here:
            ticks[row] = group
            headings.append(row)
            row += 1
        for name in here:
            mean, error = mean_and_error(100 * results.courses[name].accuracy[-1])
            accuracies.errorbar(
                [mean], [row], xerr=error if np.isfinite(error) else 0, capsize=3, fmt="o", color="#0072B2"
            )
            ticks[row] = MEMBERS[name].label
            row += 1
    if "backprop" in results.courses:
        accuracies.axvline(100 * results.courses["backprop"].accuracy[-1].mean(), color="#000000", linestyle="--")
    accuracies.set_yticks(list(ticks), list(ticks.values()))
    for tick, at in zip(accuracies.get_yticklabels(), ticks, strict=True):
        tick.set_fontweight("bold" if at in headings else "normal")
    accuracies.grid(visible=False, axis="y")
    accuracies.set(ylim=(row - 0.5, -0.5), xlabel="test accuracy (%)", title=f"after {settings.updates} updates")

    update = settings.updates // MOMENTS * np.arange(1, MOMENTS + 1)
    feedback = [name for name in GROUPS["feedback"] if name in results.courses]
    for layer, axes in zip(layers, angles, strict=True):
        for name in feedback:
            look = _dense(style(1 + list(GROUPS["feedback"]).index(name)))
            band(axes, update, results.courses[name].degrees[layer], look, MEMBERS[name].label)
        axes.axhline(90, color="grey", linewidth=1)
        axes.set(ylim=(0, 110), xlabel="updates", ylabel="degrees to the gradient", title=f"{layer}: angle to backprop")
    if feedback:
        canvas.legend(*angles[-1].get_legend_handles_labels(), loc="outside lower right", ncols=6, frameon=False)
    canvas.suptitle(f"What the family learns, and how its feedback aligns: {_network_name(settings)} on digits")
    return canvas


def _dense(look: Mapping[str, Any]) -> dict[str, Any]:
    return {**look, "markevery": None}


def _network_name(settings: Settings) -> str:
    return "-".join(map(str, (64, *settings.hidden, 10))) + " tanh"
