"""Oja's subspace rule (Oja 1989)."""

from nl_jax.rules.rule import Rule, mean_outer, unsupervised


def subspace() -> Rule:
    """Subspace rule, ΔW = ⟨(x − W y) yᵀ⟩: the layer learns from its reconstruction error (Oja 1989).

    The columns of W converge to an orthonormal basis of the principal subspace of ⟨x xᵀ⟩; the rule does not determine
    which basis. Biases do not change.
    """
    return unsupervised(lambda params, x, y: {"weight": mean_outer(x - y @ params["weight"].T, y)})
