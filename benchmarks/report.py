"""Shared parts of benchmarks: peers that may be missing, tables, a figure of ratios, and files."""

import importlib
import importlib.util
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter

from experiments.harness.plotting import figure
from experiments.harness.results import Folder
from nl_jax.evaluation.diagnostics.timing import Spread, interleaved

Timed = Mapping[str, Spread]
"""Ratios by name."""


def peer(name: str) -> Any:
    """The module of an optional peer; or None, with a printed message, if it is not installed."""
    if importlib.util.find_spec(name) is None:
        print(f"{name} is not installed: left out (pip install {name})")
        return None
    return importlib.import_module(name)


def timed(contestants: Mapping[str, Sequence[Callable[[], Any]]], rounds: int) -> dict[str, np.ndarray]:
    """Seconds of each contestant in each round, [rounds]; if it has several ways, the best way of that round."""
    ways = {(name, i): way for name, of in contestants.items() for i, way in enumerate(of)}
    seconds = interleaved({f"{name} {i}": way for (name, i), way in ways.items()}, rounds)
    return {name: np.min([seconds[f"{name} {i}"] for i in range(len(of))], axis=0) for name, of in contestants.items()}


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table with columns as wide as necessary; a row of one cell is a heading of any length."""
    columns = itertools.zip_longest(*(row for row in rows if len(row) > 1), fillvalue="")
    widths = [max(map(len, column)) for column in columns]

    def line(row: Sequence[str]) -> str:
        return "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip()

    return [line(row) if len(row) > 1 else row[0] for row in rows]


def ratios_figure(groups: Mapping[str, Timed], xlabel: str, title: str) -> Any:
    """Plots medians with quartiles, in rows under each group's heading (omitted if empty), and a line at 1."""
    rows: list[tuple[str, Spread | None]] = []
    for heading, ratios in groups.items():
        rows += [(heading, None)] if heading else []
        rows += list(ratios.items())
    points = [(row, value) for row, (_, value) in enumerate(rows) if value is not None]
    values = [value for _, value in points]
    medians = np.array([value.median for value in values])
    spread = np.abs(np.array([[value.low, value.high] for value in values]).T - medians)

    canvas, axes = figure(1, 1, size=(9, 1.4 + 0.3 * len(rows)))
    look: dict[str, Any] = {"fmt": "o", "color": "#0072B2", "ecolor": "#000000", "elinewidth": 1.5}
    axes.errorbar(medians, [row for row, _ in points], xerr=spread, **look)
    axes.axvline(1, color="#000000", linestyle="--", linewidth=1)
    for row, value in points:
        axes.annotate(
            f"{value.median:.2f}", (value.high, row), (6, 0), textcoords="offset points", va="center", **_ON_WHITE
        )
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    for tick, label, (_, of_row) in zip(axes.yaxis.get_major_ticks(), axes.get_yticklabels(), rows, strict=True):
        if of_row is None:
            label.set_fontweight("bold")
            tick.gridline.set_visible(False)
            tick.tick1line.set_visible(False)
    axes.margins(x=0.12)
    axes.set(xscale="log", xlabel=xlabel, ylim=(len(rows) - 0.5, -0.5))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    canvas.suptitle(title)  # of the figure: names are long, and the axes may be narrower than the title
    return canvas


_ON_WHITE: Mapping[str, Any] = {"bbox": {"facecolor": "white", "edgecolor": "none", "pad": 1}}  # hides the dashed line


def save(folder: Folder, name: str, results: Mapping[str, Any], canvas: Any) -> None:
    """Writes `name.json` and `name.png` and prints where they are."""
    folder.data(name, results)
    picture = folder.picture(name, canvas)
    print(f"data and picture: {folder.path} ({name}.json, config.json, {picture.name})")
