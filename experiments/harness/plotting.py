"""The style of all figures: readable, and distinguishable without colour vision."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

# Okabe & Ito's palette without yellow (too pale on white); dashes and markers distinguish the curves as well.
_COLOURS = ("#000000", "#E69F00", "#0072B2", "#D55E00", "#56B4E9", "#CC79A7", "#009E73")
_DASHES = ("-", "--", "-", "-", "--", "--", "-.")
_MARKERS = "osD^Xv*"


def style(index: int) -> Mapping[str, Any]:
    """Colour, dashes and marker of the index-th curve; markers are staggered so that coinciding curves stay visible."""
    return {
        "color": _COLOURS[index % len(_COLOURS)],
        "linestyle": _DASHES[index % len(_DASHES)],
        "linewidth": 1.8,
        "marker": _MARKERS[index % len(_MARKERS)],
        "markersize": 6,
        "markevery": (index % len(_MARKERS), len(_MARKERS)),
        "zorder": 2 + index / 100,
    }


def figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """A figure of panels, `size` in inches, laid out so that nothing overlaps."""
    canvas = Figure(figsize=size, layout="constrained")  # without pyplot, which would keep the figure in memory
    axes = canvas.subplots(rows, columns)
    for panel in np.ravel(axes):
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25)
    return canvas, axes


LINE = 3
"""Fewest points that may be joined by a line: any two lie on one, which would look like a law."""


def joined(x: Any, look: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the look of a line through points at x; of markers alone where there are fewer than three.

    A look without a marker, such as that of a law, gets a dash for each point.
    """
    if np.size(x) >= LINE:
        return dict(look)
    mark = {} if look.get("marker") else {"marker": "_", "markersize": 22}
    return {**look, "linestyle": "none", "markevery": None, **mark}


def band(axes: Any, x: np.ndarray, values: np.ndarray, look: Mapping[str, Any], label: str) -> None:
    """Plots the mean over the last axis (seeds) against x, with one standard error as a band.

    Fewer than three points are markers with error bars.
    """
    mean = values.mean(axis=-1)
    error = values.std(axis=-1, ddof=1) / values.shape[-1] ** 0.5 if values.shape[-1] > 1 else None
    if np.size(x) < LINE:
        axes.errorbar(x, mean, error, elinewidth=1.2, label=label, **joined(x, look))
        return
    axes.plot(x, mean, label=label, **look)
    if error is not None:
        axes.fill_between(x, mean - error, mean + error, color=look["color"], alpha=0.2, linewidth=0)
