"""The networks that estimators are certified on."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nl_jax import losses
from nl_jax.activations import tanh
from nl_jax.base import ActivationFn, Array, Batch, Objective, Params, Propagate
from nl_jax.networks.cells import rnn
from nl_jax.networks.cells.recurrent import recurrent as in_time
from nl_jax.networks.mlp import mlp
from nl_jax.objectives import supervised
from nl_jax.propagation import feedforward


class Problem(NamedTuple):
    """A network, an objective on it and a batch."""

    objective: Objective
    params: Params
    batch: Batch
    forward: Any


MakeProblem = Callable[..., Problem]
"""`make(activation=tanh, loss=cross_entropy) -> problem`, with whatever functions of ν and of (outputs, labels)."""


def chain(activation: ActivationFn | None = None, loss: Any = losses.cross_entropy) -> Problem:
    """Six examples of three classes for a 4-5-3 network: small enough to measure every component's mean well."""
    return _chain(activation, loss, jnp.result_type(float))


@functools.cache  # one objective for all estimators, so that its gradient is compiled once
def _chain(activation: ActivationFn | None, loss: Any, precision: Any) -> Problem:
    network = mlp([4, 5, 3], activation=tanh() if activation is None else activation)
    inputs, labels = _examples()
    params = network.init(jax.random.key(1), inputs.dtype)
    return Problem(supervised(network.apply, loss), params, (inputs, labels), network.apply)


def recurrent(activation: ActivationFn | None = None, loss: Any = losses.cross_entropy) -> Problem:
    """The same examples, shown a value a step to two recurrent units in a loop "time"; their last state is read out."""
    return _recurrent(activation, loss, jnp.result_type(float))


@functools.cache
def _recurrent(activation: ActivationFn | None, loss: Any, precision: Any) -> Problem:
    network = in_time(rnn(2, activation=tanh() if activation is None else activation), 1, 3)

    def forward(params: Params, inputs: Array, propagate: Propagate = feedforward) -> Array:
        return network.apply(params, inputs[..., None], propagate)

    inputs, labels = _examples()
    params = network.init(jax.random.key(1), inputs.dtype)
    return Problem(supervised(forward, loss), params, (inputs, labels), forward)


def _examples() -> tuple[Array, Array]:
    return jax.random.normal(jax.random.key(7), (6, 4)), jnp.arange(6) % 3
