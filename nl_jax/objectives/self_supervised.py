"""Self-supervised objectives: the target is the input itself."""

from collections.abc import Callable
from typing import Any

from nl_jax.base import Array, Batch, Forward, Objective
from nl_jax.objectives.judged import Run, judged, one_per_example
from nl_jax.objectives.supervised import supervised


def reconstruction(forward: Forward, loss: Callable[[Any, Any], Array]) -> Objective:
    """Compares a network's outputs with its inputs: an autoencoder (Rumelhart, Hinton & Williams 1986).

    Args:
      forward: `forward(params, inputs, propagate=feedforward) -> outputs`, outputs shaped as the inputs.
      loss: `loss(outputs, inputs) -> [batch]`, such as those of `nl.losses`.

    Returns:
      `objective(params, inputs, propagate=feedforward) -> losses`, shape [batch].

    Raises:
      ValueError: when called, if the loss does not return one value per example.

    >>> import jax.numpy as jnp, nl_jax as nl
    >>> reconstruction(lambda w, x: w * x, nl.losses.half_squared_error)(0.5, jnp.full([1, 2], 2.0))
    Array([1.], dtype=float32)
    """

    def judge(run: Run, batch: Batch) -> Array:
        return one_per_example("loss", loss(run(batch), batch), "inputs", batch)

    return judged(forward, judge)


def denoising(forward: Forward, loss: Callable[[Any, Any], Array]) -> Objective:
    """Compares a network's outputs for corrupted inputs with the clean inputs (Vincent et al. 2008).

    The clean inputs are the targets, so this is `nl.supervised` on pairs `(corrupted, clean)`.
    `nl.augment_batches(estimator, nl.objectives.masking_noise(0.3))` makes these pairs, with new noise for every
    estimate.

    Args:
      forward: `forward(params, inputs, propagate=feedforward) -> outputs`, outputs shaped as the inputs.
      loss: `loss(outputs, clean) -> [batch]`, such as those of `nl.losses`.

    Returns:
      `objective(params, (corrupted, clean), propagate=feedforward) -> losses`, shape [batch].

    Raises:
      ValueError: when called, if the batch is not a pair or the loss does not return one value per example.
    """
    return supervised(forward, loss)
