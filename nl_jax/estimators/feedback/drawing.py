"""Random initialisation of feedback weights, and the noise they learn from."""

import functools
import math

import jax
import jax.numpy as jnp

from nl_jax._core.numerics import wide_dtype
from nl_jax._core.require import typed_key
from nl_jax.base import Array, Initializer, Key, Params


def drawn(weight_init: Initializer | None, key: Key, params: Params) -> Params:
    """Draws a tree like `params`; leaves of fewer than two axes are ones.

    Args:
      weight_init: initializer, called with each leaf's shape; None for normal values of the leaf's `magnitude`.
      key: typed key.
      params: the forward weights.
    """
    typed_key(key)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    one = _normal if weight_init is None else functools.partial(_initialised, weight_init)
    several = [
        one(k, leaf) if leaf.ndim > 1 else jnp.ones(leaf.shape, leaf.dtype)
        for k, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(tree, several)


def magnitude(weight: Array) -> Array:
    """Computes the root mean square of a weight, or 1/√(fan in) of a weight [inputs, units] that is zero; no axes.

    Of an initialised weight it is the scale on which credit keeps its size. It holds for every layout of the weight,
    such as [units, inputs], and for stacks of weights, whose fan in the shape does not show.
    """
    wide = weight.astype(wide_dtype(weight.dtype))
    found = jnp.sqrt(jnp.mean(wide**2))
    usual = 1 / math.sqrt(max(1, math.prod(weight.shape[:-1])))
    return jnp.where(found > 0, found, usual).astype(weight.dtype)


def normal_like(key: Key, arrays: tuple[Array, ...]) -> tuple[Array, ...]:
    """Draws independent standard normal noise in the arrays' shapes; indices and masks stay as they are."""
    keys = jax.random.split(key, len(arrays))
    draw = lambda k, x: jax.random.normal(k, x.shape, x.dtype) if continuous(x) else x
    return tuple(draw(k, x) for k, x in zip(keys, arrays, strict=True))


def continuous(x: Array) -> bool:
    """Returns whether x can be perturbed and receive credit: an index or a mask cannot."""
    return jnp.issubdtype(x.dtype, jnp.floating)


def _normal(key: Key, leaf: Array) -> Array:
    return magnitude(leaf) * jax.random.normal(key, leaf.shape, leaf.dtype)


def _initialised(weight_init: Initializer, key: Key, leaf: Array) -> Array:
    return weight_init(key, leaf.shape, leaf.dtype)
