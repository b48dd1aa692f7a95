"""Backpropagation by automatic differentiation: the reference every other estimator is judged by."""

import jax
import jax.numpy as jnp

from nl_jax.base import Array, Batch, GradientEstimator, Info, Key, Objective, Params, State, stateless
from nl_jax.checks import per_example


def backprop(objective: Objective) -> GradientEstimator:
    """The exact gradient of the mean loss, by reverse-mode autodiff (seed 003 eq. 1–5).

    Compiles to the same program as `jax.value_and_grad` of the mean loss.

    Args:
      objective: any per-example objective; needs no layers.

    Returns:
      An estimator without state or randomness: three evaluations (one pass, one reverse sweep).

    Raises:
      ValueError: when run, if the objective does not return one loss per example.

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

    return GradientEstimator(stateless, estimate)
