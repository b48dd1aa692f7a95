"""Stochastic units: distributions of a layer's activity given its pre-activation ν (Williams 1992).

In training a layer's axons (activity) are drawn at random; without `nl.reinforce` the same network is its mean field,
where x = f(ν). Draws and eligibilities are computed in float32 at least: random numbers of half precision are too
coarse for rare events.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from nl_jax._core.numerics import widened
from nl_jax._core.require import positive_number
from nl_jax.base import ActivationFn, Array, Key


class Unit(NamedTuple):
    """A family of distributions p(s | ν), with the pre-activation ν as its parameter.

    Attributes:
      sample: `sample(key, preactivation) -> s`, independent for every example.
      log_probability: `log_probability(s, preactivation)`, log p by unit or by example, up to a constant. Its
        derivative by ν is the unit's eligibility.
      axons: `axons(s, activation)`, the layer's axons.
    """

    sample: Callable[[Key, Array], Array]
    log_probability: Callable[[Array, Array], Array]
    axons: Callable[[Array, ActivationFn], Array]

    def eligibility(self, sample: Array, preactivation: Array) -> Array:
        """Computes e = ∂ log p(s | ν)/∂ν, shaped as ν, in float32 at least (Williams 1992 §4)."""
        return jax.grad(lambda nu: jnp.sum(self.log_probability(widened(sample), nu)))(widened(preactivation))


def bernoulli() -> Unit:
    """s = 1 with probability σ(ν), else 0; e = s − σ(ν) (Bernoulli logistic unit: Williams 1992 §4).

    The sample replaces the layer's activation. Its mean is that of `nl.activations.sigmoid()`: with this activation the
    network without noise is the mean field.
    """

    def sample(key: Key, nu: Array) -> Array:
        return jax.random.bernoulli(key, jax.nn.sigmoid(widened(nu))).astype(nu.dtype)

    return Unit(sample, lambda s, nu: -optax.losses.sigmoid_binary_cross_entropy(nu, s), _instead)


def categorical() -> Unit:
    """Samples one of the last axis's units to be 1, with probability softmax(ν), the others 0; e = s − softmax(ν).

    For the output that chooses an action. The sample replaces the layer's activation.
    """

    def sample(key: Key, nu: Array) -> Array:
        return jax.nn.one_hot(jax.random.categorical(key, widened(nu)), nu.shape[-1], dtype=nu.dtype)

    return Unit(sample, lambda s, nu: -optax.losses.softmax_cross_entropy(nu, s), _instead)


def gaussian(*, sigma: float) -> Unit:
    """s = ν + σ ξ, ξ standard normal; e = (s − ν)/σ² (Gaussian unit: Williams 1992 §6).

    The sample replaces the pre-activation, x = f(s): the noise of node perturbation.

    Args:
      sigma: σ, in units of the pre-activation, above 0, and at least 10 eps of its dtype: rounding s to steps of eps,
        as between 1 and 2, then adds less than a thousandth to its variance.

    Raises:
      ValueError: if `sigma` is not as described; when drawn, if it is too small for the pre-activation's dtype.
    """
    sigma = positive_number("sigma", sigma)

    def sample(key: Key, nu: Array) -> Array:
        least = 10 * float(jnp.finfo(nu.dtype).eps)
        if sigma < least:
            raise ValueError(
                f"sigma = {sigma} is lost in {nu.dtype}: rounding leaves too little of noise below {least:.1g} to "
                "learn from. Take a larger sigma, or parameters and inputs of float32"
            )
        wide = widened(nu)
        return (wide + sigma * jax.random.normal(key, wide.shape, wide.dtype)).astype(nu.dtype)

    return Unit(sample, lambda s, nu: -(((s - nu) / sigma) ** 2) / 2, lambda s, activation: activation(s))


def _instead(sample: Array, activation: ActivationFn) -> Array:
    del activation
    return sample
