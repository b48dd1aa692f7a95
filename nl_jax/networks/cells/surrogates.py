"""Spike functions, H(v) = 1 for v above 0 and else 0, with surrogate derivatives."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from nl_jax._core.require import positive_number
from nl_jax.base import Array

Spike = Callable[[Array], Array]
"""`spike(v) -> 0 or 1`, in v's dtype; v is the membrane potential minus the threshold."""


def heaviside() -> Spike:
    """H without a derivative, for estimators that need none.

    Raises:
      ValueError: when differentiated.
    """

    def derivative(v: Array) -> Array:
        raise ValueError(
            "a spike has no useful derivative (it is 0 almost everywhere): use an estimator that needs none "
            "(node_perturbation, weight_perturbation, three_factor), or choose one: nl.surrogates.fast_sigmoid()"
        )

    return _spike(derivative)


def fast_sigmoid(slope: float = 10.0) -> Spike:
    """Fast-sigmoid surrogate: H'(v) = 1/(1 + k|v|)² (SuperSpike: Zenke & Ganguli 2018).

    Args:
      slope: k, above 0.

    Raises:
      ValueError: if `slope` is not as described.
    """
    k = positive_number("slope", slope)
    return _spike(lambda v: 1 / (1 + k * jnp.abs(v)) ** 2)


def arctan(slope: float = 2.0) -> Spike:
    """Arctangent surrogate: H'(v) = (α/2)/(1 + (π α v/2)²) (Fang et al. 2021).

    Args:
      slope: α, above 0.

    Raises:
      ValueError: if `slope` is not as described.
    """
    alpha = positive_number("slope", slope)
    return _spike(lambda v: alpha / 2 / (1 + (jnp.pi * alpha * v / 2) ** 2))


def triangle(height: float = 0.3, width: float = 1.0) -> Spike:
    """Triangular surrogate: H'(v) = γ max(0, 1 − |v|/w) (Bellec et al. 2020, eq. 3).

    Args:
      height: γ, above 0.
      width: w, above 0, usually the threshold.

    Raises:
      ValueError: if a setting is not as described.
    """
    gamma, w = positive_number("height", height), positive_number("width", width)
    return _spike(lambda v: gamma * jnp.maximum(0, 1 - jnp.abs(v) / w))


def straight_through() -> Spike:
    """Straight-through surrogate: H'(v) = 1 (Bengio et al. 2013)."""
    return _spike(jnp.ones_like)


def _spike(derivative: Callable[[Array], Array]) -> Spike:
    @jax.custom_jvp
    def spike(v: Array) -> Array:
        return jnp.heaviside(v, jnp.zeros_like(v))

    @spike.defjvp
    def _tangent(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
        (v,) = primals
        return spike(v), derivative(v) * tangents[0]

    return spike
