"""Draws the atlas's figure and writes its page: plain files that need no network and no server."""

import html
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.atlas.methods import Method
from experiments.harness.results import page_style
from nl_jax._core.numerics import mean_and_error

SEES = {
    "local": ("one synapse's neurons alone", "#009E73", "o"),
    "three-factor": ("… and a loss told to all", "#0072B2", "s"),
    "others": ("other neurons or the target", "#E69F00", "^"),
    "weight transport": ("… and the weights of others", "#D55E00", "D"),
}
"""What an update may see, from least to most: label, colour and marker."""


_BESIDE = 1.12  # factor on the x axis between methods of equal cost


def sees(verdict: str) -> str:
    """Returns the key in `SEES` of an audit's verdict."""
    if verdict in ("local", "three-factor"):
        return verdict
    return "weight transport" if "weight transport" in verdict else "others"


def plot(cells: Mapping[str, Any], tasks: Mapping[str, Any], methods: Mapping[str, Method]) -> Any:
    """Plots test error against evaluations, one panel per task; numbers name the methods.

    Methods of equal cost are drawn side by side, each slightly to the right of the previous one.
    """
    from matplotlib.ticker import EngFormatter, LogLocator

    from experiments.harness.plotting import figure

    columns = min(3, len(tasks))
    rows = -(-len(tasks) // columns)
    canvas, panels = figure(rows, columns, size=(5.2 * columns + 2.6, 4.0 * rows + 0.8))
    numbers = {name: str(i) for i, name in enumerate(methods, 1)}
    for axes, name in zip(np.ravel(panels), tasks, strict=False):
        of_task = {m: c for m in methods if (c := cells.get(f"{name}/{m}", {})).get("status") == "measured"}
        costs = [cell["evaluations"] for cell in of_task.values()]
        for i, (method, cell) in enumerate(of_task.items()):
            mean, error = mean_and_error(np.asarray(cell["test errors"]))
            _, colour, marker = SEES[sees(cell["verdict"])]
            cost = costs[i] * _BESIDE ** costs[:i].count(costs[i])
            axes.errorbar(cost, mean, error, fmt=marker, color=colour, markersize=13, alpha=0.75)
            axes.annotate(numbers[method], (cost, mean), ha="center", va="center", fontsize=7, zorder=3)
        axes.set(
            xscale="log",
            yscale="log",
            title=tasks[name].title,
            xlabel="objective evaluations (forward passes of a batch)",
        )
        axes.set(ylabel=f"test error ({tasks[name].unit})")
        for axis in (axes.xaxis, axes.yaxis):
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
    named = "\n".join(f"{number}  {name.replace('_', ' ')}" for name, number in numbers.items())
    canvas.legend([], [], loc="outside right upper", title=named, frameon=False, title_fontsize=8, alignment="left")
    return canvas


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>nl_jax: which rule for which network</title>
<style>
{style}
table {{ border-collapse: collapse; font-size: 0.85rem; }}
th, td {{ padding: 0.2rem 0.6rem; text-align: left; white-space: nowrap; }}
th {{ cursor: pointer; position: sticky; top: 0; background: Canvas; }}
td.number {{ text-align: right; font-variant-numeric: tabular-nums; }}
tbody tr:nth-child(odd) {{ background: #8881; }}
.wide {{ overflow-x: auto; }}
.dot {{ display: inline-block; width: 0.7em; height: 0.7em; border-radius: 50%; margin-right: 0.4em; }}
main {{ max-width: none; }}
</style>
</head>
<body>
<header>
<h1>Which rule for which network</h1>
<p>Every method was given the same trials: Adam at {rates} learning rates, which fall to zero as a cosine, from {seeds}
beginnings, as many updates on a task ({updates}). The rate was chosen on validation examples; errors are of test
examples, ± standard errors over beginnings.</p>
<p class="faint">An evaluation is one pass of a batch through the network; a reverse sweep counts as two. “To the goal”
is the price of staying below a validation error of {goals}. The cosine is of one estimate to the exact gradient, at the
beginning and at the end. “Time” is that of one update over that of one by backprop, taken in turns. Measured with
{versions}.</p>
</header>
<main>
<figure tabindex="0"><a href="atlas.png"><img src="atlas.png" alt="test error against evaluations, by task"></a>
</figure>
<p><label>task <select id="task"><option value="">all</option>{options}</select></label>
<label>filter <input id="filter" type="search" placeholder="method, family, verdict …"></label>
<span id="count" class="faint"></span></p>
<div class="wide"><table>
<thead><tr>{heads}</tr></thead>
<tbody>
{rows}
</tbody>
</table></div>
</main>
<script>
const body = document.querySelector("tbody"), rows = [...body.rows], order = {{}};
const value = (row, i) => "key" in row.cells[i].dataset ? Number(row.cells[i].dataset.key) : row.cells[i].textContent;
document.querySelectorAll("th").forEach((head, i) => head.onclick = () => {{
  order[i] = -(order[i] || -1);
  rows.sort((a, b) => {{ const x = value(a, i), y = value(b, i); return (x > y) - (x < y); }});
  if (order[i] < 0) rows.reverse();
  body.append(...rows);
}});
const show = () => {{
  const task = document.getElementById("task").value, text = document.getElementById("filter").value.toLowerCase();
  let shown = 0;
  for (const row of rows) {{
    row.hidden = (task && row.dataset.task !== task) || !row.textContent.toLowerCase().includes(text);
    shown += !row.hidden;
  }}
  document.getElementById("count").textContent = `${{shown}} of ${{rows.length}} cells`;
}};
document.getElementById("task").onchange = document.getElementById("filter").oninput = show;
show();
</script>
</body>
</html>
"""

HEADS = (
    "task", "method", "family", "an update may see", "test error", "behind backprop", "updates", "evaluations",
    "to the goal", "seconds to the goal", "time", "MB", "cosine", "rate", "date", "on", "data", "made by",
)  # fmt: skip


def write(
    out: Path,
    cells: Mapping[str, Any],
    tasks: Mapping[str, Any],
    methods: Mapping[str, Method],
    about: Mapping[str, Any],
    command: Callable[[str, str], str],
) -> Path:
    """Writes `atlas.html` from the finished cells; returns its path.

    Args:
      out: the folder.
      cells: results by "task/method".
      tasks, methods: the tasks and methods by name.
      about: `rates`, `seeds`, `updates` and `versions`.
      command: `command(task, method)`, returns the command that makes a cell.
    """
    rows = [
        _row(cells, task, tasks[task].title, method, methods[method].family, command(task, method))
        for task, method in (cell.split("/", 1) for cell in cells)
    ]
    page = PAGE.format(
        style=page_style(),
        **{name: html.escape(str(value)) for name, value in about.items()},
        goals=html.escape(", ".join(f"{task.goal:g} ({task.title})" for task in tasks.values())),
        options="".join(f'<option value="{name}">{html.escape(task.title)}</option>' for name, task in tasks.items()),
        heads="".join(f"<th>{head}</th>" for head in HEADS),
        rows="\n".join(rows),
    )
    path = out / "atlas.html"
    path.write_text(page, encoding="utf-8")
    return path


def _row(cells: Mapping[str, Any], task: str, title: str, method: str, family: str, made_by: str) -> str:
    cell = cells[f"{task}/{method}"]
    ends = [_text(title), _text(method.replace("_", " ")), _text(family)]
    links = [_text(cell["date"]), _text(cell["device"])]
    links += [
        f'<td><a href="cells/{task}-{method}.json">json</a></td>',
        f"<td><code>{html.escape(made_by)}</code></td>",
    ]
    if cell["status"] != "measured":
        why = f"{cell['status']}: {cell['why'].splitlines()[0]}"
        middle = [f'<td title="{html.escape(cell["why"])}">{html.escape(why[:80])}</td>']
        middle += [_number(math.inf, "")] * (len(HEADS) - len(ends) - len(middle) - len(links))
    else:
        words, colour, _ = SEES[sees(cell["verdict"])]
        dot = f'<span class="dot" style="background:{colour}"></span>'
        errors = np.asarray(cell["test errors"])
        exact = cells.get(f"{task}/backprop", {})
        behind = errors - np.asarray(exact["test errors"]) if exact.get("status") == "measured" else None
        slower = cell["times backprop's seconds"]
        megabytes = None if cell["bytes"] is None else cell["bytes"] / 1e6
        angle = np.mean(np.asarray(cell["cosine along training"], float), axis=1)[[0, -1]]
        own = "" if np.isnan(angle).any() else f"{angle[0]:.2f} → {angle[-1]:.2f}"
        middle = [
            f'<td title="{html.escape(cell["verdict"])}">{dot}{html.escape(words)}</td>',
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
    return f'<tr data-task="{task}">{"".join([*ends, *middle, *links])}</tr>'


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
