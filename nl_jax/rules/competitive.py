"""Competitive learning (Rumelhart and Zipser 1985)."""

import jax
import jax.numpy as jnp

from nl_jax.base import Array, Params
from nl_jax.rules.instar import towards
from nl_jax.rules.rule import Change, Rule, unsupervised


def competitive() -> Rule:
    """Competitive learning: Δw_j = ⟨[j wins] (x − w_j)⟩; the largest axon wins (Rumelhart and Zipser 1985).

    This is `instar` with winner-take-all competition. Among equal axons (activities) the first wins. Each w_j converges
    to the mean of the inputs it wins, a cluster centre. A unit that never wins never learns. Biases do not change.
    """

    def change(params: Params, x: Array, y: Array) -> Change:
        return towards(x, jax.nn.one_hot(jnp.argmax(y, axis=1), y.shape[1], dtype=y.dtype), params["weight"])

    return unsupervised(change)
