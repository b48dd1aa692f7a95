"""Shapes of a batch, for estimators whose state depends on them."""

import jax
import jax.numpy as jnp

from nl_jax.base import Batch, Objective, Params


def shapes_of(objective: Objective, example: Batch, params: Params) -> Batch:
    """Returns the example's shapes; floating-point leaves get the parameters' dtype, whatever their own is.

    Raises:
      ValueError: if the objective cannot be called with the example.
    """
    dtype = jnp.result_type(*jax.tree.leaves(params))

    def shape(x: jax.Array) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, dtype if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype)

    shapes = jax.tree.map(shape, example)
    try:
        jax.eval_shape(objective, params, shapes)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "example must be a batch as the objective takes it, such as (inputs, targets); with this one the objective "
            f"fails: {error}"
        ) from error
    return shapes
