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


def as_floating(x: Array) -> Array:
    """Returns the array in the dtype to compute in."""
    return x.astype(floating_dtype(x.dtype))


def wide_dtype(*dtypes: jnp.dtype) -> jnp.dtype:
    """Returns the dtype to sum in: float32 at least, because in half precision a long sum stops growing.

    It holds all floating dtypes, complex if one is, and JAX's default float for integers and booleans alone.
    """
    single = jnp.dtype(jnp.float32)
    floats = [dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.inexact)] or map(floating_dtype, dtypes)
    wide = [dtype if dtype.itemsize >= 4 else single for dtype in floats]
    return functools.reduce(np.promote_types, wide, single)  # NumPy's, which no setting of JAX forbids


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
    tree = in_one_dtype(tree)
    for length in (largest_component, optax.tree.norm):
        tree = divided(tree, length(tree))
    return tree


def largest_component(tree: Params) -> Array:
    """Returns the largest absolute value of any component."""
    largest = in_one_dtype([jnp.max(jnp.abs(x), initial=0) for x in jax.tree.leaves(tree)])
    return jnp.max(jnp.stack(largest)) if largest else jnp.float32(0)


def divided(tree: Params, by: Array) -> Params:
    """Divides a tree by a scalar. It is not multiplied by its inverse, which need not be a normal number."""
    return jax.tree.map(lambda x: x / by.astype(x.dtype), tree)


def dot(a: Params, b: Params) -> Array:
    """Computes aᵀb, summed in float32 at least."""
    # Not by jnp.vdot, which in JAX 0.8 sums one after the other on a CPU: for 10⁵ ones it is off by 10⁻³.
    products = jax.tree.map(lambda x, y: jnp.sum(x * y), widened(a), widened(b))
    return functools.reduce(jnp.add, in_one_dtype(jax.tree.leaves(products)) or [jnp.float32(0)])


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Returns the mean of independent values [n] and its standard error; inf if n is 1 or a value is not finite."""
    known = len(values) > 1 and np.isfinite(values).all()
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5) if known else math.inf
