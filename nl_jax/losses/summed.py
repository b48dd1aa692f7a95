"""Shared checks and sums for losses that compare outputs and targets element by element."""

from collections.abc import Callable

import jax.numpy as jnp

from nl_jax._core.numerics import floating_dtype
from nl_jax.base import Array


def summed(name: str, terms: Callable[[Array, Array], Array], outputs: Array, targets: Array) -> Array:
    """Sums terms(outputs, targets) over all but the first axis.

    Args:
      name: the loss's name, for the error message.
      terms: an elementwise function; it receives both arrays in the dtype that JAX promotes them to, or in JAX's
        default float if that is not floating.
      outputs: shape [batch, …].
      targets: of the same shape.

    Raises:
      ValueError: if the shapes differ or have no batch axis.
    """
    outputs, targets = jnp.asarray(outputs), jnp.asarray(targets)
    if outputs.shape != targets.shape or outputs.ndim == 0:
        raise ValueError(
            f"{name} compares arrays of one shape [batch, …]; got outputs {outputs.shape} and targets "
            f"{targets.shape} (labels need jax.nn.one_hot first)"
        )
    dtype = floating_dtype(jnp.result_type(outputs, targets))
    return jnp.sum(terms(outputs.astype(dtype), targets.astype(dtype)), axis=tuple(range(1, outputs.ndim)))
