"""Tabulates and draws the ladder, and the features of each method."""

import math
from typing import Any

import numpy as np

from experiments.without_targets.ladder import LABELS, RUNGS
from experiments.without_targets.teaching import Scores
from nl_jax._core.numerics import mean_and_error


def table(scores: dict[str, Scores]) -> str:
    """The ladder as text, a row for each method; ± is one standard error over seeds."""
    lines = [
        f"{'test accuracy %':30}{'own answers':>14}{'linear read-out':>18}{'class means':>15}{'evaluations':>13}  "
        "the hidden layer's update sees"
    ]
    for rung, names in RUNGS.items():
        here = [name for name in names if name in scores]
        lines += [rung] if here else []
        for name in here:
            own, readout, class_mean = (
                "–" if values is None else "{:.2f} ± {:.2f}".format(*mean_and_error(100 * values))
                for values in (scores[name].answers, scores[name].readout, scores[name].class_mean)
            )
            price = f"{scores[name].evaluations:>13,}"
            lines.append(f"  {LABELS[name]:28}{own:>14}{readout:>18}{class_mean:>15}{price}  {scores[name].seen}")
    lines += [
        "± one standard error over seeds; the test images are the same for all, and being few add an error of their",
        "own that is not in it. Linear read-out and class means are supervised: trained with all labels after the",
        "features, which they leave as they are. Own answers: of the network that was taught. evaluations: forward",
        "passes of the batch per seed, a reverse sweep counted as two.",
        "The update sees what the audit finds in its program (docs/audit.md): pre is what a layer receives, post its",
        "values.",
    ]
    return "\n".join(lines)


def plot(scores: dict[str, Scores], title: str) -> Any:
    """Test accuracies of every method by rung, with the evaluations spent and what the update saw."""
    from experiments.harness.plotting import figure, style

    rows, rungs = _rows(scores)
    canvas, (accuracies, costs) = figure(1, 2, size=(12.5, 1.9 + 0.42 * (max(rows.values()) + 1)))
    accuracies.get_gridspec().set_width_ratios([2, 1])
    measures = {"own answers": "answers", "linear read-out": "readout", "nearest class mean": "class_mean"}
    for index, (label, measure) in enumerate(measures.items()):
        found = {name: getattr(s, measure) for name, s in scores.items() if getattr(s, measure) is not None}
        if found:
            means, errors = np.transpose([mean_and_error(100 * values) for values in found.values()])
            look = {**style((0, 2, 3)[index]), "linestyle": "none", "markevery": None}
            accuracies.errorbar(
                means, [rows[name] + 0.2 * (index - 1) for name in found], capsize=3, label=label, **look,
                xerr=np.where(np.isfinite(errors), errors, 0),
            )  # fmt: skip
    spent = {name: s.evaluations for name, s in scores.items() if s.evaluations}
    costs.plot(
        list(spent.values()), [rows[name] for name in spent], **{**style(0), "linestyle": "none", "markevery": None}
    )
    if spent:
        costs.set_xscale("log")
        costs.set_xlim(min(spent.values()) / 3, max(spent.values()) * 3)
    for name, row in rows.items():
        beside: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "va": "center", "annotation_clip": False}
        costs.annotate(scores[name].seen, (1.02, row), **beside)
    for axes in (accuracies, costs):
        axes.set_ylim(max(rows.values()) + 0.6, min(rungs.values()) - 0.6)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
    ticks = {**{row: LABELS[name] for name, row in rows.items()}, **{row: rung for rung, row in rungs.items()}}
    accuracies.set_yticks(list(ticks), list(ticks.values()))
    for tick, row in zip(accuracies.get_yticklabels(), ticks, strict=True):
        tick.set_fontweight("bold" if row in rungs.values() else "normal")
    costs.set_yticks([])
    accuracies.set(xlabel="test accuracy (%)", title="quality of features and outputs")
    accuracies.xaxis.get_major_locator().set_params(integer=True)
    costs.set(xlabel="objective evaluations", title="cost")
    costs.annotate(
        "the hidden layer's update sees", (1.02, 1), xycoords="axes fraction", xytext=(0, 6),
        textcoords="offset points", fontsize=costs.title.get_fontsize(), annotation_clip=False,
    )  # fmt: skip
    canvas.legend(
        *accuracies.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False,
        title="supervised read-out and class means score the finished features",
    )  # fmt: skip
    canvas.suptitle(f"{title}: one hidden layer, trained with more and more supervision")
    return canvas


def _rows(scores: dict[str, Scores]) -> tuple[dict[str, int], dict[str, int]]:
    """Row numbers of the methods and of the rungs' headings, from the top."""
    rows: dict[str, int] = {}
    rungs: dict[str, int] = {}
    for rung, names in RUNGS.items():
        here = [name for name in names if name in scores]
        if here:
            rungs[rung] = len(rows) + len(rungs)
            rows |= {name: len(rows) + len(rungs) + i for i, name in enumerate(here)}
    return rows, rungs


def receptive_fields(scores: dict[str, Scores], title: str) -> Any:
    """Incoming weights of the first units of seed 0, a row for each method; None if images are not square."""
    from experiments.harness.plotting import figure

    weights = {name: scores[name].weights[0] for names in RUNGS.values() for name in names if name in scores}
    pixels, units = next(iter(weights.values())).shape
    side, shown = math.isqrt(pixels), min(units, 16)
    if side**2 != pixels:
        return None
    canvas, axes = figure(len(weights), shown, size=(2.4 + 0.62 * shown, 1.2 + 0.66 * len(weights)))
    axes = np.reshape(axes, (len(weights), shown))
    rung_of = {name: rung for rung, names in RUNGS.items() for name in names}
    for (name, fields), row in zip(weights.items(), axes, strict=True):
        for field, panel in zip(fields.T, row, strict=False):
            size = np.abs(field).max() or 1
            panel.imshow(field.reshape(side, side), cmap="RdBu_r", vmin=-size, vmax=size)
            panel.grid(visible=False)
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set_visible(False)
        row[0].set_ylabel(f"{LABELS[name]}\n({rung_of[name]})", rotation=0, ha="right", va="center", labelpad=8)
    canvas.suptitle(f"{title}: weights into {shown} hidden units, red positive, blue negative, each to its own scale")
    return canvas
