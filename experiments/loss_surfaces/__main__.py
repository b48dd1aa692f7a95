"""Surfaces and gradients of the losses of seed 003: p-norms, Kullback–Leibler, normalised (eq. 13–18).

python -m experiments.loss_surfaces --help
"""

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import nl_jax as nl
from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.results import Folder, judge, verdict
from experiments.loss_surfaces.formulas import NORMALISED, SURFACES, Surface

ROUNDINGS = 100.0  # allowed error of sums of a few terms, in units of the float64 resolution
CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75**0.5]])  # of the simplex as drawn


@dataclass(frozen=True)
class Config:
    """Draw losses and their gradients on the simplex of three outputs, of two outputs of any sum, and of one output.

    Automatic differentiation of the library's losses is compared with the seed's formulas at random outputs. The
    minimum of each loss is checked as well. Prints a table and writes config.json, loss_surfaces.json,
    loss_surfaces.npz and loss_surfaces.png to --out.
    """

    out: Path = Path("results/loss_surfaces")
    """Folder for the results; files of an earlier run there are replaced."""
    targets: tuple[float, ...] = (0.5, 0.3, 0.2)
    """x̄, the targets: three numbers above 0 that sum to 1."""
    points: int = 10_000
    """Number of random outputs, with sums from 0.1 to 10, at which gradients are compared."""
    quick: bool = False
    """A small version, 500 points, in a few seconds."""


def run(config: Config) -> dict[str, float]:
    """Compares, then draws; returns the judged errors.

    Raises:
      ExperimentError: for an invalid setting or an unusable folder, or if a loss differs from the seed's.
    """
    if config.quick:
        config = dataclasses.replace(config, points=min(config.points, 500))
    if len(config.targets) != 3 or min(config.targets) <= 0 or abs(sum(config.targets) - 1) > 1e-6:
        raise ExperimentError(f"--targets must be three numbers above 0 that sum to 1, got {config.targets}")
    if config.points < 1:
        raise ExperimentError(f"--points must be at least 1, got {config.points}")
    folder = Folder(config.out, config, outputs=[f"loss_surfaces.{kind}" for kind in ("json", "npz", "png")])
    with jax.enable_x64(True):
        targets = np.array(config.targets)
        found = {name: compare(surface, targets, config.points) for name, surface in SURFACES.items()}
        found["two-variable Kullback–Leibler"] = two_variables(share(targets), config.points)
        judged = {f"{name}: {what}": off for name, of in found.items() for what, off in of.items()}
        arrays = drawn(targets)
        picture_of = plot(arrays, targets)
    folder.data("loss_surfaces", verdict(judged)._asdict() | {"deviations": judged})
    folder.arrays("loss_surfaces", arrays)
    picture = folder.picture("loss_surfaces", picture_of)
    print(table(found))
    print(f"picture and data: {picture.parent} ({picture.name}, .json, .npz, config.json)")
    judge(judged)
    return judged


