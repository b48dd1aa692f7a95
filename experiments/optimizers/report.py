"""Tabulates and draws the optimizers' paths."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.optimizers.descending import OPTIMIZERS, Function, Path2D, Settings, diverged, price

SHOWN = ("steepest descent", "Polak–Ribière", "one evaluation", "Adam")


def table(paths: Mapping[str, Mapping[str, Path2D]], settings: Settings) -> str:
    """The comparison as text."""
    lines = [" " * 18 + "".join(f"{name:>30}" for name in paths)]
    lines.append(f"{'optimizer':18}" + f"{'steps':>10}{'evaluations':>12}{'rate':>8}" * len(paths))
    for of in OPTIMIZERS:
        line = f"{of:18}"
        for by_optimizer in paths.values():
            path = by_optimizer[of]
            reached = np.isfinite(price(path, settings.target))
            spent = f"{len(path.values) - 1:,}", f"{path.evaluations[-1]:,}"
            steps, evaluations = (
                spent if reached else ("never", "diverged" if diverged(path) else f"f = {path.values[-1]:.0e}")
            )
            line += f"{steps:>10}{evaluations:>12}{'search' if np.isnan(path.rate) else f'{path.rate:.2g}':>8}"
        lines.append(line)
    lines += [
        f"steps, and evaluations of value and gradient, until f is {settings.target:g} of what it was at the start;",
        f"never: what f is after {settings.evaluations:,} evaluations. "
        "rate: the best of those tried, or a line search.",
    ]
    return "\n".join(lines)


def plot(paths: Mapping[str, Mapping[str, Path2D]], functions: Mapping[str, Function]) -> Any:
    """Above, the paths over contours of f; below, f against evaluations."""
    from experiments.harness.plotting import figure, style

    canvas, panels = figure(2, len(paths), size=(13, 9))
    for column, (name, by_optimizer) in enumerate(paths.items()):
        over, against = panels[0, column], panels[1, column]
        horizontal, vertical = np.meshgrid(np.linspace(-1.8, 1.5, 300), np.linspace(-1.1, 1.6, 300))
        heights = jax.vmap(jax.vmap(functions[name]))(jnp.stack([horizontal, vertical], axis=-1))
        levels = np.logspace(-2, 3, 11)
        over.contour(horizontal, vertical, heights, levels=levels, colors="#999999", linewidths=0.6, zorder=1)
        for index, (of, path) in enumerate(by_optimizer.items()):
            look = style(index)
            if of in SHOWN:  # the four conjugate gradients nearly coincide on the map
                over.plot(
                    *path.points.T,
                    label=of,
                    **{**look, "markevery": len(path.points) // 60 + 1, "markersize": 4, "linewidth": 1.2},
                )
            against.plot(path.evaluations, path.values, label=of, **{**look, "markevery": 0.1})
        over.set(title=name, xlabel="x", ylabel="y", xlim=(-1.8, 1.5), ylim=(-1.1, 1.6), aspect="equal")
        over.plot(*by_optimizer[SHOWN[0]].points[0], "k*", markersize=12, zorder=5)
        against.set(xlabel="evaluations of value and gradient", ylabel="f", yscale="log", xscale="log")
    handles, labels = panels[1, 0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    canvas.suptitle("Down a narrow valley from the star; contours of f are half a decade apart")
    return canvas
