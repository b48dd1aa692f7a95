"""One coordinate at a time: finite differences."""

import jax
import jax.numpy as jnp

from nl_jax.base import Array, Key, Params
from nl_jax.estimators.directions.flat import cut, size
from nl_jax.estimators.directions.structured import Direction, Law


def coordinate() -> Law:
    """ξ = √P e_i: one component at a time, in order from a random first one.

    No two of K ≤ P samples share a component. Second moment P ‖g‖², relative variance (P − K)/K: at K = P
    the estimate is the gradient by finite differences, exact as σ → 0.
    """

    def law(key: Key, index: Array, template: Params) -> Direction:
        total = size(template)
        chosen = (jax.random.randint(key, (), 0, total) + index % total) % total
        leaves, tree = jax.tree.flatten(template)
        hot = cut(jnp.arange(total, dtype=jnp.int32) == chosen, leaves)
        parts = [jnp.where(h, jnp.asarray(total**0.5, x.dtype), 0) for h, x in zip(hot, leaves, strict=True)]
        return jax.tree.unflatten(tree, parts)

    law.__name__ = law.__qualname__ = "coordinate"
    return law
