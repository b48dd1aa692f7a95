"""Trees as vectors: a law draws one flat vector and cuts it into leaves."""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from nl_jax.base import Array, Key, Params


def size(template: Params) -> int:
    """The number of components, P."""
    return sum(leaf.size for leaf in jax.tree.leaves(template))


def cut(flat: Array, template: Params) -> list[Array]:
    """The vector [P] as a list of arrays in the template's shapes, not yet in its dtypes."""
    leaves = jax.tree.leaves(template)
    parts = jnp.split(flat, list(itertools.accumulate(leaf.size for leaf in leaves[:-1])))
    return [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]


def drawn(draw: Callable[[Key, tuple[int, ...], jnp.dtype], Array], key: Key, template: Params) -> Params:
    """A tree of `draw(key, shape, dtype)`, in one call for all leaves of a dtype: compiling a generator is dear."""
    leaves, tree = jax.tree.flatten(template)
    parts: list[Array | None] = [None] * len(leaves)
    for dtype in dict.fromkeys(leaf.dtype for leaf in leaves):
        places = [i for i, leaf in enumerate(leaves) if leaf.dtype == dtype]
        chosen = [leaves[i] for i in places]
        for i, part in zip(places, cut(draw(key, (size(chosen),), dtype), chosen), strict=True):
            parts[i] = part
        key = jax.random.fold_in(key, 0)
    return jax.tree.unflatten(tree, parts)
