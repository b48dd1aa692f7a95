"""Backpropagation as an explicit sweep down the layers, as the seeds derive it."""

import jax.numpy as jnp

from nl_jax._core.require import layered
from nl_jax.base import Batch, GradientEstimator, Info, Key, LayerCredit, Objective, Params, State, stateless
from nl_jax.estimators.feedback.feedback_path import feedback_path


def backprop_recursion(objective: Objective) -> GradientEstimator:
    """Computes the exact gradient by the seed's own recursion, layer by layer (seed 003 eq. 5–12; seed 001 §1–3).

    With z_j = ∂L/∂x_j, from the highest layer down:

        δ_j = z_j df_j(x_j)                                       eq. 8, df from the value, eq. 10
        ∂L/∂M_ji = δ_j x_i,  ∂L/∂b_j = δ_j                        eq. 9, 12
        z_i ← z_i + δ_j M_ji, starting from z_i = ∂L/∂x_i direct  eq. 12

    For one layer this is the delta rule; for two layers it gives seed 001's δ and γ. An activation that does not define
    its derivative from its value is differentiated by autodiff. The only other autodiff is that of single connections
    and of what the program does between its layers.

    Args:
      objective: a per-example objective that takes `propagate`.

    Returns:
      An estimator without state or randomness; equal to `backprop` up to rounding.

    Raises:
      ValueError: if the objective takes no `propagate`; when run, if layers share a name.
    """
    layered("backprop_recursion", objective)

    def estimate(key: Key, state: State, params: Params, batch: Batch) -> tuple[Params, State, Info]:
        del key
        losses, grads, _ = feedback_path(objective, params, batch)
        return grads, state, Info(jnp.mean(losses), jnp.int32(3))

    def credit(key: Key, state: State, params: Params, batch: Batch) -> dict[str, LayerCredit]:
        del key, state
        return feedback_path(objective, params, batch, credit=True).credit

    return GradientEstimator(stateless, estimate, credit)
