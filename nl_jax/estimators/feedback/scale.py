"""Gives feedback weights the scale of each layer's own fan in, with which credit keeps its size."""

import math
from typing import Any

import jax

from nl_jax.base import Batch, Objective, Params, State
from nl_jax.estimators.feedback.received import received
from nl_jax.estimators.feedback.weights import Feedback
from nl_jax.propagation import loops_around


def scaled(source: Feedback, objective: Objective, state: State, params: Params, batch: Batch) -> Params:
    """Returns B, on the scale of each layer's own fan in where the source asks for it."""
    weights = source.weights(state, params)
    if not source.by_fan_in:
        return weights
    return jax.tree.map(lambda b, factor: b * factor, weights, _corrections(objective, params, batch))


def _corrections(objective: Objective, params: Params, batch: Batch) -> Any:
    """Computes √(fan in by shape / fan in) for each parameter, a tree of numbers.

    By shape, a weight […, inputs, units] has all axes but the last as its fan in. That is wrong for a stack of weights
    in a loop over depth, and for weights [units, inputs]. A weight's own fan in is its size in a layer over the layer's
    units: these are on the last axis of ν, or, if the weight has no axis of that size, on the first that it has. The
    factor is 1 for all other parameters, and for those from which a program computes smaller or larger weights.
    """
    leaves, tree = jax.tree.flatten(params)
    factors = [1.0] * len(leaves)
    for name, (shape, arrays) in received(objective, params, batch).items():
        axes = *shape[-1:], *shape[loops_around(name) + 1 :]
        for array in arrays:
            units, size = next((n for n in axes if n in array.shape), 0), math.prod(array.shape)
            for i in (source for source in array.sources if isinstance(source, int)):
                leaf = leaves[i]
                if len(array.shape) > 1 and leaf.ndim > 1 and units and leaf.size % size == 0:
                    factors[i] = math.sqrt(math.prod(leaf.shape[:-1]) * units / size)
    return jax.tree.unflatten(tree, factors)
