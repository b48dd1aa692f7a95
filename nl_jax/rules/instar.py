"""The instar rule (Grossberg 1976)."""

from nl_jax.base import Array
from nl_jax.rules.rule import Change, Rule, mean, mean_outer, unsupervised


def instar() -> Rule:
    """Instar rule, Δw_j = ⟨y_j (x − w_j)⟩: an active unit's weights move towards its input (Grossberg 1976).

    w_j converges to ⟨y_j x⟩ / ⟨y_j⟩, the mean of its inputs weighted by its responses, which should not be negative.
    Biases do not change.
    """
    return unsupervised(lambda params, x, y: towards(x, y, params["weight"]))


def towards(x: Array, y: Array, W: Array) -> Change:
    """Computes ⟨y_j (x − w_j)⟩."""
    return {"weight": mean_outer(x, y) - W * mean(y)}
