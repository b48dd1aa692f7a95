"""Objectives: a forward function and what is asked of it, as one per-example loss."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nl_jax.base import Array, Batch, Forward, Objective, Params, Propagate
from nl_jax.checks import takes_propagate
from nl_jax.propagation import feedforward


def supervised(forward: Forward, loss: Callable[[Any, Any], Array]) -> Objective:
    """The loss of a network's outputs against given targets (seed 000; seed 003 §2.2).

    Args:
      forward: `forward(params, inputs, propagate=feedforward) -> outputs`. Without an argument named
        `propagate` (a Flax or Equinox model, any JAX function) the objective has none either, and
        suits the estimators that need no layers.
      loss: `loss(outputs, targets) -> [batch]`, such as those of `nl.losses`.

    Returns:
      `objective(params, (inputs, targets), propagate=feedforward) -> losses`, shape [batch].

    Raises:
      ValueError: when called, if the batch is not a pair or the loss does not return one value per example.

    >>> import jax.numpy as jnp, nl_jax as nl
    >>> objective = supervised(lambda w, x: x @ w, nl.losses.half_squared_error)
    >>> objective(jnp.ones([3, 1]), (jnp.ones([2, 3]), jnp.zeros([2, 1])))
    Array([4.5, 4.5], dtype=float32)
    """

    def pair(batch: Batch) -> tuple[Any, Any]:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise ValueError(f"batch must be a pair (inputs, targets), got {type(batch).__name__}: {batch!r}")
        return batch[0], batch[1]

    def evaluate(outputs: Any, targets: Any) -> Array:
        losses = loss(outputs, targets)
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(targets)]
        if jnp.ndim(losses) != 1 or any(shape[:1] != jnp.shape(losses) for shape in shapes):
            raise ValueError(
                f"loss must return one value per example, shape [batch]; got shape {jnp.shape(losses)} "
                f"for targets of shape {', '.join(map(str, shapes))}: sum over everything but the first axis"
            )
        return losses

    if takes_propagate(forward):

        def objective(params: Params, batch: Batch, propagate: Propagate = feedforward) -> Array:
            inputs, targets = pair(batch)
            return evaluate(forward(params, inputs, propagate=propagate), targets)

        return objective

    def layerless_objective(params: Params, batch: Batch) -> Array:
        inputs, targets = pair(batch)
        return evaluate(forward(params, inputs), targets)

    return layerless_objective
