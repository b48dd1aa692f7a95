"""Oja's subspace rule (Oja 1989)."""

from nl_jax.rules.rule import Rule, mean_outer, unsupervised


def subspace() -> Rule:
    """ΔW = ⟨(x − W y) yᵀ⟩: what the layer cannot reconstruct is learned (Oja 1989).

    The columns of W come to be an orthonormal basis of the principal subspace of ⟨x xᵀ⟩, which one is left open.
    Biases stay.
    """
    return unsupervised(lambda params, x, y: {"weight": mean_outer(x - y @ params["weight"].T, y)})
