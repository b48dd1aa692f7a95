"""The perceptron rule (Rosenblatt 1958; seed 000, nonlinear models)."""

import jax.numpy as jnp

from nl_jax.base import Array, Params
from nl_jax.rules.delta import affine
from nl_jax.rules.rule import Change, Rule, supervised


def perceptron() -> Rule:
    """ΔW = ⟨x δᵀ⟩, Δb = ⟨δ⟩ with δ = t where sign y ≠ t, else 0 (Rosenblatt 1958; seed 000, nonlinear models).

    Learns from mistakes alone; an axon of 0 is one. A target above 0 counts as 1 and any other as −1, so that classes
    may be one-hot. From W = 0, with one example a step at rate 1, on inputs of at most R that a plane through the
    origin parts with margin γ, it makes at most (R/γ)² mistakes (Novikoff 1962).
    """

    def change(params: Params, x: Array, y: Array, t: Array) -> Change:
        t = jnp.where(t > 0, 1, -1).astype(y.dtype)
        return affine(params, x, jnp.where(jnp.sign(y) == t, 0, t))

    return supervised(change)
