"""Compares the library's losses and gradients with the seed's formulas, and computes what is drawn of them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import nl_jax as nl
from experiments.loss_surfaces.formulas import NORMALISED, SURFACES, Surface

ROUNDINGS = 100.0  # allowed error of sums of a few terms, in units of the float64 resolution


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
