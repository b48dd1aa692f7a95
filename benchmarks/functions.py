"""Functions that are hard to minimise, with the usual starting points (Moré, Garbow and Hillstrom 1981)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Function(NamedTuple):
    """A function of a vector, and its starting point."""

    value: Callable[[jax.Array], jax.Array]
    start: tuple[float, ...]


def rosenbrock(x: jax.Array) -> jax.Array:
    """Σ 100 (x_{i+1} − x_i²)² + (1 − x_i)²: a curved valley; 0 at (1, …, 1)."""
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def beale(x: jax.Array) -> jax.Array:
    """Σ_i (c_i − x (1 − y^i))², c = 1.5, 2.25, 2.625: 0 at (3, 0.5)."""
    return jnp.sum((jnp.array([1.5, 2.25, 2.625]) - x[0] * (1 - x[1] ** jnp.arange(1.0, 4.0))) ** 2)


def wood(x: jax.Array) -> jax.Array:
    """Two Rosenbrock valleys, coupled: 0 at (1, 1, 1, 1), with a saddle near the start."""
    a, b, c, d = x
    valleys = 100 * (b - a**2) ** 2 + (1 - a) ** 2 + 90 * (d - c**2) ** 2 + (1 - c) ** 2
    return valleys + 10.1 * ((b - 1) ** 2 + (d - 1) ** 2) + 19.8 * (b - 1) * (d - 1)


def powell_singular(x: jax.Array) -> jax.Array:
    """(a + 10 b)² + 5 (c − d)² + (b − 2 c)⁴ + 10 (a − d)⁴: its Hessian is singular at the minimum, 0."""
    a, b, c, d = x
    return (a + 10 * b) ** 2 + 5 * (c - d) ** 2 + (b - 2 * c) ** 4 + 10 * (a - d) ** 4


def hilbert(x: jax.Array) -> jax.Array:
    """½ (x − 1)ᵀ H (x − 1), H_ij = 1/(i + j − 1): quadratic, of condition number 10^10 in eight dimensions."""
    places = jnp.arange(0.5, x.size)
    matrix = 1 / (jnp.expand_dims(places, 0) + jnp.expand_dims(places, 1))
    return 0.5 * (x - 1) @ matrix @ (x - 1)


FUNCTIONS = {
    "Rosenbrock, 2": Function(rosenbrock, (-1.2, 1.0)),
    "Rosenbrock, 16": Function(rosenbrock, (-1.2, 1.0) * 8),
    "Beale": Function(beale, (1.0, 1.0)),
    "Wood": Function(wood, (-3.0, -1.0, -3.0, -1.0)),
    "Powell singular": Function(powell_singular, (3.0, -1.0, 0.0, 1.0)),
    "Hilbert, 8": Function(hilbert, tuple(np.zeros(8))),
}
