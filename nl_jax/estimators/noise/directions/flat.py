"""Trees as vectors: small leaves are drawn as one flat vector, large ones block by block."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from nl_jax.base import Array, Key, Params
from nl_jax.estimators.noise.directions.blocks import Block, Blocks, Fill
from nl_jax.estimators.noise.directions.layout import is_large
from nl_jax.estimators.noise.directions.placement import everywhere, on_mesh, placed

Draw = Callable[[Key, tuple[int, ...], Any], Array]
"""`draw(key, shape, dtype) -> array` of independent components."""


def size(template: Params) -> int:
    """Returns the number of components, P."""
    return sum(leaf.size for leaf in jax.tree.leaves(template))


def divide(flat: Array, template: Params) -> list[Array]:
    """Splits the vector [P] into arrays of the template's shapes, not yet in its dtypes."""
    leaves = jax.tree.leaves(template)
    parts = jnp.split(flat, list(itertools.accumulate(leaf.size for leaf in leaves[:-1])))
    return [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]


def divided(
    template: Params,
    small: Callable[[list[Any]], Sequence[Any]],
    large: Callable[[int, Any], tuple[Any, Fill]],
    in_blocks: Callable[[Any], bool] = is_large,
) -> Params:
    """Returns a direction of arrays for small leaves and `Blocks` for large ones.

    Args:
      template: a tree of shapes.
      small: `small(leaves) -> arrays`, all small leaves at once, because compiling a generator is expensive.
      large: `large(number, leaf) -> (seed, fill)` for the number-th large leaf.
      in_blocks: whether a leaf is drawn in blocks.
    """
    leaves, tree = jax.tree.flatten(template)
    places = [i for i, leaf in enumerate(leaves) if not in_blocks(leaf)]
    parts: dict[int, Any] = {}
    if places:
        parts |= zip(places, everywhere(small([leaves[i] for i in places]), on_mesh(leaves)), strict=True)
    for number, i in enumerate(i for i in range(len(leaves)) if i not in parts):
        seed, fill = large(number, leaves[i])
        leaf = leaves[i]
        parts[i] = Blocks(seed, jnp.int32(0), fill, leaf.shape, leaf.dtype, placed(leaf))
    return jax.tree.unflatten(tree, [parts[i] for i in range(len(leaves))])


def drawn(draw: Draw, key: Key, template: Params, in_blocks: Callable[[Any], bool] = is_large) -> Params:
    """Draws a tree of independent components by `draw(key, shape, dtype)`; large leaves as `Blocks`."""

    def small(leaves: list[Any]) -> list[Array]:
        parts: list[Any] = list(leaves)
        own = key
        for dtype in dict.fromkeys(leaf.dtype for leaf in leaves):
            places = [i for i, leaf in enumerate(leaves) if leaf.dtype == dtype]
            chosen = [leaves[i] for i in places]
            for i, part in zip(places, divide(draw(own, (size(chosen),), dtype), chosen), strict=True):
                parts[i] = part
            own = jax.random.fold_in(own, 0)
        return parts

    def fill(seed: Key, block: Block, components: int, dtype: Any) -> Array:
        return draw(jax.random.fold_in(seed, block.number), (components,), dtype)

    return divided(template, small, lambda number, leaf: (jax.random.fold_in(key, number + 1), fill), in_blocks)
