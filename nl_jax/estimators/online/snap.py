"""Sparse n-step approximation of real-time recurrent learning, SnAp-n (Menick et al. 2021)."""

import jax
import jax.numpy as jnp

from nl_jax.base import Array, GradientEstimator, Objective
from nl_jax.checks import positive_integer
from nl_jax.estimators.online.forward_credit import Influence, Pull, Push, Run, by_influence, online_estimator
from nl_jax.estimators.online.rtrl import Jacobian, cost, direct, nothing, spent

Kept = tuple[Jacobian, Jacobian, Jacobian]
"""J, the entries that parameters have fed directly so far, and those they have reached."""


def snap(objective: Objective, *, order: int = 1, loop: str = "time") -> GradientEstimator:
    """`rtrl` with the influence of a parameter kept on those units alone that it reaches within n steps.

        J_t = S_n ∘ (∂h_t/∂h_{t−1} J_{t−1} + ∂h_t/∂θ)                                       (Menick et al. 2021, eq. 5)

    S_n marks the entries that are not zero after n steps: for n = 1 the units that a parameter feeds directly, one for
    each weight of a layer of ordinary cells. With n as large as the longest way through the network it is `rtrl`.

    The credit of the state before a step, ∂L_t/∂h_{t−1}, is exact: it reaches J_{t−1} by all of the step's own ways,
    where the paper has ∂L_t/∂h_t J_t. So the estimate is somewhat closer to the gradient than theirs at the same n.

    The pattern is found as the loop runs: an entry counts once a displacement of the parameter has moved the unit, in n
    steps or fewer. The influence is kept as a dense matrix whose other entries are zero: this is `rtrl`'s memory, not
    the paper's; `e_prop` keeps one trace a weight.

    Args:
      objective: a per-example objective that takes `propagate`, whose program has an `nl.scan` of this name.
      order: n, at least 1.
      loop: the loop's name.

    Returns:
      An estimator without state or randomness, biased unless n is large; it costs what `rtrl` costs, and n − 1 tangents
      more for each parameter.

    Raises:
      ValueError: if the objective takes no `propagate` or `order` is not as described; when run, if the program has no
        loop of this name.
    """
    order = positive_integer("order", order)

    def sparse(run: Run) -> Influence:
        # Displacements of no particular size: what they sum to is zero only if nothing arrives.
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
