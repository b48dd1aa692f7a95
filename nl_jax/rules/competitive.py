"""Competitive learning (Rumelhart and Zipser 1985)."""

import jax
import jax.numpy as jnp

from nl_jax.base import Array, Params
from nl_jax.rules.instar import towards
from nl_jax.rules.rule import Change, Rule, unsupervised


def competitive() -> Rule:
    """Δw_j = ⟨[j wins] (x − w_j)⟩, the winner being the unit of the largest axon (Rumelhart and Zipser 1985).

    `instar` where the winner takes all; of equal axons the first wins. Each w_j comes to the mean of the inputs it
    wins, a cluster's centre; a unit that never wins never learns. Biases stay.
    """

    def change(params: Params, x: Array, y: Array) -> Change:
        return towards(x, jax.nn.one_hot(jnp.argmax(y, axis=1), y.shape[1], dtype=y.dtype), params["weight"])

    return unsupervised(change)
