"""Losses: `loss(outputs, targets) -> [batch]`, one value per example, never averaged.

Losses that exist in optax are taken from optax; the functions here apply them to a batch and check shapes.
"""

from nl_jax.losses.cross_entropy import binary_cross_entropy, cross_entropy
from nl_jax.losses.kullback_leibler import binary_kullback_leibler, kullback_leibler
from nl_jax.losses.normalised import normalised, normalised_kullback_leibler
from nl_jax.losses.p_norm import half_squared_error, p_norm

__all__ = [
    "binary_cross_entropy",
    "binary_kullback_leibler",
    "cross_entropy",
    "half_squared_error",
    "kullback_leibler",
    "normalised",
    "normalised_kullback_leibler",
    "p_norm",
]
