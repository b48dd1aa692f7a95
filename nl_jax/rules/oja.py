"""Oja's rule (Oja 1982)."""

from nl_jax.rules.rule import Rule, mean, mean_outer, unsupervised


def oja() -> Rule:
    """Δw_j = ⟨y_j (x − y_j w_j)⟩, every unit j for itself (Oja 1982; seed 000, Oja's rule).

    Hebb's rule with just the forgetting that keeps ‖w_j‖ at 1: of linear units each w_j comes to ± the first
    eigenvector of ⟨x xᵀ⟩. Biases stay.
    """
    return unsupervised(lambda params, x, y: {"weight": mean_outer(x, y) - params["weight"] * mean(y**2)})
