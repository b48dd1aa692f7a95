"""Sparse n-step approximation of real-time recurrent learning, SnAp-n (Menick et al. 2021)."""

import jax
import jax.numpy as jnp

from nl_jax._core.require import positive_integer
from nl_jax.base import Array, GradientEstimator, Objective
from nl_jax.estimators.online.e_prop import traced
from nl_jax.estimators.online.forward_credit import Influence, Pull, Push, Run, by_influence, online_estimator
from nl_jax.estimators.online.rtrl import Jacobian, cost, direct, nothing, spent

Kept = tuple[Jacobian, Jacobian, Jacobian]
"""J, the entries that parameters have fed directly so far, and those they have reached."""


def snap(objective: Objective, *, order: int = 1, loop: str = "time") -> GradientEstimator:
    """Approximates `rtrl`: keeps a parameter's influence only on the units that it reaches within n steps.

        J_t = S_n ∘ (∂h_t/∂h_{t−1} J_{t−1} + ∂h_t/∂θ),   ∂L/∂θ ≈ Σ_t ∂L_t/∂h_t J_t          (Menick et al. 2021, eq. 5)

    S_n marks the entries that are not zero after n steps. With n as large as the longest path through the network this
    is `rtrl`; in a densely connected layer n = 2 is enough.

    For n = 1 a parameter acts only on the unit that it feeds, and J is a trace for each weight and example, as in
    `e_prop`. The difference is that `e_prop` also neglects a unit's effect on itself by its recurrent connection.

    For larger n the pattern is found as the loop runs, and J is a dense matrix whose other entries are zero: it takes
    `rtrl`'s memory, not the paper's. The credit of the state before a step, ∂L_t/∂h_{t−1}, is exact: it reaches J_{t−1}
    by all paths within the step, so that the estimate is somewhat closer to the gradient than the paper's at the same
    n.

    Args:
      objective: a per-example objective that takes `propagate`, whose program has an `nl.scan` of this name. For n = 1
        each unit must have its own state, arrays [batch, units], and recurrent inputs must be the units' own, in their
        order.
      order: n, at least 1.
      loop: the loop's name.

    Returns:
      An estimator without state or randomness, biased unless n is large. For n = 1 it costs as much as `e_prop`;
      otherwise as much as `rtrl`, and n − 1 tangents more for each parameter.

    Raises:
      ValueError: if the objective takes no `propagate` or `order` is not as described; when run, if the program has no
        loop of this name; for n = 1 as for `e_prop`.
    """
    order = positive_integer("order", order)
    if order == 1:
        return traced("snap", objective, None, loop, own=True)

    def sparse(run: Run) -> Influence:
        # Displacements of random size: their sum is zero only if nothing arrives.
        keys = jax.random.split(jax.random.key(0), max(len(run.start), 1))
        size = [jax.random.uniform(k, h.shape, h.dtype, 0.5, 1.5) for k, h in zip(keys, run.start, strict=False)]

        def move(kept: Kept, t: Array, push: Push, pull: Pull) -> Kept:
            J, fed, pattern = kept
            D = direct(run, pull)
            reached = fed = jax.tree.map(lambda known, d: known | (d != 0), fed, D)
            for _ in range(order - 1):
                onwards = [jax.vmap(lambda r: push(_times(r, size)))(of_leaf) for of_leaf in reached]
                reached = jax.tree.map(lambda moved, direct: (moved != 0) | direct, onwards, fed)
            pattern = jax.tree.map(jnp.logical_or, pattern, reached)
            along = [jax.vmap(push)(of_leaf) for of_leaf in J]
            return jax.tree.map(lambda a, d, s: jnp.where(s, a + d, 0), along, D, pattern), fed, pattern

        J = nothing(run)
        unmarked = jax.tree.map(lambda j: jnp.zeros(j.shape, bool), J)
        return Influence((J, unmarked, unmarked), move, lambda kept, c: spent(kept[0], c, run))

    return online_estimator(
        "snap", objective, loop, lambda key: by_influence(sparse), lambda params: order * (cost(params) - 4) + 4
    )


def _times(marks: list[Array], size: list[Array]) -> list[Array]:
    return [jnp.where(mark, s, 0) for mark, s in zip(marks, size, strict=True)]
