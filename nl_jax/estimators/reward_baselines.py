"""Reinforcement baselines: reference values for a reward or a loss (Williams 1992).

Whatever does not depend on a sample's own noise may be taken from its loss without a bias, for E ∇ log p = 0.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from nl_jax.base import Array, State
from nl_jax.estimators.running_mean import checked_decay, nothing_seen


class RewardBaseline(NamedTuple):
    """What to expect of each sample before it is drawn.

    Attributes:
      init: `init() -> state`, what it carries from one estimate to the next.
      expected: `expected(losses, state) -> expected losses`, both [samples, batch]; the expected loss of a sample
        must not depend on that sample's own.
      update: `update(state, loss) -> state`, given the mean loss of the estimate.
      least_samples: how many samples an estimate must have for it.
    """

    init: Callable[[], State]
    expected: Callable[[Array, State], Array]
    update: Callable[[State, Array], State]
    least_samples: int = 1


def none() -> RewardBaseline:
    """0: the loss itself is the judge."""
    return RewardBaseline(lambda: (), lambda losses, state: jnp.zeros_like(losses), lambda state, loss: state)


def running_mean(decay: float = 0.9) -> RewardBaseline:
    """The mean loss of past estimates (reinforcement comparison; Sutton 1984, Williams 1992).

    Args:
      decay: weight of the past in the exponential mean, at least 0 and below 1. Its start is corrected for; the very
        first estimate has no baseline.

    Raises:
      ValueError: if `decay` is not as described.
    """
    decay = checked_decay(decay)

    def expected(losses: Array, state: State) -> Array:
        return jnp.broadcast_to(state.mean.astype(losses.dtype), losses.shape)

    return RewardBaseline(nothing_seen, expected, lambda state, loss: state.seen(loss, decay))


def leave_one_out() -> RewardBaseline:
    """The mean loss of the same example's other samples, K of 2 at least (Kool et al. 2019).

    Knows each example's own difficulty, as no running mean can.
    """

    def expected(losses: Array, state: State) -> Array:
        del state
        return (jnp.sum(losses, axis=0, keepdims=True) - losses) / (len(losses) - 1)

    return RewardBaseline(lambda: (), expected, lambda state, loss: state, least_samples=2)
