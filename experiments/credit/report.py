"""Tabulates and draws the step, and credit by layer."""

from collections.abc import Mapping
from typing import Any

import numpy as np

import nl_jax as nl
from experiments.credit.comparison import Comparison
from experiments.credit.step import Step

SHOWN = 8  # number of examples in the figure of δ


def table(step: Step, roundings: Mapping[str, float], compared: Comparison) -> str:
    """Returns the results as text."""
    numbers = lambda values: "  ".join(f"{value:8.4f}" for value in values)
    lines = [f"{name:6}{numbers(of)}" for name, of in zip("hŷδγ", step[:4], strict=True)]
    lines += [f"{name:20} shows these and takes the seed's step to {n:.1f} roundings" for name, n in roundings.items()]
    layers = list(compared.delta["backprop"])
    lines.append(f"{'cosine to backprop’s δ':24}" + "".join(f"{layer:>10}" for layer in layers))
    lines += [f"  {name:22}" + "".join(f"{c:10.3f}" for c in of) for name, of in compared.cosine.items()]
    lines.append(f"{'size, backprop’s is 1':24}")
    lines += [f"  {name:22}" + "".join(f"{s:10.3f}" for s in of) for name, of in compared.size.items()]
    lines.append("relative error of node perturbation")
    lines += [f"  {what:22}" + "".join(f"{v:10.3f}" for v in values)
              for what, values in (("measured", compared.error.mean(axis=0)), ("law", compared.law))]  # fmt: skip
    lines.append(f"law and slope: at most {compared.deviation:.1f} standard errors off")
    return "\n".join(lines)


def plot(net: nl.Network, x: np.ndarray, step: Step, compared: Comparison) -> Any:
    """Plots the step on the network diagram (top), and cosine and size of four estimators' credit by layer (bottom)."""
    from experiments.harness.plotting import figure, style

    canvas, ((forth, back), (direction, size)) = figure(2, 2, size=(12, 8.5))
    forth.get_gridspec().set_height_ratios((0.85, 1))
    values = {"input": x, "hidden1": step.h, "output": step.y}
    net.diagram(title="forward pass: x, h and ŷ of one example", values=values, axes=forth)
    values = {"hidden1": step.gamma, "output": step.delta}
    net.diagram(title="backward pass: credit γ and δ, targets 1 and 0", values=values, axes=back)
    layers = list(compared.delta["backprop"])
    for index, name in enumerate(compared.cosine):
        look = {**style(index), "markevery": 1}
        direction.plot(layers, compared.cosine[name], label=name, **look)
        size.plot(layers, compared.size[name], label=name, **look)
    longer = np.sqrt(1 + compared.law)
    for axes, expected in ((direction, 1 / longer), (size, longer)):
        axes.plot(layers, expected, ":", color="grey", linewidth=2.2, label="node perturbation, law", zorder=1)
        axes.set_xlabel("layer")
    direction.set(ylabel="cosine to backprop’s δ", ylim=(-0.25, 1.05), title="direction of the credit")
    size.set(ylabel="‖δ‖ over that of backprop", yscale="log", title="size of the credit")
    size.yaxis.set_major_formatter("{x:g}")
    size.yaxis.set_minor_formatter("{x:.1g}")
    canvas.legend(*size.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return canvas


def show(compared: Comparison) -> Any:
    """Plots δ: one row per estimator, one column per layer, examples by units."""
    from experiments.harness.plotting import figure

    layers = list(compared.delta["backprop"])
    rows, columns = len(compared.delta), len(layers)
    canvas, panels = figure(rows, columns, size=(2.9 * columns + 1, 1.6 * rows + 1))
    for row, (name, of) in enumerate(compared.delta.items()):
        for axes, layer in zip(panels[row], layers, strict=True):
            largest = np.abs(compared.delta["backprop"][layer][:SHOWN]).max()
            image = axes.imshow(of[layer][:SHOWN], cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto")
            axes.grid(visible=False)
            axes.set(yticks=[])
            axes.tick_params(labelbottom=row == len(compared.delta) - 1)
            if row == 0:
                axes.set_title(layer)
                canvas.colorbar(image, ax=panels[:, layers.index(layer)], location="bottom", shrink=0.8, label="δ")
            if row == len(compared.delta) - 1:
                axes.set_xlabel("unit")
        panels[row][0].set_ylabel(f"{name}\nexample", fontsize=9)
    canvas.suptitle("Credit δ of the first examples; each layer has the colour scale of backprop")
    return canvas
