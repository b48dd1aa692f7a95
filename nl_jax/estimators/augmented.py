"""Estimators whose batches are corrupted or augmented at random in every step."""

from collections.abc import Callable

import jax

from nl_jax.base import Batch, GradientEstimator, Info, Key, Params, State
from nl_jax.checks import takes, typed_key


def augmented(estimator: GradientEstimator, augment: Callable[[Key, Batch], Batch]) -> GradientEstimator:
    """An estimator that sees what `augment` makes of each batch: corrupted inputs, wrong labels, shifted images.

    An objective has no key, so that what is random about a batch is drawn before it: by the estimate's key, and so
    with noise of its own at every step, while all the evaluations of one estimate see the same.

    Args:
      estimator: any estimator.
      augment: `augment(key, batch) -> batch` for the estimator's objective, such as `nl.objectives.masking_noise(0.3)`.

    Returns:
      An estimator with the state of `estimator`.

    Raises:
      ValueError: if `augment` does not take a key and a batch.

    >>> import jax.numpy as jnp, nl_jax as nl
    >>> objective = nl.objectives.denoising(lambda w, x: w * x, nl.losses.half_squared_error)
    >>> estimator = augmented(nl.backprop(objective), nl.objectives.masking_noise(0.5))
    >>> _, _, info = estimator.estimate(jax.random.key(0), (), jnp.ones(4), jnp.ones([100, 4]))
    >>> round(float(info.loss), 1)  # half of four inputs are lost, ½ each
    1.0
    """
    takes("augment", augment, 2, "a function of a key and a batch, such as nl.objectives.masking_noise(0.3)")

    def estimate(key: Key, state: State, params: Params, batch: Batch) -> tuple[Params, State, Info]:
        typed_key(key)
        own_key, key = jax.random.split(key)
        return estimator.estimate(key, state, params, augment(own_key, batch))

    return GradientEstimator(estimator.init, estimate)
