"""Draws the atlas's figure and writes its page: plain files that need no network and no server."""

import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.atlas.methods import METHODS
from experiments.atlas.tasks import TASKS
from experiments.harness.results import page_style
from nl_jax._core.numerics import mean_and_error

SEES = {
    "local": ("only the synapse's own neurons", "#009E73", "o"),
    "three-factor": ("its own neurons and the loss", "#0072B2", "s"),
    "others": ("other neurons or the target", "#E69F00", "^"),
    "weight transport": ("also other layers' weights", "#D55E00", "D"),
}
"""What an update may see, from least to most: label, colour and marker."""


_BESIDE = 1.12  # factor on the x axis between methods of equal cost


def sees(verdict: str) -> str:
    """Returns the key in `SEES` of an audit's verdict."""
    if verdict in ("local", "three-factor"):
        return verdict
    return "weight transport" if "weight transport" in verdict else "others"


def task_and_method(cell: str) -> tuple[str, str]:
    """Returns the names in "task/method"."""
    task, _, method = cell.partition("/")
    return task, method


def place(name: str, known: Iterable[str]) -> tuple[int, str]:
    """Returns a sorting key: names that are known come in their order, then all others."""
    order = [*known]
    return order.index(name) if name in order else len(order), name


def in_order(cells: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the cells by task, then by method, in the atlas's order; users' own come last."""

    def key(cell: str) -> tuple[tuple[int, str], ...]:
        task, method = task_and_method(cell)
        return place(task, TASKS), place(method, METHODS)

    return {cell: cells[cell] for cell in sorted(cells, key=key)}


def plot(cells: Mapping[str, Any]) -> Any:
    """Plots test error against evaluations, one panel for each task with measured cells; numbers name the methods.

    Methods of equal cost are drawn side by side, each slightly to the right of the previous one.
    """
    from matplotlib.ticker import EngFormatter, LogLocator

    from experiments.harness.plotting import figure

    cells = in_order(cells)
    methods = sorted({task_and_method(name)[1] for name in cells}, key=lambda name: place(name, METHODS))
    tasks = {task_and_method(name)[0]: cell["task"] for name, cell in cells.items() if cell["status"] == "measured"}
    columns = min(3, len(tasks))
    rows = -(-len(tasks) // columns)
    canvas, panels = figure(rows, columns, size=(5.2 * columns + 2.6, 4.0 * rows + 0.8))
    numbers = {name: str(i) for i, name in enumerate(methods, 1)}
    for axes, name in zip(np.ravel(panels), tasks, strict=False):
        of_task = {m: c for m in numbers if (c := cells.get(f"{name}/{m}", {})).get("status") == "measured"}
        costs = [cell["evaluations"] for cell in of_task.values()]
        means = [float(np.mean(cell["test errors"])) for cell in of_task.values()]
        for i, (method, cell) in enumerate(of_task.items()):
            mean, error = mean_and_error(np.asarray(cell["test errors"]))
            _, colour, marker = SEES[sees(cell["verdict"])]
            cost = costs[i] * _BESIDE ** costs[:i].count(costs[i])
            axes.errorbar(cost, mean, error, fmt=marker, color=colour, markersize=13, alpha=0.75)
            axes.annotate(numbers[method], (cost, mean), ha="center", va="center", fontsize=7, zorder=3)
        solved = min(means, default=1) == 0  # no logarithm has room for an error of 0
        axes.set(
            xscale="log",
            yscale="linear" if solved else "log",
            title=tasks[name]["title"],
            xlabel="objective evaluations (forward passes of a batch)",
            ylabel=f"test error ({tasks[name]['unit']})",
        )
        for axis in (axes.xaxis,) if solved else (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter("{x:,g}")
            axis.set_minor_formatter("")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 50k: longer labels would meet
    for axes in np.ravel(panels)[len(tasks) :]:
        axes.set_visible(False)
    marks = [
        canvas.axes[0].plot([], [], marker, color=colour, markersize=9, label=words)[0]
        for words, colour, marker in SEES.values()
    ]
    canvas.legend(
        marks, [mark.get_label() for mark in marks], loc="outside lower center", ncols=4, frameon=False,
        title="what an update may see",
    )  # fmt: skip
    named = "\n".join(f"{number}  {_shown(name)}" for name, number in numbers.items())
    canvas.legend([], [], loc="outside right upper", title=named, frameon=False, title_fontsize=8, alignment="left")
    return canvas


HEADS = (
    "task", "method", "family", "an update may see", "test error", "behind backprop", "updates", "evaluations",
    "to the goal", "seconds to the goal", "time", "MB", "cosine", "rate", "measured", "data", "made by",
)  # fmt: skip


def write(out: Path, cells: Mapping[str, Any], about: Mapping[str, Any]) -> Path:
    """Writes `atlas.html` from the finished cells; returns its path.

    Args:
      out: the folder; the page links to its `atlas.png` and `cells`.
      cells: results by "task/method".
      about: `rates` and `seeds`, their numbers.
    """
    cells = in_order(cells)
    tasks = {task_and_method(name)[0]: cell["task"] for name, cell in cells.items()}
    options = (
        f'<option value="{html.escape(name)}" data-goal="{task["goal"]:g}">{html.escape(task["title"])}</option>'
        for name, task in tasks.items()
    )
    keys = (f'<span class="key">{_dot(colour)}{words}</span>' for words, colour, _ in SEES.values())
    parts = {
        "style": page_style(),
        **{name: html.escape(str(value)) for name, value in about.items()},
        "options": "".join(options),
        "keys": "".join(keys),
        "heads": "".join(f"<th>{head}</th>" for head in HEADS),
        "rows": "\n".join(_row(cells, cell) for cell in cells),
    }
    page = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    for name, text in parts.items():
        page = page.replace(f"[[{name}]]", text)
    path = out / "atlas.html"
    path.write_text(page, encoding="utf-8")
    return path


def _row(cells: Mapping[str, Any], name: str) -> str:
    cell = cells[name]
    task, method = task_and_method(name)
    ends = [_text(cell["task"]["title"]), _text(_shown(method)), _text(cell["family"])]
    links = [
        _text(f"{cell['date']}, {cell['device']}, {cell['versions']}"),
        f'<td><a href="cells/{html.escape(name)}.json">json</a></td>',
        f"<td><code>{html.escape(cell['made by'])}</code></td>",
    ]
    about = {"task": task}
    if cell["status"] != "measured":
        why = f"{cell['status']}: {cell['why'].splitlines()[0]}"
        middle = [f'<td class="why" title="{html.escape(cell["why"])}">{html.escape(why[:80])}</td>']
        middle += [_number(math.inf, "")] * (len(HEADS) - len(ends) - len(middle) - len(links))
    else:
        words, colour, marker = SEES[sees(cell["verdict"])]
        errors = np.asarray(cell["test errors"])
        mean, error = mean_and_error(errors)
        about |= {
            "unit": cell["task"]["unit"], "error": f"{mean:.6g}", "bar": f"{error:.6g}", "colour": colour,
            "marker": marker, "cost": cell["evaluations"],
        }  # fmt: skip
        exact = cells.get(f"{task}/backprop", {})
        behind = errors - np.asarray(exact["test errors"]) if exact.get("status") == "measured" else None
        slower = cell["times backprop's seconds"]
        megabytes = None if cell["bytes"] is None else cell["bytes"] / 1e6
        angle = np.mean(np.asarray(cell["cosine along training"], float), axis=1)[[0, -1]]
        own = "" if np.isnan(angle).any() else f"{angle[0]:.2f} → {angle[-1]:.2f}"
        middle = [
            f'<td title="{html.escape(cell["verdict"])}">{_dot(colour)}{html.escape(words)}</td>',
            _with_error(errors),
            _with_error(behind),
            _number(cell["updates"][-1], f"{cell['updates'][-1]:,}"),
            _number(cell["evaluations"], f"{cell['evaluations']:,}"),
            _or_never(cell["evaluations to the goal"], "{:,}"),
            _or_never(cell["seconds to the goal"], "{:.2g}"),
            _number(slower, f"{slower:.2g}"),
            _number(megabytes, "" if megabytes is None else f"{megabytes:.2f}"),
            _number(angle[-1], own),
            _number(cell["rate"], f"{cell['rate']:g}{' (end)' if cell['rate at the end of the range'] else ''}"),
        ]
    known = " ".join(f'data-{key}="{html.escape(str(value))}"' for key, value in about.items())
    return f"<tr {known}>{''.join([*ends, *middle, *links])}</tr>"


def _dot(colour: str) -> str:
    return f'<span class="dot" style="background:{colour}"></span>'


def _shown(method: str) -> str:
    """Returns a method's name as it is shown; that of a user's own stays as it was given."""
    return method if ":" in method else method.replace("_", " ")


def _text(text: str) -> str:
    return f"<td>{html.escape(text)}</td>"


def _number(key: float | None, text: str) -> str:
    """Returns a table cell sorted by a number; missing numbers come last."""
    key = math.inf if key is None or math.isnan(key) else float(key)
    return f'<td class="number" data-key="{"Infinity" if math.isinf(key) else json.dumps(key)}">{text}</td>'


def _or_never(value: float | None, form: str) -> str:
    return _number(value, "never" if value is None else form.format(value))


def _with_error(values: np.ndarray | Sequence[float] | None) -> str:
    if values is None:
        return _number(None, "")
    mean, error = mean_and_error(np.asarray(values))
    return _number(mean, f"{mean:.3f} ± {error:.3f}")
