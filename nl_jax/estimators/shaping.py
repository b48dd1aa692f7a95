"""Fitness shaping: utilities in the place of losses, for evolution strategies.

A shaping is a function `shaping(losses) -> utilities`, both [n], over all evaluations of one estimate.
"""

from collections.abc import Callable

import jax.numpy as jnp

from nl_jax.base import Array

Shaping = Callable[[Array], Array]


def centred_ranks(losses: Array) -> Array:
    """The losses' ranks, evenly spaced from −1/2 (lowest) to 1/2 (highest): blind to outliers and to scale.

    Salimans et al. 2017. Equal losses share the mean of their ranks. Shape [n], n at least 2.

    >>> import jax.numpy as jnp
    >>> centred_ranks(jnp.array([3.0, 100.0, 1.0]))
    Array([ 0. ,  0.5, -0.5], dtype=float32)
    """
    below = jnp.sum(jnp.expand_dims(losses, 0) < jnp.expand_dims(losses, 1), axis=1)
    not_above = jnp.sum(jnp.expand_dims(losses, 0) <= jnp.expand_dims(losses, 1), axis=1)
    rank = (below + not_above - 1).astype(losses.dtype) / 2
    return rank / (losses.shape[0] - 1) - 0.5


def z_scores(losses: Array) -> Array:
    """(E − mean)/standard deviation: blind to scale. Shape [n]; all 0 where all losses are equal.

    >>> import jax.numpy as jnp
    >>> z_scores(jnp.array([3.0, 5.0]))
    Array([-1.,  1.], dtype=float32)
    """
    centred = losses - jnp.mean(losses)
    deviation = jnp.std(losses)
    return jnp.where(deviation > 0, centred / jnp.where(deviation > 0, deviation, 1), 0)
