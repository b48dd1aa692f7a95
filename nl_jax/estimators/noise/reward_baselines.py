"""Reinforcement baselines: reference values for a reward or a loss (Williams 1992).

Subtracting anything that does not depend on a sample's own noise adds no bias, because E ∇ log p = 0.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from nl_jax._core.require import fraction
from nl_jax.base import Array, State
from nl_jax.estimators.noise.engine.running_mean import nothing_seen


class RewardBaseline(NamedTuple):
    """The loss to expect of each sample before it is drawn.

    Attributes:
      init: `init() -> state`, the state carried from one estimate to the next.
      expected: `expected(losses, state) -> expected losses`, both [samples, batch]; the expected loss of a sample
        must not depend on that sample's own.
      update: `update(state, loss) -> state`, given the mean loss of the estimate.
      least_samples: the minimum number of samples of an estimate.
    """

    init: Callable[[], State]
    expected: Callable[[Array, State], Array]
    update: Callable[[State, Array], State]
    least_samples: int = 1


def none() -> RewardBaseline:
    """Uses no baseline: b = 0."""
    return RewardBaseline(lambda: (), lambda losses, state: jnp.zeros_like(losses), lambda state, loss: state)


def running_mean(decay: float = 0.9) -> RewardBaseline:
    """Compares with the mean loss of past estimates (reinforcement comparison; Sutton 1984, Williams 1992).

    Args:
      decay: weight of the past in the exponential mean, at least 0 and below 1. The mean is corrected for its start;
        the very first estimate has no baseline.

    Raises:
      ValueError: if `decay` is not as described.
    """
    decay = fraction("decay", decay, or_zero=True)

    def expected(losses: Array, state: State) -> Array:
        return jnp.broadcast_to(state.mean.astype(losses.dtype), losses.shape)

    return RewardBaseline(nothing_seen, expected, lambda state, loss: state.seen(loss, decay))


def leave_one_out() -> RewardBaseline:
    """Compares with the mean loss of the same example's other samples; K must be at least 2 (Kool et al. 2019).

    It adapts to each example's own difficulty, which a running mean cannot.
    """

    def expected(losses: Array, state: State) -> Array:
        del state
        return (jnp.sum(losses, axis=0, keepdims=True) - losses) / (len(losses) - 1)

    return RewardBaseline(lambda: (), expected, lambda state, loss: state, least_samples=2)
