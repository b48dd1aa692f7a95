"""Judges, tabulates and draws the scores of all kinds of hierarchy."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.hierarchy.scoring import HALF_RANDOM, LADDER, RANDOM, SHOWN, WHOLE, Scores

TARGET = 0.10  # required gain in named images over the random hierarchies


TITLES = {
    "named": "images named correctly", "from_half": "named from the upper half",
    "completed": "hidden variance explained", "novelty": "rotated images found (AUC)",
}  # fmt: skip
CHANCE = {"named": 10, "from_half": 10, "completed": 0, "novelty": 50}


def judge(results: Mapping[str, Scores]) -> list[dict[str, Any]]:
    """Each statement with its figure and its deviation; a deviation above 1 is a failure."""
    judged = []
    for field, other in (("named", RANDOM), ("from_half", RANDOM), ("from_half", HALF_RANDOM)):
        gap = (getattr(results[WHOLE], field) - getattr(results[other], field)).mean()
        judged.append({
            "statement": f"{TITLES[field]}: at least ten points more than with {other}",
            "figure": f"{100 * gap:.1f} points",
            "deviation": TARGET / gap if gap > 0 else np.inf,
        })  # fmt: skip
    means = [results[name].named.mean() for name in LADDER]
    judged.append({
        "statement": "each added convolution raises the fraction of images named correctly",
        "figure": ", ".join(f"{100 * mean:.1f} %" for mean in means),
        "deviation": 0.0 if all(np.diff(means) > 0) else np.inf,
    })  # fmt: skip
    return judged


def _error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / len(values) ** 0.5)


def table(results: Mapping[str, Scores]) -> str:
    """Scores in per cent as text; ± is one standard error over seeds."""
    lines = [f"{'%':20}" + "".join(f"{title:>28}" for title in TITLES.values())]
    for name, scores in results.items():
        cells = [f"{100 * of.mean():.1f} ± {100 * _error(of):.1f}" for of in scores]
        lines.append(f"{name:20}" + "".join(f"{cell:>28}" for cell in cells))
    lines.append("By chance 10, 10, 0 and 50. Ten labels are used in all, one to name each concept.")
    return "\n".join(lines)


def plot(results: Mapping[str, Scores]) -> Any:
    """A panel for each score, a row for each hierarchy."""
    from experiments.harness.plotting import figure, style

    canvas, panels = figure(1, len(TITLES), size=(14, 3.4))
    for (field, title), axes in zip(TITLES.items(), panels, strict=True):
        for row, (name, scores) in enumerate(results.items()):
            values, look = 100 * getattr(scores, field), style(1 if name.startswith("random") else 2)
            axes.plot(values, np.full(len(values), row), "o", color=look["color"], alpha=0.35, markersize=4)
            drawn = {"fmt": look["marker"], "color": look["color"], "markersize": 7, "capsize": 4}
            axes.errorbar(values.mean(), row, xerr=_error(values), **drawn)
        axes.axvline(CHANCE[field], color="grey", linestyle=":", linewidth=1.4)
        axes.set(xlabel=f"{title} (%)", ylim=(len(results) - 0.5, -0.5))
        axes.set_yticks(range(len(results)), list(results) if field == "named" else [""] * len(results))
    canvas.suptitle("A hierarchy trained by local rules alone (dotted: chance; bars: one standard error)")
    return canvas


def show(completions: np.ndarray) -> Any:
    """Rows of images: half, completed, whole."""
    from experiments.harness.plotting import figure

    canvas, panels = figure(3, SHOWN, size=(1.25 * SHOWN + 1, 4.4))
    for row, (said, images) in enumerate(zip(("shown", "completed", "as it was"), completions, strict=True)):
        for axes, image in zip(panels[row], images, strict=True):
            axes.imshow(image.reshape(28, 28), cmap="gray_r", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            axes.grid(visible=False)
        panels[row][0].set_ylabel(said)
    canvas.suptitle("Completion: the upper half of an image activates prototypes")
    return canvas
