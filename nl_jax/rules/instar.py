"""The instar rule (Grossberg 1976)."""

from nl_jax.base import Array
from nl_jax.rules.rule import Change, Rule, mean, mean_outer, unsupervised


def instar() -> Rule:
    """Δw_j = ⟨y_j (x − w_j)⟩: an active unit's weights move towards its input (Grossberg 1976).

    w_j comes to ⟨y_j x⟩ / ⟨y_j⟩, the mean of the inputs it answers, weighted by the answers; these should not be
    negative. Biases stay.
    """
    return unsupervised(lambda params, x, y: towards(x, y, params["weight"]))


def towards(x: Array, y: Array, W: Array) -> Change:
    """⟨y_j (x − w_j)⟩."""
    return {"weight": mean_outer(x, y) - W * mean(y)}
