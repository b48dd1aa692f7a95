"""Tabulates the errors, and draws the surfaces with their gradients."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.loss_surfaces.formulas import NORMALISED, SURFACES
from experiments.loss_surfaces.measuring import ROUNDINGS, share

CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75**0.5]])  # of the simplex as drawn
_STAR = {
    "marker": "*",
    "markersize": 15,
    "color": "white",
    "markeredgecolor": "black",
    "linestyle": "none",
    "zorder": 5,
}


def table(found: Mapping[str, Mapping[str, float]]) -> str:
    """The judged errors as text, a row for each loss."""
    lines = [f"off by, in units of what is allowed ({ROUNDINGS:g} roundings in double precision); no row may exceed 1"]
    for name, of in found.items():
        equation = SURFACES[name].equation if name in SURFACES else "eq. 17, 18"
        lines.append(f"{name} ({equation}): " + ", ".join(f"{what} {off:.2g}" for what, off in of.items()))
    return "\n".join(lines)


def plot(arrays: Mapping[str, np.ndarray], targets: np.ndarray) -> Any:
    """Above, losses on the simplex. Below, losses of two outputs of any sum, and L, L' and L'' of eq. 17 and 18."""
    from experiments.harness.plotting import figure, style

    canvas, (above, below) = figure(2, 3, size=(15, 8.6))
    for axes, name, title in zip(
        above,
        ("1-norm", "4-norm", "normalised Kullback–Leibler"),
        ("1-norm (eq. 14)", "4-norm (eq. 14)", "Kullback–Leibler,\nnormalised or not (eq. 15, 16)"),
        strict=True,
    ):
        _on_the_simplex(axes, arrays, name, targets)
        axes.set_title(title)
    for axes, name, title in zip(
        below,
        ("Kullback–Leibler", "normalised Kullback–Leibler"),
        (
            "Kullback–Leibler (eq. 15): least at x̄/e",
            "normalised (eq. 13, 16): $\\sum_i x_i\\,\\partial_i L$ = 0, least on a ray",
        ),
        strict=False,
    ):
        _in_the_plane(axes, arrays, name)
        axes.set_title(title)
    one, a, x = below[2], share(targets), arrays["x"]
    for index, name, text in ((0, "L", "L"), (2, "L'", "L′"), (3, "L''", "L″")):
        look = style(index)
        one.plot(x, arrays[name], color=look["color"], linestyle=look["linestyle"], linewidth=1.8, label=text)
    one.axvline(a, color="grey", linestyle=":", linewidth=1.4, label=f"x = a = {a:g}")
    one.set(
        ylim=(-6, 20),
        xlim=(0, 1),
        xlabel="output x",
        ylabel="L, L′ and L″ (nats)",
        title="two outputs, x and 1 − x (eq. 17, 18)",
    )
    one.legend(frameon=False, loc="upper left", bbox_to_anchor=(0.13, 1))
    canvas.suptitle(
        f"Losses of outputs x for targets x̄ = ({', '.join(f'{t:g}' for t in targets)}), below "
        "for the first two, normalised. Arrows: −∂L/∂x, of length ∝ √‖∂L/∂x‖; star: the minimum"
    )
    return canvas


def _on_the_simplex(axes: Any, arrays: Mapping[str, np.ndarray], name: str, targets: np.ndarray) -> None:
    """Contours, and the component of −∂L/∂x along the simplex."""
    points = arrays["simplex"] @ CORNERS
    heights = arrays[f"{name}, simplex"]
    filled = axes.tricontourf(*points.T, heights, levels=14, cmap="cividis")
    axes.figure.colorbar(filled, ax=axes, shrink=0.75, label=_unit_of(name))
    some = np.all(np.round((arrays["simplex"] - 0.002 / 3) / 0.998 * 60) % 6 == 2, axis=1)
    down = -arrays[f"{name}, simplex, gradient"]
    down = (down - down.mean(axis=1, keepdims=True))[some] @ CORNERS
    _arrows(axes, points[some], down)
    axes.plot(*np.append(CORNERS, CORNERS[:1], axis=0).T, color="black", linewidth=1)
    axes.plot(*(targets @ CORNERS), **_STAR)
    for number, (corner, shift) in enumerate(zip(CORNERS, ((-0.07, -0.05), (0.07, -0.05), (0, 0.04)), strict=True), 1):
        axes.text(*(corner + shift), f"$x_{number}$ = 1", ha="center", va="center")
    axes.set(aspect="equal", xlim=(-0.15, 1.15), ylim=(-0.1, 0.95))
    axes.axis("off")


def _in_the_plane(axes: Any, arrays: Mapping[str, np.ndarray], name: str) -> None:
    side = int(len(arrays["plane"]) ** 0.5)
    x, y, heights = (of.reshape(side, side) for of in (*arrays["plane"].T, arrays[f"{name}, plane"]))
    filled = axes.contourf(x, y, heights, levels=14, cmap="cividis")
    axes.figure.colorbar(filled, ax=axes, shrink=0.75, label=_unit_of(name))
    some = (slice(5, None, 10), slice(5, None, 10))
    down = -arrays[f"{name}, plane, gradient"].reshape(side, side, 2)[some].reshape(-1, 2)
    _arrows(axes, np.stack([x[some].ravel(), y[some].ravel()], axis=-1), down)
    pair = arrays["pair"]
    if SURFACES[name] in NORMALISED:
        axes.plot(*np.outer(pair, (0, 1.4 / pair.max())), color="white", linestyle="--", linewidth=1.4)
    axes.plot(*(pair if SURFACES[name] in NORMALISED else pair / np.e), **_STAR)
    axes.set(aspect="equal", xlabel="$x_1$", ylabel="$x_2$", xlim=(0, 1.4), ylim=(0, 1.4))


def _unit_of(name: str) -> str:
    return "loss (nats)" if "Kullback" in name else "loss"


def _arrows(axes: Any, at: np.ndarray, down: np.ndarray) -> None:
    """Arrows whose length is the square root of the gradient's norm, so that weak gradients stay visible."""
    length = np.linalg.norm(down, axis=1, keepdims=True)
    scaled = down / np.maximum(length, 1e-300) ** 0.5
    scaled *= 0.09 / np.linalg.norm(scaled, axis=1).max()
    axes.quiver(*at.T, *scaled.T, angles="xy", scale_units="xy", scale=1, color="white", width=0.005, zorder=4)
