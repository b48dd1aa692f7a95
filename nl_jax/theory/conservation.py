"""Invariants of gradient flow in linear networks, for any data.

The network is ŷ = W_L ⋯ W_1 x without biases, under any loss. Weights are [units, inputs], the transpose of those of
`nl.connections.dense`. A step of size η changes an invariant by order η², and steps over a fixed time by order η; other
quantities change by order η and 1.
"""

import itertools
from collections.abc import Sequence

from jax import Array


def backprop(weights: Sequence[Array]) -> tuple[Array, ...]:
    """Computes W_l W_lᵀ − W_{l+1}ᵀ W_{l+1}, which gradient flow conserves at each hidden layer l (Arora et al. 2018).

    It is 0 for balanced weights: layers that start balanced stay balanced, and small weights stay nearly balanced.

    Args:
      weights: W_1 … W_L.

    Returns:
      L − 1 matrices, [units_l, units_l].
    """
    return tuple(low @ low.T - high.T @ high for low, high in itertools.pairwise(weights))


def feedback_alignment(W0: Array, W: Array, B: Array) -> Array:
    """Computes W₀ W₀ᵀ − (B W + Wᵀ Bᵀ), conserved by two layers under feedback alignment (Lillicrap et al. 2016).

    From small initial weights, B W + Wᵀ Bᵀ ≈ W₀ W₀ᵀ, which is positive semidefinite, so W must align with Bᵀ.

    Args:
      W0: weights of the lower layer, [hidden, inputs].
      W: weights of the upper layer, [outputs, hidden].
      B: feedback weights, [hidden, outputs].

    Returns:
      [hidden, hidden].
    """
    sent = B @ W
    return W0 @ W0.T - (sent + sent.T)
