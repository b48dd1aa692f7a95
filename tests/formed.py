"""Structured directions as the arrays they stand for."""

import jax
import jax.numpy as jnp

from nl_jax.estimators.noise.directions import Structured
from nl_jax.estimators.noise.directions.blocks import Blocks
from nl_jax.estimators.noise.directions.flipout import Flipped


def formed(direction, examples=1):
    """A tree of directions as arrays, for each of some examples: leaves [examples, …]."""
    return jax.tree.map(
        lambda xi: _formed(xi, examples) if isinstance(xi, Structured) else jnp.broadcast_to(xi, (examples, *xi.shape)),
        direction,
        is_leaf=lambda xi: isinstance(xi, Structured),
    )


def _formed(direction, examples):
    if isinstance(direction, Blocks):
        one = direction.formed()
        return jnp.broadcast_to(one, (examples, *one.shape))
    if isinstance(direction, Flipped):  # E ∘ s rᵀ
        s, r = direction.flips(examples)
        noise = direction.noise.formed() if isinstance(direction.noise, Blocks) else direction.noise
        return noise[None] * jnp.expand_dims(s[:, :, None] * r[:, None, :], tuple(range(1, noise.ndim - 1)))
    one = jnp.tensordot(direction.left, direction.right, axes=1) * jnp.asarray(direction.scale, direction.left.dtype)
    return jnp.broadcast_to(one, (examples, *one.shape))
