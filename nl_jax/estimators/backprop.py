"""Backpropagation by automatic differentiation, the reference for all other estimators."""

import jax
import jax.numpy as jnp

from nl_jax._core.require import layered, per_example
from nl_jax.base import Array, Batch, GradientEstimator, Info, Key, LayerCredit, Objective, Params, State, stateless
from nl_jax.estimators.lagrangian.adjoint import lagrangian_backprop


def backprop(objective: Objective) -> GradientEstimator:
    """Computes the exact gradient of the mean loss by reverse-mode autodiff (seed 003 eq. 1–5).

    Compiles to the same program as `jax.value_and_grad` of the mean loss.

    Args:
      objective: any per-example objective; it needs no layers.

    Returns:
      An estimator without state or randomness. It costs three evaluations (one forward pass, one reverse sweep). Its
      `credit` needs layers: the objective must take `propagate`.

    Raises:
      ValueError: when run, if the objective does not return one loss per example, or if credit is requested and the
        objective takes no `propagate`.

    >>> import jax, jax.numpy as jnp, nl_jax as nl
    >>> estimator = backprop(lambda w, batch: (w * batch) ** 2)
    >>> grads, state, info = estimator.estimate(jax.random.key(0), (), jnp.array(2.0), jnp.array([1.0, 3.0]))
    >>> grads, info.loss
    (Array(20., dtype=float32, weak_type=True), Array(20., dtype=float32))
    """

    def mean_loss(params: Params, batch: Batch) -> Array:
        return jnp.mean(per_example(objective(params, batch)))

    def estimate(key: Key, state: State, params: Params, batch: Batch) -> tuple[Params, State, Info]:
        del key
        loss, grads = jax.value_and_grad(mean_loss)(params, batch)
        return grads, state, Info(loss, jnp.int32(3))

    def credit(key: Key, state: State, params: Params, batch: Batch) -> dict[str, LayerCredit]:
        layered("the credit of backprop", objective)
        return lagrangian_backprop(objective).credit(key, state, params, batch)  # λ = −z, by autodiff as well

    return GradientEstimator(stateless, estimate, credit)
