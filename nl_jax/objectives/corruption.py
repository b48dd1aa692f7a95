"""Corruptions: pure functions `corrupt(key, clean) -> (corrupted, clean)`, for `nl.augment_batches`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from nl_jax._core import require
from nl_jax._core.numerics import as_floating
from nl_jax._core.require import positive_number
from nl_jax.base import Array, Key

Corruption = Callable[[Key, Array], tuple[Array, Array]]


def masking_noise(fraction: float) -> Corruption:
    """Sets every input to 0 independently with the given probability (Vincent et al. 2008).

    Args:
      fraction: above 0 and below 1.

    Raises:
      ValueError: if `fraction` is not as described.

    >>> corrupted, clean = masking_noise(0.5)(jax.random.key(0), jnp.ones([1, 8]))
    >>> corrupted
    Array([[1., 1., 0., 0., 1., 0., 0., 1.]], dtype=float32)
    """
    require.fraction("fraction", fraction)

    def corrupt(key: Key, clean: Array) -> tuple[Array, Array]:
        masked = jax.random.bernoulli(key, fraction, clean.shape)
        return jnp.where(masked, jnp.zeros_like(clean), clean), clean

    return corrupt


def gaussian_noise(sigma: float) -> Corruption:
    """Adds Gaussian noise: x + σ ξ, ξ standard normal (Vincent et al. 2010). Inputs of integers become floats.

    Args:
      sigma: σ, in units of the inputs, above 0.

    Raises:
      ValueError: if `sigma` is not as described.
    """
    sigma = positive_number("sigma", sigma)

    def corrupt(key: Key, clean: Array) -> tuple[Array, Array]:
        clean = as_floating(clean)
        return clean + sigma * jax.random.normal(key, clean.shape, clean.dtype), clean

    return corrupt
