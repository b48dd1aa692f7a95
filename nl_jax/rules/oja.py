"""Oja's rule (Oja 1982)."""

from nl_jax.rules.rule import Rule, mean, mean_outer, unsupervised


def oja() -> Rule:
    """Oja's rule, Δw_j = ⟨y_j (x − y_j w_j)⟩, each unit j independently (Oja 1982; seed 000, Oja's rule).

    It is Hebb's rule with the decay that keeps ‖w_j‖ at 1. For linear units each w_j converges to ± the first
    eigenvector of ⟨x xᵀ⟩. Biases do not change.
    """
    return unsupervised(lambda params, x, y: {"weight": mean_outer(x, y) - params["weight"] * mean(y**2)})
