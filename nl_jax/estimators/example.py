"""Shapes of a batch, for estimators whose state depends on them."""

import jax
import jax.numpy as jnp

from nl_jax.base import Batch, Params


def shapes_of(example: Batch, params: Params) -> Batch:
    """The example's shapes; what is floating-point there has the parameters' dtype, in whatever it was given."""
    dtype = jnp.result_type(*jax.tree.leaves(params))

    def shape(x: jax.Array) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, dtype if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype)

    return jax.tree.map(shape, example)
