"""The delta rule (Widrow and Hoff 1960; seed 001)."""

from collections.abc import Callable

from nl_jax._core.require import takes
from nl_jax.base import Array, Params
from nl_jax.rules.rule import Change, Rule, mean_outer, supervised


def delta(*, derivative: Callable[[Array], Array] | None = None) -> Rule:
    """Delta rule: ΔW = ⟨x δᵀ⟩, Δb = ⟨δ⟩, δ = (t − y) df(y) (Widrow and Hoff 1960; seed 001 §1; seed 003 eq. 8–10).

    For linear units, df = 1, this is least mean squares. With the activation's own df it is minus the gradient of
    ½‖y − t‖².

    Args:
      derivative: df, the activation's derivative as a function of its value, such as
        `nl.activations.tanh().derivative`; by default 1.

    Raises:
      ValueError: if derivative is not a function of one argument.
    """
    if derivative is not None:
        takes("derivative", derivative, 1, "such as nl.activations.tanh().derivative")

    def change(params: Params, x: Array, y: Array, t: Array) -> Change:
        error = t - y
        return affine(params, x, error if derivative is None else error * derivative(y))

    return supervised(change)


def affine(params: Params, x: Array, delta: Array) -> Change:
    """Computes the change ⟨x δᵀ⟩ of W and, if the layer has a bias, ⟨δ⟩ of b (a weight from an input of 1)."""
    weight = {"weight": mean_outer(x, delta)}
    return {**weight, "bias": delta.mean(axis=0)} if "bias" in params else weight
