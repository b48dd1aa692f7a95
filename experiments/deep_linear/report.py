"""Tabulates and draws strengths and losses of every depth, beside their theory."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.deep_linear.measuring import MOMENTS, Course, Settings
from experiments.harness import extrapolation


def arrays_of(courses: Sequence[Course]) -> dict[str, np.ndarray]:
    """Returns the arrays of all courses; each name starts with the depth."""
    return {
        f"{course.depth} {name}": value
        for course in courses
        for name, value in {
            "time": course.time,
            "strengths": course.measured.raw,
            "limit": course.measured.values,
            "law": course.law,
            "loss": course.loss,
            "random": course.random,
        }.items()
    }


def table(courses: Sequence[Course], settings: Settings) -> str:
    """Returns the measurements as text, one row per depth."""
    lines = [
        f"{'':24}{'largest |u − law| at steps of':^44}",
        f"{'layers':>6}{'η':>10}{'end/τ':>8}{'η':>11}{'η/2':>11}{'η/4':>11}{'η → 0':>11}{'±':>10}{'off':>7}",
    ]
    for course in courses:
        errors = "".join(
            f"{error:>11.1e}" for error in (*course.errors, np.abs(course.measured.values - course.law).max())
        )
        lines.append(
            f"{course.depth:>6}{course.rates[0]:>10.1e}{course.time[-1]:>8.1f}{errors}"
            f"{np.abs(course.measured.correction).max():>10.1e}{course.deviation:>7.2f}"
        )
    return "\n".join(
        [
            *lines,
            f"the largest of {len(settings.strengths)} modes at {MOMENTS} moments; τ = 1/(2η) steps.",
            extrapolation.NOTE,
            f"largest deviation from the law: {max(course.deviation for course in courses):.2f} error bars",
        ]
    )


def plot(courses: Sequence[Course], settings: Settings) -> Any:
    """Plots strengths and losses of every depth against time with their theory, and the remaining differences."""
    from experiments.harness.plotting import figure, style

    canvas, axes = figure(2, len(courses) + 1, size=(4.2 * (len(courses) + 1), 7.4))
    law: dict[str, Any] = {"color": "black", "linewidth": 1.1, "zorder": 4}
    for (strengths, losses), course in zip(axes.T, courses, strict=False):
        for i, s in enumerate(settings.strengths):
            wide = {"color": style(1 + i)["color"], "linewidth": 5, "alpha": 0.55}
            strengths.plot(course.time, course.measured.raw[i], label=f"measured, s = {s:g}", **wide)
            strengths.plot(course.time, course.law[i], label=None if i else "law", **law)
        missing = np.sum((np.array(settings.strengths)[:, None] - course.law) ** 2, axis=0)
        losses.plot(course.time, course.random.T, color="grey", linewidth=0.6, alpha=0.6)
        losses.plot([], color="grey", label=f"from {settings.seeds} random starts as small, not judged")
        losses.plot(course.time, course.loss, label="from balanced weights", color="#0072B2", linewidth=5, alpha=0.55)
        losses.plot(course.time, missing, label=r"law, $\Sigma_\alpha (s_\alpha - u_\alpha)^2$", **law)
        strengths.set(title=f"{course.depth} layers")
        losses.set(xlabel="time $t/τ$")
    axes[0, 0].set(ylabel="strength $u$ of each mode")
    axes[1, 0].set(ylabel="loss $L$")

    by_rate, by_time = axes[:, -1]
    for i, course in enumerate(courses):
        look = {**style((0, 2, 3, 5)[i % 4]), "markevery": None}
        by_rate.plot(course.rates, course.errors, label=f"{course.depth} layers", **look)
        left = np.abs(course.measured.values - course.law).max(axis=0)
        bar = np.abs(course.measured.correction).max()
        fraction = course.time / course.time[-1]
        by_time.plot(fraction, left, **{**look, "marker": None})
        by_time.axhline(bar, **{**look, "marker": None, "linestyle": ":"})
    by_rate.set(xscale="log", yscale="log", xlabel="rate η", title="largest |u − law|: half the step, half the error")
    by_rate.xaxis.set_minor_formatter("")
    by_rate.legend(frameon=False)
    by_time.set(yscale="log", xlabel="fraction of the run", title="|u − law| at η → 0; dotted: its error bar")
    handles = [handle for axis in axes[:, 0] for handle in axis.get_legend_handles_labels()[0]]
    canvas.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    canvas.suptitle(
        f"Deep linear networks learn mode by mode: $u_0$ = {settings.start:g}, {settings.hidden} units a layer"
    )
    return canvas
