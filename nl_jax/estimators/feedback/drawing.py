"""Random initialisation of feedback weights, and the noise they learn from."""

import jax
import jax.numpy as jnp

from nl_jax._core.require import typed_key
from nl_jax.base import Array, Initializer, Key, Params
from nl_jax.propagation.loops import differentiable


def drawn(weight_init: Initializer, key: Key, params: Params) -> Params:
    """Draws a tree like `params` by `weight_init`; ones for leaves of fewer than two axes."""
    typed_key(key)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(tree, [_leaf(weight_init, k, leaf) for k, leaf in zip(keys, leaves, strict=True)])


def normal_like(key: Key, arrays: tuple[Array, ...]) -> tuple[Array, ...]:
    """Draws independent standard normal noise in the arrays' shapes; indices and masks stay as they are."""
    keys = jax.random.split(key, len(arrays))
    draw = lambda k, x: jax.random.normal(k, x.shape, x.dtype) if differentiable(x) else x
    return tuple(draw(k, x) for k, x in zip(keys, arrays, strict=True))


def _leaf(weight_init: Initializer, key: Key, leaf: Array) -> Array:
    return weight_init(key, leaf.shape, leaf.dtype) if leaf.ndim > 1 else jnp.ones(leaf.shape, leaf.dtype)
