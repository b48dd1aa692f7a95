"""Draws learning curves, contractions and best rates on their theory."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.student_teacher.measuring import RULES, Measurement
from experiments.student_teacher.report import scaling


def plot(found: Sequence[Measurement], sigma: float) -> Any:
    """Above, each rule's learning curves. Below, contraction against rate, and best rates against N and M."""
    from experiments.harness.plotting import figure

    canvas, axes = figure(2, 3, size=(14, 9))
    outputs, inputs = (list(dict.fromkeys(getattr(one, size) for one in found)) for size in "MN")
    ends = (outputs[0], inputs[-1]), (outputs[-1], inputs[0])
    square = tuple(zip(outputs, inputs, strict=False))
    for panel in axes[0, 1:]:
        panel.sharex(axes[0, 0])
        panel.sharey(axes[0, 0])
    for panel, rule in zip(axes[0], RULES, strict=False):
        _curves(panel, [one for one in found if one.rule == rule and (one.M, one.N) in square + ends])
        panel.set_title(rule)
    axes[0, 0].set_ylabel("E‖Δ‖² / MN")
    ticks = [tick for tick in (1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01) if tick > axes[0, 0].get_ylim()[0]]
    axes[0, 0].set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes[0, 0].yaxis.minorticks_off()
    panel.legend(frameon=False, loc="lower left")
    _contractions(axes[1, 0], found)
    _best_rates(axes[1, 1], found, "N", "M")
    _best_rates(axes[1, 2], found, "M", "N")
    canvas.suptitle(
        "Linear student–teacher of M outputs and N inputs. Lines and dashes: theory; markers: measured, with one "
        f"standard error ({found[0].rates.size} runs, σ = {sigma:g})"
    )
    return canvas


def _curves(axes: Any, found: Sequence[Measurement]) -> None:
    from experiments.harness.plotting import style

    for index, one in enumerate(found):
        look = style(index)
        steps = np.unique(np.geomspace(1, one.steps[-1], 200).astype(int))
        axes.plot(steps, one.predicted(steps), color=look["color"], linewidth=1.2)
        error = one.errors.std(axis=1, ddof=1) / one.errors.shape[1] ** 0.5
        _dots(axes, look, one.steps, one.errors.mean(axis=1), error, label=f"M = {one.M}, N = {one.N}")
    axes.set(xlabel="steps t", xscale="log", yscale="log")


def _contractions(axes: Any, found: Sequence[Measurement]) -> None:
    """All M and N at once: in units of C, every rule has the same parabola."""
    from experiments.harness.plotting import style

    u = np.linspace(0, 2, 100)
    axes.plot(u, u**2 - 2 * u, color="black", linewidth=1.2, label="theory: $(ηC)^2 - 2ηC$")
    for index, rule in enumerate(RULES):
        mine = [one for one in found if one.rule == rule]
        scales = [one.recursion.contraction for one in mine]
        rates, values = (
            np.concatenate([getattr(one, name) * C for one, C in zip(mine, scales, strict=True)])
            for name in ("rates", "contraction")
        )
        bins = np.array_split(np.argsort(rates, kind="stable"), 10)
        error = [values[b].std(ddof=1) / len(b) ** 0.5 for b in bins]
        _dots(axes, style(index), [rates[b].mean() for b in bins], [values[b].mean() for b in bins], error, label=rule)
    axes.set(xlabel="rate η times C", ylabel="(E‖Δ′‖²/‖Δ‖² − 1) times C", title="contraction per step, all M and N")
    axes.legend(frameon=False, loc="upper center")


def _best_rates(axes: Any, found: Sequence[Measurement], along: str, at: str) -> None:
    from experiments.harness.plotting import LINE, joined, style

    least, most = (limit(getattr(one, at) for one in found) for limit in (min, max))
    index = "MN".index(along)
    for number, (rule, law) in enumerate(scaling(found).items()):
        look = style(number)
        exponent = f"{law.measured[index]:.3f} ± {law.error[index]:.3f}".replace("-", "−")
        sizes = {getattr(one, along) for one in found}
        label = f"{rule}: {along} to the {exponent}" if len(sizes) >= LINE else rule  # two sizes fit any exponent
        for value, fill in ((least, "none"), (most, "full")):
            mine = [one for one in found if one.rule == rule and getattr(one, at) == value]
            x = np.array([getattr(one, along) for one in mine])
            logs, errors = np.array([one.log_best_rate for one in mine]).T
            theory = joined(x, {"color": look["color"], "linewidth": 1.2})
            axes.plot(x, [one.recursion.best_rate for one in mine], **theory)
            shown = label if value == least else None
            _dots(axes, look, x, np.exp(logs), np.exp(logs) * errors, label=shown, fillstyle=fill)
    axes.set(xscale="log", yscale="log", xlabel=along, ylabel="best rate")
    axes.set(title=f"best rate against {along} ({at} = {least} open, {most} filled)")
    lowest, highest = axes.get_ylim()
    axes.set_ylim(lowest * (lowest / highest) ** 0.35, highest)  # room for the legend
    axes.set_xticks(x, [str(tick) for tick in x])
    axes.xaxis.minorticks_off()
    axes.legend(frameon=False, loc="lower left")


def _dots(axes: Any, look: Any, x: Any, y: Any, error: Any, *, label: str | None, fillstyle: str = "none") -> None:
    axes.errorbar(
        x, y, error, color=look["color"], marker=look["marker"], markersize=6, fillstyle=fillstyle, linestyle="none",
        label=label,
    )  # fmt: skip
