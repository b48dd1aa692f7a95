"""Shapes of a batch, for estimators whose state depends on them."""

import jax
import jax.numpy as jnp

from nl_jax.base import Batch, Params


def shapes_of(example: Batch, params: Params) -> Batch:
    """Returns the example's shapes; floating-point leaves get the parameters' dtype, whatever their own is."""
    dtype = jnp.result_type(*jax.tree.leaves(params))

    def shape(x: jax.Array) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, dtype if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype)

    return jax.tree.map(shape, example)
