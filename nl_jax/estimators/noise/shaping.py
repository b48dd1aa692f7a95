"""Fitness shaping: utilities instead of losses, for evolution strategies.

A shaping is a function `shaping(losses) -> utilities`, both [n], over all evaluations of one estimate.
"""

from collections.abc import Callable

import jax.numpy as jnp

from nl_jax.base import Array

Shaping = Callable[[Array], Array]


def centred_ranks(losses: Array) -> Array:
    """Returns the losses' ranks, evenly spaced from −1/2 (lowest) to 1/2 (highest): outliers and scale do not matter.

    Salimans et al. 2017. Equal losses share the mean of their ranks, and NaN ranks highest. Shape [n], n at least 2.

    >>> import jax.numpy as jnp
    >>> centred_ranks(jnp.array([3.0, 100.0, 1.0]))
    Array([ 0. ,  0.5, -0.5], dtype=float32)
    """
    losses = jnp.where(jnp.isnan(losses), jnp.inf, losses)
    ordered = jnp.sort(losses)
    below, not_above = (jnp.searchsorted(ordered, losses, side=side) for side in ("left", "right"))
    rank = (below + not_above - 1).astype(losses.dtype) / 2
    return rank / (losses.shape[0] - 1) - 0.5


def z_scores(losses: Array) -> Array:
    """Returns (E − mean)/standard deviation: scale does not matter. Shape [n].

    All 0 if losses differ only by rounding. A loss that is not finite counts as the highest finite one.

    >>> import jax.numpy as jnp
    >>> z_scores(jnp.array([3.0, 5.0]))
    Array([-1.,  1.], dtype=float32)
    """
    finite = jnp.isfinite(losses)
    losses = jnp.where(finite, losses, jnp.max(losses, where=finite, initial=-jnp.inf))
    centred, deviation = losses - jnp.mean(losses), jnp.std(losses)
    told_apart = deviation > 8 * jnp.finfo(losses.dtype).eps * jnp.max(jnp.abs(losses))
    return jnp.where(told_apart, centred / jnp.where(told_apart, deviation, 1), 0)
