"""The rule of Bienenstock, Cooper and Munro (1982)."""

import jax.numpy as jnp

from nl_jax._core.require import positive_hyperparameter
from nl_jax.base import Array, Params, State
from nl_jax.rules.rule import Change, Rule, in_wide_dtype, mean, mean_outer


def bcm(*, rate: float = 0.1) -> Rule:
    """BCM rule: Δw_j = ⟨y_j (y_j − θ_j) x⟩, where θ_j tracks ⟨y_j²⟩ (Bienenstock, Cooper and Munro 1982).

    Responses above the threshold θ grow and those below it shrink. θ grows faster than the responses, so units become
    selective and stay bounded. The threshold is that of Intrator and Cooper (1992), θ ← θ + rate (⟨y²⟩ − θ). It is
    updated before it is used and starts at 1, the fixed point of a unit that responds equally to all inputs. Biases do
    not change.

    Args:
      rate: the fraction of its distance to ⟨y²⟩ that θ moves at each step, above 0 and at most 1 (unchecked in
        an array). Learning must be slower than θ, or responses oscillate.

    Returns:
      A rule with state θ [1, units].

    Raises:
      ValueError: if rate is not as described.
    """
    if isinstance(positive_hyperparameter("rate", rate), float) and rate > 1:
        raise ValueError(f"rate must be at most 1, where the threshold follows each batch; got {rate!r}")

    def init(params: Params) -> State:
        return jnp.ones_like(params["weight"][:1])

    def change(state: State, params: Params, pre: Array, post: Array, teacher: Array | None) -> tuple[Change, State]:
        del params, teacher
        theta = state + jnp.asarray(rate, state.dtype) * (mean(post**2) - state)
        return {"weight": mean_outer(pre, post * (post - theta))}, theta

    return Rule(init, in_wide_dtype(change))
