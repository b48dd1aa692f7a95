"""APEX: principal components by lateral inhibition (Kung and Diamantaras 1990)."""

import jax.numpy as jnp

from nl_jax.base import Array, Params
from nl_jax.rules.rule import Change, Rule, mean, mean_outer, unsupervised


def apex() -> Rule:
    """APEX: Δw_j = ⟨y_j (x − y_j w_j)⟩, Δc_ij = ⟨y_j (y_i − y_j c_ij)⟩ for i < j (Kung and Diamantaras 1990).

    Each unit inhibits those after it, y_j = w_jᵀ x − Σ_{i<j} c_ij y_i. Connections of both kinds learn by Oja's rule.
    Lateral connections are inhibitory, so their learning is anti-Hebbian. w_j converges to ± the j-th eigenvector of
    ⟨x xᵀ⟩, as with `sanger`, but no unit needs another unit's weights. At convergence C = 0. Biases do not change.

    The rule is for layers joined by `nl.connections.lateral_dense`, whose C is `params["lateral"]`.

    Raises:
      ValueError: when run, for a layer without lateral connections.
    """

    def change(params: Params, x: Array, y: Array) -> Change:
        if "lateral" not in params:
            raise ValueError("apex changes lateral connections too: join its layer by nl.connections.lateral_dense()")
        W, C = params["weight"], params["lateral"]
        activity = mean(y**2)
        return {
            "weight": mean_outer(x, y) - W * activity,
            "lateral": jnp.triu(mean_outer(y, y) - C * activity, k=1),
        }

    return unsupervised(change)
