"""Shared checks of objectives that judge a forward function's outputs."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nl_jax._core.require import takes_propagate
from nl_jax.base import Array, Batch, Forward, Objective, Params, Propagate
from nl_jax.propagation import feedforward

Run = Callable[[Any], Any]
"""`run(inputs) -> outputs`: the forward function with its parameters, run with the objective's `propagate`."""


def judged(forward: Forward, judge: Callable[[Run, Batch], Array]) -> Objective:
    """Turns `judge(run, batch) -> losses` into an objective; it takes `propagate` if the forward function does."""
    if takes_propagate(forward):

        def objective(params: Params, batch: Batch, propagate: Propagate = feedforward) -> Array:
            return judge(functools.partial(forward, params, propagate=propagate), batch)

        return objective

    def objective_without_layers(params: Params, batch: Batch) -> Array:
        return judge(functools.partial(forward, params), batch)

    return objective_without_layers


def pair(batch: Batch, second: str) -> tuple[Any, Any]:
    """Returns `batch` if it is a pair of inputs and something else; its ValueError calls the latter `second`."""
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        given = f"got {jax.tree.map(_kind, batch)}"[:300]
        many = isinstance(batch, list) and len(batch) > 0 and all(isinstance(one, tuple) for one in batch)
        remedy = "stack the batches, or pass iter(batches) to nl.fit" if many else "wrap the objective to take it apart"
        raise ValueError(f"batch must be a pair (inputs, {second}), {given}: {remedy}")
    return batch[0], batch[1]


def _kind(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}" if hasattr(leaf, "dtype") else type(leaf).__name__


def one_per_example(what: str, values: Array, given: str, tree: Any) -> Array:
    """Returns `values`; raises ValueError unless they are one number for each example of `tree`."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)]
    if jnp.ndim(values) != 1 or any(shape[:1] != jnp.shape(values) for shape in shapes):
        remedy = "sum over everything but the first axis" if jnp.ndim(values) else "do not average over the batch"
        if jnp.ndim(values) == 1:
            remedy = f"outputs and {given} must have equally many examples, which {what} must not sum over"
        raise ValueError(
            f"{what} must return one value per example, shape [batch]; got shape {jnp.shape(values)} "
            f"for {given} of shape {', '.join(map(str, shapes))}: {remedy}"
        )
    return values
