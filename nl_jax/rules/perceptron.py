"""The perceptron rule (Rosenblatt 1958; seed 000, nonlinear models)."""

import jax.numpy as jnp

from nl_jax.base import Array, Params
from nl_jax.rules.delta import affine
from nl_jax.rules.rule import Change, Rule, supervised


def perceptron() -> Rule:
    """ΔW = ⟨x δᵀ⟩, Δb = ⟨δ⟩ with δ = t where sign y ≠ t, else 0 (Rosenblatt 1958; seed 000, nonlinear models).

    Learns from mistakes alone; targets are −1 and 1, and an axon of 0 is a mistake. From W = 0, with one example a step
    at rate 1, on inputs of at most R that a plane through the origin parts with margin γ, it makes at most (R/γ)²
    mistakes (Novikoff 1962).
    """

    def change(params: Params, x: Array, y: Array, t: Array) -> Change:
        return affine(params, x, jnp.where(jnp.sign(y) == t, 0, t))

    return supervised(change)
