"""Invariants of gradient flow in linear networks, whatever the data.

Weights are [units, inputs], the transpose of what `nl.connections.dense` holds, of ŷ = W_L ⋯ W_1 x without biases and
under any loss. Steps of η move an invariant by η² each, over a fixed time by η; other quantities by η and 1.
"""

import itertools
from collections.abc import Sequence

from jax import Array


def backprop(weights: Sequence[Array]) -> tuple[Array, ...]:
    """W_l W_lᵀ − W_{l+1}ᵀ W_{l+1}, which gradient flow conserves at every hidden layer l (Arora et al. 2018).

    0 of balanced weights: layers that begin balanced stay so, and small ones all but so.

    Args:
      weights: W_1 … W_L.

    Returns:
      L − 1 matrices, [units_l, units_l].
    """
    return tuple(low @ low.T - high.T @ high for low, high in itertools.pairwise(weights))


def feedback_alignment(W0: Array, W: Array, B: Array) -> Array:
    """W₀ W₀ᵀ − (B W + Wᵀ Bᵀ), which two layers under feedback alignment conserve (Lillicrap et al. 2016).

    From small weights, B W + Wᵀ Bᵀ ≈ W₀ W₀ᵀ, positive semidefinite: W has no choice but to align with Bᵀ.

    Args:
      W0: weights of the lower layer, [hidden, inputs].
      W: of the upper, [outputs, hidden].
      B: the feedback, [hidden, outputs].

    Returns:
      [hidden, hidden].
    """
    sent = B @ W
    return W0 @ W0.T - (sent + sent.T)
