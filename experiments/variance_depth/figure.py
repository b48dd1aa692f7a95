"""Draws variances and cosines against depth and width."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.harness.random_networks import CASES
from experiments.variance_depth.measuring import SPACES, Measurement, grid, of
from nl_jax.theory import mean_field


def plot(found: Sequence[Measurement]) -> Any:
    """Plots variance against depth and width, the effect of unequal norms on node perturbation, and cosines."""
    from experiments.harness.plotting import figure, joined, style

    canvas, ((by_depth, imbalance), (by_width, cosine)) = figure(2, 2, size=(13, 10.5))
    depths, widths = grid(found)
    width, middle = widths[-1], depths[len(depths) // 2]
    looks = {case: style(index) for index, case in zip((0, 2, 1, 3), CASES, strict=False)}
    for axes, name, wanted in ((by_depth, "depth", {"width": width}), (by_width, "width", {"depth": middle})):
        for (case, look), space in itertools.product(looks.items(), SPACES):
            here = of(found, case=case, space=space, **wanted)
            sizes, fill = [getattr(one, name) for one in here], "full" if space == "weights" else "none"
            _dots(axes, look, sizes, *_variances(here), fill, label=f"{space}: {case}" if axes is by_depth else None)
            if space == "nodes":
                laws = [np.exp(np.log(one.sampled.law).mean()) for one in here]
                axes.plot(sizes, laws, **joined(sizes, {"color": look["color"], "linewidth": 1.3}))
        for space, line in (("weights", "--"), ("nodes", ":")):
            here = of(found, case=case, space=space, **wanted)
            laws = [one.linear_law for one in here]
            label = f"linear law: number of {space}" if axes is by_depth else None
            sizes = [getattr(one, name) for one in here]
            axes.plot(sizes, laws, label=label, **joined(sizes, {"color": "grey", "linestyle": line, "linewidth": 1.6}))
    for case, look in looks.items():
        for shown in widths:
            here = of(found, case=case, space="nodes", width=shown)
            value, error = _variances(here)
            scale = np.array([one.linear_law for one in here])
            size = 4 + 4 * widths.index(shown) / max(1, len(widths) - 1)
            _dots(imbalance, look, depths, value / scale, error / scale, "none", markersize=size)
        wide = mean_field.mean_squares(CASES[case].activation, depths[-1], gain=CASES[case].gain)
        imbalance.plot(np.arange(1, depths[-1] + 1), wide.imbalance, color=look["color"], linewidth=1.3)
        for space in SPACES:
            here = of(found, case=case, space=space, width=width)
            values = np.array([one.sampled.cosines.mean(axis=1) for one in here])
            error = values.std(axis=1, ddof=1) / values.shape[1] ** 0.5
            _dots(cosine, look, depths, values.mean(axis=1), error, "full" if space == "weights" else "none")
            laws = [np.mean((2 / np.pi / (one.sampled.law + 1)) ** 0.5) for one in here]
            cosine.plot(depths, laws, **joined(laws, {"color": look["color"], "linewidth": 1.3}))
    relative = "E‖ĝ − g‖² / ‖g‖²"
    by_depth.set(title=f"relative variance against depth, {width} units a layer", xlabel="layers", ylabel=relative)
    by_width.set(title=f"relative variance against width, {middle} layers", xlabel="units a layer", ylabel=relative)
    units = " to ".join(str(w) for w in (widths if len(widths) == 1 else widths[:: len(widths) - 1]))
    imbalance.set(
        title=f"node perturbation over its linear law; larger markers: {units} units\n"
        "lines: very wide networks, ⟨q⟩⟨d⟩/⟨qd⟩ over layers", xlabel="layers", ylabel="variance / number of nodes",
    )  # fmt: skip
    cosine.set(
        title="cosine of one estimate and the gradient\nlines: √(2/πs), for layers of equal norms",
        xlabel="layers",
        ylabel=f"cosine, {width} units a layer",
    )
    for axes, ticks in (
        (by_depth, depths),
        (imbalance, depths),
        (by_width, widths),
        (cosine, depths),
    ):
        axes.set(xscale="log", yscale="log")
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.xaxis.minorticks_off()
    handles, labels = by_depth.get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    networks, estimates = found[0].sampled.squares.shape
    canvas.suptitle(
        f"One sample, one example, {networks} random networks of {estimates} estimates each: mean and "
        "standard error\nmarkers: measured; coloured lines: the law given each network's axons and credit"
    )
    return canvas


def _variances(here: Sequence[Measurement]) -> tuple[np.ndarray, np.ndarray]:
    logs, errors = np.array([one.sampled.log_variance for one in here]).T
    return np.exp(logs), np.exp(logs) * errors


def _dots(
    axes: Any,
    look: Any,
    x: Any,
    y: Any,
    error: Any,
    fillstyle: str,
    *,
    label: str | None = None,
    markersize: float = 6.5,
) -> None:
    axes.errorbar(
        x, y, error, color=look["color"], marker=look["marker"], markersize=markersize, fillstyle=fillstyle,
        linestyle="none", label=label,
    )  # fmt: skip
