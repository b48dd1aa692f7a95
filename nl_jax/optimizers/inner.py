"""Differences of trees, and quotients of inner products."""

import jax.numpy as jnp
import optax

from nl_jax._core.numerics import widened
from nl_jax.base import Array, Params


def difference(a: Params, b: Params) -> Params:
    """Computes a − b, in float32 at least."""
    return optax.tree.sub(widened(a), widened(b))


def ratio(numerator: Array, denominator: Array) -> Array:
    """Computes numerator / denominator, which is never NaN for finite numbers."""
    # The bound depends only on the dtype: near a minimum both are small, and a fixed epsilon would dominate.
    tiny = jnp.finfo(denominator.dtype).tiny
    return numerator / jnp.where(jnp.abs(denominator) < tiny, tiny, denominator)
