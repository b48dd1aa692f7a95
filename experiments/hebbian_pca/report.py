"""Tabulates and draws what the three rules learned."""

import math
from typing import Any, NamedTuple

import numpy as np

from experiments.harness import extrapolation
from experiments.hebbian_pca.learning import Digits, Followed, Settled


class Found(NamedTuple):
    """Results by rule."""

    hebb: Followed
    oja: Followed
    sanger: Settled


def arrays_of(found: Found) -> dict[str, np.ndarray]:
    """Arrays of all rules; each name is prefixed by the rule."""
    arrays = {
        f"{rule} {name}": value for rule, result in found._asdict().items() for name, value in vars(result).items()
    }
    for rule in ("hebb", "oja"):
        measured = arrays.pop(f"{rule} measured")
        arrays |= {f"{rule} measured": measured.raw, f"{rule} limit": measured.values}
    return arrays


def table(found: Found, digits: Digits) -> str:
    """The measurements as text, a row for each rule."""
    lines = [
        f"{'':24}{'largest distance from the flow at':^44}",
        f"{'rule':6}{'η':>10}{'end':>8}{'η':>11}{'η/2':>11}{'η/4':>11}{'η → 0':>11}{'±':>10}{'off':>7}",
    ]
    for rule, flow in (("hebb", found.hebb), ("oja", found.oja)):
        errors = (*flow.errors, np.abs(flow.measured.values - flow.law).max())
        lines.append(
            f"{rule:6}{flow.rates[0]:>10.1e}{flow.time[-1]:>8.1f}"
            + "".join(f"{error:>11.1e}" for error in errors)
            + f"{np.abs(flow.measured.correction).max():>10.1e}{flow.deviation:>7.2f}"
        )
    sanger = found.sanger
    lines += [
        f"{'sanger':6}{sanger.rate:>10.1e}{sanger.time[-1]:>8.1f}{sanger.distance[:, -1].max():>11.1e}{'':33}"
        f"{sanger.left:>10.1e}{sanger.deviation:>7.2f}",
        extrapolation.NOTE,
        "sanger: largest distance of a unit from its eigenvector, by eigh; ±: how far one went in the last while, in",
        "which distances fall to a third at the slowest rate of theory, the smallest gap between eigenvalues.",
        "ln|w_i| grew by Hebb's rule at " + ", ".join(f"{rate:.5f}" for rate in found.hebb.slopes),
        "where eigenvalues are          " + ", ".join(f"{rate:.5f}" for rate in digits.values[: len(found.hebb.law)]),
        f"largest deviation from theory: {max(result.deviation for result in found):.2f} error bars",
    ]
    return "\n".join(lines)


def plot(found: Found, digits: Digits) -> Any:
    """Plots Hebb's growth and Oja's components beside their flows, Sanger's distances and the weights of his units."""
    from experiments.harness.plotting import figure, style

    canvas, ((growth, turning), (settling, pictures)) = figure(2, 2, size=(12, 8.4))
    law: dict[str, Any] = {"color": "black", "linewidth": 1.1, "zorder": 4}
    for axes, result, shown in ((growth, found.hebb, np.exp), (turning, found.oja, np.array)):
        for i, (measured, said) in enumerate(zip(shown(result.measured.raw), shown(result.law), strict=True)):
            look = style(1 + i % 6)
            label = rf"$\lambda_{{{i + 1}}}$ = {digits.values[i]:.3f}"
            axes.plot(result.time, measured, color=look["color"], linewidth=5, alpha=0.55, label=label)
            axes.plot(result.time, said, **law)
    growth.set(yscale="log", title="Hebb: every eigen-component grows, as $e^{λ_i t}$", ylabel="$|w_i|$")
    turning.set(xscale="log", title="Oja: all but the first fade away", ylabel="$w_i$")
    growth.legend(frameon=False, title="wide: measured; black: flow", alignment="left")

    sanger = found.sanger
    for j, distance in enumerate(sanger.distance):
        settling.plot(sanger.time, distance, **{**style(1 + j % 6), "marker": None}, label=f"unit {j + 1}")
    gap = np.min(-np.diff(digits.values[: len(sanger.distance) + 1]))
    settling.plot(
        sanger.time, np.exp(-gap * sanger.time), label="slope: smallest eigenvalue gap", **{**law, "linestyle": ":"}
    )
    settling.set(yscale="log", title="Sanger: unit $j$ converges to eigenvector $j$", ylabel="$\\|w_j ∓ v_j\\|$")
    settling.legend(frameon=False)
    for axes in (growth, turning, settling):
        axes.set(xlabel="time, steps × η")

    side = math.isqrt(len(sanger.weights))
    rows = []
    for weights in (sanger.weights, digits.vectors[:, : len(sanger.distance)]):
        images = np.pad(weights.T.reshape(-1, side, side), ((0, 0), (1, 1), (1, 1)), constant_values=np.nan)
        rows.append(np.concatenate(list(images), axis=1))
    size = np.abs(digits.vectors[:, : len(sanger.distance)]).max()
    pictures.imshow(np.concatenate(rows), cmap="RdBu_r", vmin=-size, vmax=size)
    pictures.grid(visible=False)
    pictures.spines[:].set_visible(False)
    units = np.arange(len(sanger.distance))
    pictures.set_xticks((side + 2) * (units + 0.5) - 0.5, [f"{j + 1}" for j in units])
    pictures.set_yticks([side / 2 + 0.5, 1.5 * side + 2.5], ["learned", "eigh"])
    pictures.tick_params(length=0)
    pictures.set(title="Sanger's units and the eigenvectors", xlabel="unit, eigenvector")
    canvas.suptitle("Principal components of digits by local rules, without labels")
    return canvas
