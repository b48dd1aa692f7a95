"""Supervised objectives: outputs are compared with targets."""

from collections.abc import Callable
from typing import Any

from nl_jax.base import Array, Batch, Forward, Objective
from nl_jax.objectives.judged import Run, judged, one_per_example, pair


def supervised(forward: Forward, loss: Callable[[Any, Any], Array]) -> Objective:
    """Compares a network's outputs with given targets by a loss (seed 000; seed 003 §2.2).

    Args:
      forward: `forward(params, inputs, propagate=feedforward) -> outputs`. If it has no argument named
        `propagate` (a Flax or Equinox model, any JAX function), the objective has none either, and
        works with the estimators that need no layers.
      loss: `loss(outputs, targets) -> [batch]`, such as those of `nl.losses`.

    Returns:
      `objective(params, (inputs, targets), propagate=feedforward) -> losses`, shape [batch].

    Raises:
      ValueError: if `forward` is not a function; when called, if the batch is not a pair or the loss does not return
        one value per example.

    >>> import jax.numpy as jnp, nl_jax as nl
    >>> objective = supervised(lambda w, x: x @ w, nl.losses.half_squared_error)
    >>> objective(jnp.ones([3, 1]), (jnp.ones([2, 3]), jnp.zeros([2, 1])))
    Array([4.5, 4.5], dtype=float32)
    """

    if not callable(forward):
        given = "its .apply" if hasattr(forward, "apply") else "a function"
        raise ValueError(
            f"forward must be a function forward(params, inputs, propagate=feedforward), got {type(forward).__name__}: "
            f"pass {given}"
        )

    def judge(run: Run, batch: Batch) -> Array:
        inputs, targets = pair(batch, "targets")
        return one_per_example("loss", loss(run(inputs), targets), "targets", targets)

    return judged(forward, judge)
