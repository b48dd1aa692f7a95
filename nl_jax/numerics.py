"""How sums are kept."""

import jax
import jax.numpy as jnp

from nl_jax.base import State


def wide_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype to sum in: float32 at least, for in half precision a long sum stops growing."""
    return dtype if dtype.itemsize >= 4 else jnp.dtype(jnp.float32)


def widened(tree: State) -> State:
    """The tree with every leaf in the dtype to sum it in."""
    return jax.tree.map(lambda x: x.astype(wide_dtype(x.dtype)), tree)
