"""Competitive learning on the sphere."""

import jax
import jax.numpy as jnp

from nl_jax.base import Array, Params
from nl_jax.rules.rule import Change, Rule, sum_outer, unsupervised


def spherical() -> Rule:
    """Spherical k-means: Δw_j = ⟨x − u_j w_j⟩ over the examples that unit j wins, u = Wᵀ x; prototypes have norm 1.

    `competitive` compares inputs with weights by distance, and this rule by direction. Oja's decay keeps ‖w_j‖ at 1,
    where w_j is the mean direction of the inputs it wins (spherical k-means, Dhillon and Modha 2001, one step at a
    time). The mean is over a unit's own wins, so rare winners learn as fast as others. An input that excites no unit
    has no winner, and a unit that never wins never learns. The competition is part of the rule, so the layer may have
    any activation. Biases do not change.
    """

    def change(params: Params, x: Array, y: Array) -> Change:
        del y
        W = params["weight"]
        u = x @ W
        best = jnp.max(u, axis=1, keepdims=True)
        wins = jax.nn.one_hot(jnp.argmax(u, axis=1), u.shape[1], dtype=u.dtype) * (best > 0).astype(u.dtype)
        share = wins / jnp.maximum(jnp.sum(wins, axis=0, keepdims=True), 1.0)
        return {"weight": sum_outer(x, share) - W * jnp.sum(share * u, axis=0, keepdims=True)}

    return unsupervised(change)
