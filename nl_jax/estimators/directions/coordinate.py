"""One coordinate at a time: finite differences."""

import jax
import jax.numpy as jnp

from nl_jax.base import Array, Key, Params
from nl_jax.estimators.directions.flat import cut, size
from nl_jax.estimators.directions.signs import signs
from nl_jax.estimators.directions.structured import Direction, Law


def coordinate() -> Law:
    """ξ = ±√P e_i: one component at a time, in order from a random first one, with a random sign.

    No two of K ≤ P samples share a component. Second moment P ‖g‖², relative variance (P − K)/K: at K = P
    the estimate is the gradient by finite differences, exact as σ → 0.
    """

    def law(key: Key, index: Array, template: Params) -> Direction:
        total = size(template)
        if total > 2**30:
            raise ValueError(f"coordinate directions reach 2^30 components, got {total}: use rademacher()")
        first = jax.random.randint(key, (), 0, total, jnp.int32)
        chosen = (first + jnp.asarray(index, jnp.int32) % total) % total
        leaves, tree = jax.tree.flatten(template)
        (sign,) = signs(jax.random.fold_in(key, index), (1,), jnp.float32)
        hot = cut(jnp.arange(total, dtype=jnp.int32) == chosen, leaves)
        parts = [jnp.where(h, sign * total**0.5, 0).astype(x.dtype) for h, x in zip(hot, leaves, strict=True)]
        return jax.tree.unflatten(tree, parts)

    law.__name__ = law.__qualname__ = "coordinate"
    return law
