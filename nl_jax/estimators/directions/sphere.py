"""Directions uniform on a sphere."""

import functools

import jax
import jax.numpy as jnp

from nl_jax.base import Array, Params
from nl_jax.estimators.directions.flat import drawn, size
from nl_jax.estimators.directions.structured import Direction, Law
from nl_jax.numerics import widened


def sphere() -> Law:
    """ξ uniform on the sphere of radius √P: a Gaussian direction whose length does not vary.

    Second moment P ‖g‖², relative variance (P − 1)/K (Nesterov and Spokoiny 2017 smooth over the ball it bounds).
    """

    def law(key: jax.Array, index: Array, template: Params) -> Direction:
        normal = widened(drawn(jax.random.normal, jax.random.fold_in(key, index), template))
        widest = functools.reduce(jnp.promote_types, [xi.dtype for xi in jax.tree.leaves(normal)])
        squares = sum(jnp.sum(jnp.square(xi.astype(widest))) for xi in jax.tree.leaves(normal))
        length = (size(template) / squares) ** 0.5
        return jax.tree.map(lambda xi, leaf: (xi * length.astype(xi.dtype)).astype(leaf.dtype), normal, template)

    law.__name__ = law.__qualname__ = "sphere"
    return law
