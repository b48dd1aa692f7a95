"""Laws of random directions ξ: zero mean, E ξξᵀ = I, so that E (gᵀξ) ξ = g for any gradient g.

A law is a function `draw(key, template) -> direction`, a tree of the template's shapes and dtypes.
"""

import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from nl_jax.base import Array, Key, Params

Direction = Callable[[Key, Params], Params]


def gaussian() -> Direction:
    """ξ ~ N(0, 1) for every component, as in seed 000.

    Relative variance E‖ĝ − g‖²/‖g‖² of the mean of K products (gᵀξ) ξ in P dimensions: (P + 1)/K.
    """
    return _flat("gaussian", jax.random.normal)


def rademacher() -> Direction:
    """ξ = ±1 with equal chance for every component; each random word gives 32 signs.

    Relative variance (P − 1)/K: the least of any law with independent components.
    """
    return _flat("rademacher", _signs)


def _flat(name: str, draw: Callable) -> Direction:
    """A law that draws all leaves of a dtype in one call: compiling a generator costs more than using it."""

    def direction(key: Key, template: Params) -> Params:
        leaves, tree = jax.tree.flatten(template)
        drawn: list[Array | None] = [None] * len(leaves)
        for dtype in dict.fromkeys(leaf.dtype for leaf in leaves):
            places = [i for i, leaf in enumerate(leaves) if leaf.dtype == dtype]
            flat = draw(key, (sum(leaves[i].size for i in places),), dtype)
            parts = jnp.split(flat, list(itertools.accumulate(leaves[i].size for i in places[:-1])))
            for i, part in zip(places, parts, strict=True):
                drawn[i] = part.reshape(leaves[i].shape)
            key = jax.random.fold_in(key, 0)
        return jax.tree.unflatten(tree, drawn)

    direction.__name__ = direction.__qualname__ = name  # what help() shows of a default
    return direction


def _signs(key: Key, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    size = math.prod(shape)
    words = jax.random.bits(key, (-(-size // 32), 1), jnp.uint32)
    bits = (words >> jnp.arange(32, dtype=jnp.uint32)[None, :]) & 1
    return (2 * bits.reshape(-1)[:size].astype(dtype) - 1).reshape(shape)
