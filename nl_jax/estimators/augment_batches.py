"""Estimators whose batches are corrupted or augmented at random in every step."""

from collections.abc import Callable

import jax

from nl_jax._core.require import gradient_estimator, takes, typed_key
from nl_jax.base import Batch, GradientEstimator, Info, Key, Params, State


def augment_batches(estimator: GradientEstimator, augment: Callable[[Key, Batch], Batch]) -> GradientEstimator:
    """Applies `augment` to each batch before an estimate: corrupted inputs, wrong labels, shifted images.

    An objective has no key. The randomness of a batch is therefore drawn before it, from the estimate's key: each step
    has its own noise, and all evaluations of one estimate share it.

    Args:
      estimator: any estimator.
      augment: `augment(key, batch) -> batch` for the estimator's objective, such as `nl.objectives.masking_noise(0.3)`.

    Returns:
      An estimator with the state of `estimator`.

    Raises:
      ValueError: if `estimator` is not an estimator, or `augment` does not take a key and a batch.

    >>> import jax.numpy as jnp, nl_jax as nl
    >>> objective = nl.objectives.denoising(lambda w, x: w * x, nl.losses.half_squared_error)
    >>> estimator = augment_batches(nl.backprop(objective), nl.objectives.masking_noise(0.5))
    >>> _, _, info = estimator.estimate(jax.random.key(0), (), jnp.ones(4), jnp.ones([100, 4]))
    >>> round(float(info.loss), 1)  # half of four inputs are lost, ½ each
    1.0
    """
    gradient_estimator("estimator", estimator)
    takes("augment", augment, 2, "a function of a key and a batch, such as nl.objectives.masking_noise(0.3)")

    def estimate(key: Key, state: State, params: Params, batch: Batch) -> tuple[Params, State, Info]:
        typed_key(key)
        own_key, key = jax.random.split(key)
        return estimator.estimate(key, state, params, augment(own_key, batch))

    return GradientEstimator(estimator.init, estimate)
