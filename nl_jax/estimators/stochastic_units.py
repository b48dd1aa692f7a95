"""Stochastic units: what a layer draws at random, given its pre-activation ν (Williams 1992).

In training a layer's axons are drawn; without `nl.reinforce` the same network is its mean field, where x = f(ν).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from nl_jax.base import ActivationFn, Array, Key
from nl_jax.checks import positive_number


class Unit(NamedTuple):
    """A family of distributions p(s | ν), the pre-activation ν its parameter.

    Attributes:
      sample: `sample(key, preactivation) -> s`, independent for every example.
      log_probability: `log_probability(s, preactivation)`, log p by unit or by example, up to a constant. Its
        derivative by ν is the unit's eligibility.
      axons: `axons(s, activation)`, what the layer sends on.
    """

    sample: Callable[[Key, Array], Array]
    log_probability: Callable[[Array, Array], Array]
    axons: Callable[[Array, ActivationFn], Array]

    def eligibility(self, sample: Array, preactivation: Array) -> Array:
        """e = ∂ log p(s | ν)/∂ν, shaped as ν (Williams 1992 §4)."""
        return jax.grad(lambda nu: jnp.sum(self.log_probability(sample, nu)))(preactivation)


def bernoulli() -> Unit:
    """s = 1 with probability σ(ν), else 0; e = s − σ(ν) (Bernoulli logistic unit: Williams 1992 §4).

    The draw takes the place of the layer's activation, and its mean is that of `nl.activations.sigmoid()`: choose this
    one, and the network without noise is the mean field.
    """

    def sample(key: Key, nu: Array) -> Array:
        return jax.random.bernoulli(key, jax.nn.sigmoid(nu)).astype(nu.dtype)

    return Unit(sample, lambda s, nu: -optax.losses.sigmoid_binary_cross_entropy(nu, s), _instead)


def categorical() -> Unit:
    """One of the last axis's units is 1, with probability softmax(ν), the others 0; e = s − softmax(ν).

    For the output that chooses an action. The draw takes the place of the layer's activation.
    """

    def sample(key: Key, nu: Array) -> Array:
        return jax.nn.one_hot(jax.random.categorical(key, nu), nu.shape[-1], dtype=nu.dtype)

    return Unit(sample, lambda s, nu: -optax.losses.softmax_cross_entropy(nu, s), _instead)


def gaussian(*, sigma: float) -> Unit:
    """s = ν + σ ξ, ξ standard normal; e = (s − ν)/σ² (Gaussian unit: Williams 1992 §6).

    The draw takes the place of the pre-activation, x = f(s): the noise of node perturbation.

    Args:
      sigma: σ, in units of the pre-activation, above 0.

    Raises:
      ValueError: if `sigma` is not as described.
    """
    sigma = positive_number("sigma", sigma)

    def sample(key: Key, nu: Array) -> Array:
        return nu + sigma * jax.random.normal(key, nu.shape, nu.dtype)

    return Unit(sample, lambda s, nu: -(((s - nu) / sigma) ** 2) / 2, lambda s, activation: activation(s))


def _instead(sample: Array, activation: ActivationFn) -> Array:
    del activation
    return sample
