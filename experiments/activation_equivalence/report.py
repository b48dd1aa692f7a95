"""Tabulates and draws the differences between equal networks, and how each learns."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.activation_equivalence.measuring import Comparison, Descent, Settings

ROUNDINGS = 100.0  # allowed difference between sums of up to some hundred terms, in units of the dtype's resolution
DRIFT = 1e-9  # allowed relative distance of the parameters of two runs that are equal in exact arithmetic
APART = 0.01  # least relative difference of the final losses of two runs that are not equal

COMPARED = {
    "outputs": "outputs",
    "gradients": "gradients, by the chain rule",
    "unchained": "gradients, as they are",
}


def table(comparisons: Mapping[str, Comparison], descent: Descent) -> str:
    """Returns the results as text."""
    lines = [f"{'largest relative difference':38}" + "".join(f"{dtype:>12}" for dtype in comparisons)]
    for name, text in COMPARED.items():
        values = [np.max(getattr(c, name)) for c in comparisons.values()]
        lines.append(f"{text:38}" + "".join(f"{value:>8.3g} eps" for value in values))
    lines += [
        f"{descent.tanh.shape[1]:,} steps of descent by the chain rule: parameters drift apart by {descent.drift:.1e}",
        f"and at the same rate: final losses differ by {descent.apart:.0%} (median over runs); on average sigmoid "
        f"{descent.sigmoid[:, -1].mean():.4f}, tanh {descent.tanh[:, -1].mean():.4f}",
    ]
    return "\n".join(lines)


def plot(comparisons: Mapping[str, Comparison], descent: Descent, settings: Settings) -> Any:
    """Plots differences in units of rounding (left) and learning curves (right)."""
    from experiments.harness.plotting import figure, style

    canvas, (rounding, learning) = figure(1, 2, size=(13, 5))
    bins = np.geomspace(0.1, 1e17, 73)
    for index, (name, text) in zip((2, 6, 3), COMPARED.items(), strict=True):
        for dtype, comparison in comparisons.items():
            look = style(index)
            rounding.hist(
                np.maximum(getattr(comparison, name), bins[0]), bins, histtype="step", linewidth=1.6,
                color=look["color"], linestyle="-" if dtype == "float64" else "--", label=f"{text}, {dtype}",
            )  # fmt: skip
    rounding.axvline(ROUNDINGS, color="grey", linestyle=":", linewidth=1.4, label="allowed")
    rounding.set(
        xscale="log", xlabel="largest relative difference, in units of the resolution", ylabel="networks",
        title="the same function, the same gradient by the chain rule",
    )  # fmt: skip
    rounding.legend(frameon=False, fontsize=8, handlelength=1.4, loc="center", bbox_to_anchor=(0.67, 0.6))
    step = np.arange(descent.tanh.shape[1])
    curves = {"sigmoid": (2, descent.sigmoid), "tanh, the same rate": (3, descent.tanh)}
    for label, (index, losses) in curves.items():
        look = style(index)
        learning.plot(step, losses.mean(axis=0), color=look["color"], linewidth=1.8, label=label)
        learning.plot(step, losses.T, color=look["color"], linewidth=0.5, alpha=0.35)
    every = slice(0, None, max(1, len(step) // 25))
    look = style(0)
    learning.plot(
        step[every], descent.chained.mean(axis=0)[every], color=look["color"], marker="o", markersize=4.5,
        fillstyle="none", linestyle="none", label="tanh, trained with the sigmoid network's gradient",
    )  # fmt: skip
    learning.set(
        xlabel=f"steps at rate {settings.rate:g}", ylabel="loss", yscale="log",
        title="same initial weights, different units: each run and the mean",
    )  # fmt: skip
    learning.legend(frameon=False, fontsize=9)
    canvas.suptitle(
        f"Sigmoid networks and the tanh networks they convert to: depth {', '.join(map(str, settings.depths))}, "
        f"{settings.networks} networks each"
    )
    return canvas
