"""One coordinate at a time: finite differences."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp

from nl_jax.base import Array, Key, Params
from nl_jax.estimators.noise.directions.bits import signs
from nl_jax.estimators.noise.directions.blocks import Fill
from nl_jax.estimators.noise.directions.flat import divide, divided, size
from nl_jax.estimators.noise.directions.layout import is_large
from nl_jax.estimators.noise.directions.sampler import NamedSampler
from nl_jax.estimators.noise.directions.structured import Direction, Sampler


def coordinate() -> Sampler:
    """Samples one component at a time, ξ = ±√P e_i, in order from a random first one, with a random sign.

    No two of K ≤ P samples share a component. Second moment P ‖g‖², relative variance (P − K)/K: at K = P
    the estimate is the gradient by finite differences, exact as σ → 0.
    """

    def sampler(key: Key, index: Array, template: Params) -> Direction:
        leaves = jax.tree.leaves(template)
        total = size(template)
        if total > 2**30:
            raise ValueError(f"coordinate directions have at most 2^30 components, got {total}: use rademacher()")
        first = jax.random.randint(key, (), 0, total, jnp.int32)
        chosen = (first + jnp.asarray(index, jnp.int32) % total) % total
        (sign,) = signs(jax.random.fold_in(key, index), (1,), jnp.float32)
        # Small leaves come first, then the large ones in order.
        small_size = sum(leaf.size for leaf in leaves if not is_large(leaf))
        begins = list(itertools.accumulate((leaf.size for leaf in leaves if is_large(leaf)), initial=small_size))
        value = sign * total**0.5

        def small(leaves: list[Any]) -> list[Array]:
            flat = _hot((chosen, value), jnp.int32(0), size(leaves))
            return [part.astype(leaf.dtype) for part, leaf in zip(divide(flat, leaves), leaves, strict=True)]

        def large(number: int, leaf: Any) -> tuple[Any, Fill]:
            fill: Fill = lambda seed, block, components, dtype: _hot(seed, block.start, components).astype(dtype)
            return (chosen - begins[number], value), fill

        return divided(template, small, large)

    return NamedSampler("coordinate", sampler)


def _hot(seed: tuple[Array, Array], start: Array, components: int) -> Array:
    """Returns components from `start` on: the value at its place, and 0 elsewhere."""
    place, value = seed
    return jnp.where(start + jnp.arange(components, dtype=jnp.int32) == place, value, 0)
