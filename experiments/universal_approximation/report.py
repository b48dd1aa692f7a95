"""Tabulates and draws fits and their errors."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.universal_approximation.fitting import TARGETS, TEST_POINTS, Fit, Target, fine_grid


def table(fits: Mapping[str, Mapping[int, Fit]]) -> str:
    """The errors as text, a row for each function and number of units."""
    lines = [
        f"{'function':13}{'M':>4}{'rms error':>12}{'sup error':>12}{'median run':>12}{'worst run':>12}{'max |v|':>10}"
    ]
    for name, found in fits.items():
        for M, fit in found.items():
            best = fit.best_index
            lines.append(
                f"{name:13}{M:>4}{fit.rms[best]:>12.1e}{fit.sup[best]:>12.1e}{np.median(fit.sup):>12.1e}"
                f"{fit.sup.max():>12.1e}{fit.largest_weight:>10.1e}"
            )
    lines += [
        "errors between the training points as well as on them, of the run that fits the training points best; median",
        "and worst: sup error over all runs.",
    ]
    return "\n".join(lines)


def plot(fits: Mapping[str, Mapping[int, Fit]]) -> Any:
    """Above, the functions and their fits. Below, the errors against M."""
    from experiments.harness.plotting import figure

    canvas, axes = figure(2, len(fits), size=(4 * len(fits), 7.8))
    upper, lower = np.reshape(axes, (2, len(fits)))
    curves: dict[str, Any] = {}
    errors: dict[str, Any] = {}
    for above, below, (name, found) in zip(upper, lower, fits.items(), strict=True):
        target = TARGETS[name]
        above.set_title(f"{name}: {target.formula}")
        curves |= (_curves if target.dimensions == 1 else _contours)(above, target, _shown(found))
        errors |= _errors(below, found)
    least = min(fit.rms.min() for found in fits.values() for fit in found.values())
    for below in lower:
        below.set(ylim=(least / 2, 2))
    upper[0].set_ylabel("g(x), G(x)")
    lower[0].set_ylabel("error on a fine grid")
    # A legend is filled column by column; this order puts curves in its first row and errors in its second.
    pairs = [pair for row in itertools.zip_longest(curves.items(), errors.items()) for pair in row if pair]
    names, drawn = zip(*pairs, strict=True)
    canvas.legend(drawn, names, loc="outside lower center", ncols=4, frameon=False)
    canvas.suptitle("One hidden layer of M sigmoid units, fitted to continuous functions on $[0, 1]^p$")
    return canvas


def _shown(found: Mapping[int, Fit]) -> dict[int, Fit]:
    """The fits to plot: few enough to tell apart, and coarse enough for visible errors."""
    return {M: fit for M, fit in found.items() if M in (1, 2, 4)} or dict(list(found.items())[-1:])


_TARGET = {"color": "black", "alpha": 0.25, "linewidth": 7}
_LOOKS = 1, 6, 0  # different from the styles of the errors


def _curves(axes: Any, target: Target, found: Mapping[int, Fit]) -> dict[str, Any]:
    """Plots g and G of one argument; returns the lines by legend entry."""
    from experiments.harness.plotting import style

    x = fine_grid(target)
    lines = {"g": axes.plot(x[:, 0], target.function(x), **_TARGET)[0]}
    for look, (M, fit) in zip(map(style, _LOOKS), found.items(), strict=False):
        (lines[f"G, M = {M}"],) = axes.plot(x[:, 0], fit.best, **{**look, "marker": None})
    axes.set(xlabel="x", xlim=(0, 1))
    return lines


def _contours(axes: Any, target: Target, found: Mapping[int, Fit]) -> dict[str, Any]:
    """Plots g and G of two arguments as contours; a legend cannot name these, so the result is empty."""
    from experiments.harness.plotting import style

    x = fine_grid(target)
    square = (TEST_POINTS[2], TEST_POINTS[2])
    x1, x2, g = (np.reshape(values, square) for values in (x[:, 0], x[:, 1], target.function(x)))
    levels = [-0.75, -0.5, -0.25, 0.25, 0.5, 0.75]
    axes.contour(x1, x2, g, levels, colors="black", alpha=0.25, linewidths=7, linestyles="-")
    for look, fit in zip(map(style, _LOOKS), found.values(), strict=False):
        axes.contour(x1, x2, fit.best.reshape(square), levels, colors=look["color"], linestyles=look["linestyle"])
    axes.set(xlabel="$x_1$", ylabel="$x_2$", aspect="equal")
    return {}


def _errors(axes: Any, found: Mapping[int, Fit]) -> dict[str, Any]:
    """Plots both errors against M; returns lines and bands by legend entry."""
    from experiments.harness.plotting import joined, style

    M, drawn = np.array(list(found)), {}
    for index, norm, label in ((3, "sup", "max |G − g|"), (2, "rms", "rms of G − g")):
        look = style(index)
        runs = np.stack([getattr(fit, norm) for fit in found.values()])
        best = [getattr(fit, norm)[fit.best_index] for fit in found.values()]
        (drawn[f"{label}, best run"],) = axes.plot(M, best, **joined(M, {**look, "markevery": 1}))
        drawn[f"{label}, all runs"] = axes.fill_between(
            M, runs.min(axis=1), runs.max(axis=1), color=look["color"], alpha=0.15, linewidth=0
        )
    axes.set(xscale="log", yscale="log", xlabel="hidden units M")
    axes.set_xticks(M, [str(m) for m in M])
    axes.minorticks_off()
    return drawn
