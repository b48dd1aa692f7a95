"""Laws with independent components: with variance 1 and kurtosis κ, the relative variance is (P − 2 + κ)/K."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from nl_jax._core.require import positive_number
from nl_jax.base import Array, Key, Params
from nl_jax.estimators.noise.directions.bits import normal, signs
from nl_jax.estimators.noise.directions.flat import Draw, drawn
from nl_jax.estimators.noise.directions.sampler import NamedSampler
from nl_jax.estimators.noise.directions.structured import Direction, Sampler


def gaussian() -> Sampler:
    """Samples ξ ~ N(0, 1) for every component, as in seed 000.

    Second moment of (gᵀξ) ξ: (P + 2) ‖g‖². Relative variance E‖ĝ − g‖²/‖g‖² of the mean of K in P
    dimensions: (P + 1)/K.
    """
    return _independent("gaussian", normal)


def rademacher() -> Sampler:
    """Samples ξ = ±1 with equal probability for every component; each random word gives 32 signs.

    Second moment P ‖g‖², relative variance (P − 1)/K: the lowest of any sampler with independent components.
    """
    return _independent("rademacher", signs)


def sparse(density: float) -> Sampler:
    """Samples ξ = ±1/√p with probability p for every component, and otherwise 0.

    Second moment (P − 1 + 1/p) ‖g‖², relative variance (P − 2 + 1/p)/K: few components are displaced at once, and the
    variance is hardly larger as long as p P is well above 1.

    Args:
      density: p, above 0 and at most 1.
    """
    density = positive_number("density", density)
    if density > 1:
        raise ValueError(f"density must be at most 1, the chance of a component to be displaced; got {density}")

    def draw(key: Key, shape: tuple[int, ...], dtype: Any) -> Array:
        kept = jax.random.uniform(jax.random.fold_in(key, 1), shape) < density
        return jnp.where(kept, signs(key, shape, dtype) * jnp.asarray(1 / math.sqrt(density), dtype), 0)

    return _independent("sparse", draw, density=density)


def _independent(name: str, draw: Draw, **settings: Any) -> Sampler:
    def sampler(key: Key, index: Array, template: Params) -> Direction:
        return drawn(draw, jax.random.fold_in(key, index), template)

    return NamedSampler(name, sampler, **settings)
