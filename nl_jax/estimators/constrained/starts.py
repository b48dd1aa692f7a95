"""Where iterations on the axons begin: `start(feedforward) -> axons`, from those of the network's own run."""

import jax
import jax.numpy as jnp

from nl_jax.estimators.constrained.lagrangian import Axons


def feedforward(axons: Axons) -> Axons:
    """The network's own axons: the constraints hold, and what is left to find are the multipliers."""
    return axons


def zeros(axons: Axons) -> Axons:
    """Silence: the forward pass is found on the way as well."""
    return jax.tree.map(jnp.zeros_like, axons)
