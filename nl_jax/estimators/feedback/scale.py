"""Gives feedback weights the scale of each layer's own fan in, with which credit keeps its size."""

import math
from typing import Any

import jax

from nl_jax.base import Batch, Objective, Params, State
from nl_jax.estimators.feedback.received import received
from nl_jax.estimators.feedback.weights import Feedback
from nl_jax.propagation.trial import fan_ins


def scaled(source: Feedback, objective: Objective, state: State, params: Params, batch: Batch) -> Params:
    """Returns B, on the scale of each layer's own fan in where the source asks for it."""
    weights = source.weights(state, params)
    if not source.by_fan_in:
        return weights
    return jax.tree.map(lambda b, factor: b * factor, weights, _corrections(objective, params, batch))


def _corrections(objective: Objective, params: Params, batch: Batch) -> Any:
    """Computes √(fan in by shape / fan in) for each parameter, a tree of numbers.

    By shape, a weight […, inputs, units] has all axes but the last as its fan in. That is wrong for a stack of weights
    in a loop over depth, for weights [units, inputs], and for those with several axes of units. The factor is 1 where
    the fan in is not known or differs between layers, and for parameters that are smaller than the layer's weight.
    """
    leaves, tree = jax.tree.flatten(params)
    entering: dict[str, list[int]] = {}
    arrays = received(objective, params, batch, lambda site, nu: entering.update({site.name: fan_ins(site, nu.shape)}))
    factors: list[set[float]] = [set() for _ in leaves]
    for name, several in arrays.items():
        for array, fan_in in zip(several, entering[name], strict=True):
            for i in (source for source in array.sources if isinstance(source, int)):
                whole = leaves[i].size % max(1, math.prod(array.shape)) == 0  # one weight, or a stack of them
                if len(array.shape) > 1 and leaves[i].ndim > 1 and fan_in and whole:
                    factors[i].add(math.sqrt(math.prod(leaves[i].shape[:-1]) / fan_in))
    return jax.tree.unflatten(tree, [one.pop() if len(one) == 1 else 1.0 for one in factors])
