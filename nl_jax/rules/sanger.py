"""Sanger's rule, the generalised Hebbian algorithm (Sanger 1989)."""

import jax.numpy as jnp

from nl_jax.base import Array, Params
from nl_jax.rules.rule import Change, Rule, mean_outer, unsupervised


def sanger() -> Rule:
    """Sanger's rule: Δw_j = ⟨y_j (x − Σ_{k≤j} y_k w_k)⟩ (Sanger 1989; seed 000, Sanger's rule).

    Unit j learns from the residual that units up to and including j do not reconstruct. w_j converges to ± the j-th
    eigenvector of ⟨x xᵀ⟩, in order. Biases do not change.
    """

    def change(params: Params, x: Array, y: Array) -> Change:
        return {"weight": mean_outer(x, y) - params["weight"] @ jnp.triu(mean_outer(y, y))}

    return unsupervised(change)
