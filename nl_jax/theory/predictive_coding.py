"""Equilibria of predictive coding in linear networks, x_l = W_lᵀ x_{l−1} (Innocenti et al. 2024)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def equilibrium_energy(weights: Sequence[jax.Array], x: jax.Array, y: jax.Array, penalty: ArrayLike) -> jax.Array:
    """The minimum energy over the hidden axons (activity) for one example, F* = ½ rᵀ S⁻¹ r.

        F = ½ ‖y − W_Lᵀ x_{L−1}‖² + μ/2 Σ_{l<L} ‖x_l − W_lᵀ x_{l−1}‖²
        r = y − (W_1 … W_L)ᵀ x,   S = I + μ⁻¹ Σ_{l≥2} P_lᵀ P_l,   P_l = W_l … W_L

    Each hidden layer's error acts on the output like noise of variance 1/μ passed through the layers above it. As
    μ → ∞, S → I and F* is the loss that backprop descends; predictive coding descends F* with μ = 1.

    Args:
      weights: W_1 … W_L, each [inputs, outputs], lowest layer first.
      x: one input, [inputs].
      y: its target, [outputs].
      penalty: μ, above 0.

    Returns:
      A scalar. Predictive coding learns by its derivative with respect to the weights.

    >>> weight = jnp.ones((1, 1))
    >>> print(f"{equilibrium_energy([weight, weight], jnp.ones(1), jnp.array([3.0]), penalty=1.0):.4f}")  # (3 − 1)²/4
    1.0000
    """
    above, S = jnp.eye(y.size, dtype=y.dtype), jnp.eye(y.size, dtype=y.dtype)
    for W in reversed(weights[1:]):
        above = W @ above
        S += above.T @ above / penalty
    r = y - x @ (weights[0] @ above)
    return 0.5 * r @ jax.scipy.linalg.solve(S, r, assume_a="pos")
