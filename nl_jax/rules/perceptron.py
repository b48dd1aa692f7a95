"""The perceptron rule (Rosenblatt 1958; seed 000, nonlinear models)."""

import jax.numpy as jnp

from nl_jax.base import Array, Params
from nl_jax.rules.delta import affine
from nl_jax.rules.rule import Change, Rule, supervised


def perceptron() -> Rule:
    """Perceptron: ΔW = ⟨x δᵀ⟩, Δb = ⟨δ⟩, δ = t if sign y ≠ t, else 0 (Rosenblatt 1958; seed 000, nonlinear models).

    It learns only from mistakes; an axon (activity) of 0 counts as one. A target above 0 counts as 1 and any other as
    −1, so classes may be one-hot. The number of mistakes is at most (R/γ)² (Novikoff 1962) if W starts at 0, each step
    has one example at rate 1, inputs have norm at most R, and a plane through the origin separates them with margin γ.
    """

    def change(params: Params, x: Array, y: Array, t: Array) -> Change:
        t = jnp.where(t > 0, 1, -1).astype(y.dtype)
        return affine(params, x, jnp.where(jnp.sign(y) == t, 0, t))

    return supervised(change)
