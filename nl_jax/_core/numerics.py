"""Dtypes to compute in, unit vectors, and means with their standard errors."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nl_jax.base import Array, Params, State


def floating_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """Returns the dtype to compute in: JAX's default float for integers and booleans, whose arithmetic wraps."""
    return dtype if jnp.issubdtype(dtype, jnp.inexact) else jnp.dtype(jnp.result_type(float))


def floating(x: Array) -> Array:
    """Returns the array in the dtype to compute in."""
    return x.astype(floating_dtype(x.dtype))


def wide_dtype(*dtypes: jnp.dtype) -> jnp.dtype:
    """Returns the dtype to sum in: float32 at least, because in half precision a long sum stops growing.

    It is the widest of the floating dtypes, and JAX's default float for integers and booleans alone.
    """
    floats = [dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.inexact)] or map(floating_dtype, dtypes)
    return max(jnp.dtype(jnp.float32), *floats, key=lambda dtype: dtype.itemsize)


def widened(tree: State) -> State:
    """Returns the tree with every leaf cast to the dtype to sum it in."""
    return jax.tree.map(lambda x: x.astype(wide_dtype(x.dtype)), tree)


def all_finite(tree: State) -> Array:
    """Returns whether every element of every leaf is finite."""
    return jnp.all(jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)], bool))


def in_one_dtype(tree: State) -> State:
    """Returns the tree with every leaf cast to one dtype, the one to sum all of them in."""
    return optax.tree.cast(tree, wide_dtype(*(leaf.dtype for leaf in jax.tree.leaves(tree))))


def unit_vector(tree: Params) -> Params:
    """Divides a tree by its length as a vector, in the dtype to sum in; NaN if the tree is zero.

    It is first divided by its largest component, so that squares neither underflow nor overflow.
    """
    tree = widened(tree)
    for length in (largest_component, optax.tree.norm):
        tree = divided(tree, length(tree))
    return tree


def largest_component(tree: Params) -> Array:
    """Returns the largest absolute value of any component."""
    return functools.reduce(jnp.maximum, [jnp.max(jnp.abs(x), initial=0) for x in jax.tree.leaves(tree)])


def divided(tree: Params, by: Array) -> Params:
    """Divides a tree by a scalar. It is not multiplied by its inverse, which need not be a normal number."""
    return jax.tree.map(lambda x: x / by, tree)


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Returns the mean of independent values [n] and its standard error; inf if n is 1 or a value is not finite."""
    known = len(values) > 1 and np.isfinite(values).all()
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5) if known else math.inf