def derivative(loss: Callable[[Any, Any], jax.Array], x: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Gradient by automatic differentiation at every point [points, outputs], with one target."""
    targets = jnp.broadcast_to(jnp.asarray(target), x.shape)
    return np.asarray(jax.jit(jax.grad(lambda x: jnp.sum(loss(x, targets))))(jnp.asarray(x)))


def value(loss: Callable[[Any, Any], jax.Array], x: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Losses at every point with one target, [points]."""
    return np.asarray(jax.jit(loss)(jnp.asarray(x), jnp.broadcast_to(jnp.asarray(target), x.shape)))


def outputs(points: int, count: int = 3) -> np.ndarray:
    """Random shares, some of them small, times sums from 0.1 to 10, [points, count]."""
    random = np.random.default_rng(0)
    return random.dirichlet(np.full(count, 0.7), points) * 10 ** random.uniform(-1, 1, (points, 1))


def compare(surface: Surface, targets: np.ndarray, points: int) -> dict[str, float]:
    """Errors of a loss relative to its formulas, in units of what is allowed: gradients, and the minimum."""
    x, target = outputs(points), targets[None]
    least = surface.least(targets)[None]
    lowest = float(value(surface.loss, least, targets)[0])
    found, formula = derivative(surface.loss, x, targets), surface.gradient(x, target)
    length = x.sum(axis=1, keepdims=True) if surface in NORMALISED else 1.0  # these gradients scale as 1/X
    judged = {
        "gradient": _roundings(length * found, length * formula),
        "gradient where it is least": _roundings(derivative(surface.loss, least, targets), np.zeros(3)),
        "its least loss": _roundings(np.array(lowest), np.array(surface.value)),
        "lower losses": max(0.0, lowest - float(value(surface.loss, x, targets).min())) / _unit(),
    }
    if surface in NORMALISED:
        terms = x * found
        judged["Σ x ∂L/∂x"] = float(np.max(np.abs(terms.sum(axis=1)) / (1 + np.abs(terms).sum(axis=1)))) / _unit()
    return judged


def curve(a: float, x: np.ndarray) -> dict[str, np.ndarray]:
    """L, L' and L'' for two outputs x and 1 − x, by automatic differentiation of the library's loss, [points]."""

    def loss(x: jax.Array) -> jax.Array:
        return nl.losses.binary_kullback_leibler(x[None], jnp.full(1, a))[0]

    orders = {"L": loss, "L'": jax.grad(loss), "L''": jax.grad(jax.grad(loss))}
    return {name: np.asarray(jax.jit(jax.vmap(order))(jnp.asarray(x))) for name, order in orders.items()}


def two_variables(a: float, points: int) -> dict[str, float]:
    """Eq. 17 and 18 compared with the loss, and its minimum, 0 at x = a; errors are in units of what is allowed."""
    x = np.random.default_rng(1).uniform(0.001, 0.999, points)
    odds, of_target = np.log(x / a), np.log((1 - x) / (1 - a))
    formulas = {
        "L": x * odds + (1 - x) * of_target,
        "L'": odds - of_target,
        "L''": 1 / x + 1 / (1 - x),
    }
    found, least = curve(a, x), curve(a, np.array([a]))
    return {
        **{name: _roundings(found[name], formula) for name, formula in formulas.items()},
        "L'' that is not above 0": 0.0 if found["L''"].min() > 0 else np.inf,
        "gradient where it is least": _roundings(least["L'"], np.zeros(1)),
        "its least loss": _roundings(least["L"], np.zeros(1)),
        "lower losses": max(0.0, float(least["L"][0] - found["L"].min())) / _unit(),
    }


def share(targets: np.ndarray) -> float:
    """a, the first target's share of the first two."""
    return float(targets[0] / targets[:2].sum())


def _unit() -> float:
    return float(ROUNDINGS * np.finfo(np.float64).eps)


def _roundings(found: np.ndarray, formula: np.ndarray) -> float:
    """Largest |found − formula|/(1 + |formula|), in units of what is allowed."""
    return float(np.max(np.abs(found - formula) / (1 + np.abs(formula)))) / _unit()


def drawn(targets: np.ndarray) -> dict[str, np.ndarray]:
    """Arrays to draw: losses and gradients on grids of the simplex and of a square of two outputs, and one curve."""
    n = 60
    i, j = np.meshgrid(np.arange(n + 1), np.arange(n + 1), indexing="ij")
    inside = i + j <= n
    simplex = np.stack([i, j, n - i - j], axis=-1)[inside] / n
    simplex = 0.002 / 3 + 0.998 * simplex  # stays off the edges, where gradients are infinite
    side = np.linspace(0.02, 1.4, 70)
    plane = np.stack(np.meshgrid(side, side, indexing="xy"), axis=-1).reshape(-1, 2)
    pair = np.array([share(targets), 1 - share(targets)])
    x = np.linspace(0.004, 0.996, 400)
    arrays = {"simplex": simplex, "plane": plane, "pair": pair, "x": x}
    for name, surface in SURFACES.items():
        for where, at, target in (("simplex", simplex, targets), ("plane", plane, pair)):
            arrays[f"{name}, {where}"] = value(surface.loss, at, target)
            arrays[f"{name}, {where}, gradient"] = derivative(surface.loss, at, target)
    return arrays | curve(share(targets), x)


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


_STAR = {
    "marker": "*",
    "markersize": 15,
    "color": "white",
    "markeredgecolor": "black",
    "linestyle": "none",
    "zorder": 5,
}


def _arrows(axes: Any, at: np.ndarray, down: np.ndarray) -> None:
    """Arrows whose length is the square root of the gradient's norm, so that weak gradients stay visible."""
    length = np.linalg.norm(down, axis=1, keepdims=True)
    scaled = down / np.maximum(length, 1e-300) ** 0.5
    scaled *= 0.09 / np.linalg.norm(scaled, axis=1).max()
    axes.quiver(*at.T, *scaled.T, angles="xy", scale_units="xy", scale=1, color="white", width=0.005, zorder=4)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.loss_surfaces")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
