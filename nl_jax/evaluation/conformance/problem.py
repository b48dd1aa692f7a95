"""The networks on which estimators are certified.

Each is small enough to measure means precisely. No leaf has a much smaller gradient than the others, so about the same
bias can be detected in all of them.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nl_jax import losses
from nl_jax.activations import tanh
from nl_jax.base import ActivationFn, Array, Batch, Connection, Objective, Params, Propagate
from nl_jax.networks import connections
from nl_jax.networks.cells import rnn
from nl_jax.networks.cells.recurrent import recurrent as in_time
from nl_jax.networks.layers import Layer
from nl_jax.networks.mlp import mlp
from nl_jax.networks.normalisation import batch_norm as normalised
from nl_jax.networks.wiring import Network, network
from nl_jax.objectives import supervised
from nl_jax.propagation import feedforward


class Problem(NamedTuple):
    """A network, an objective on it and a batch."""

    objective: Objective
    params: Params
    batch: Batch
    forward: Any


MakeProblem = Callable[..., Problem]
"""`make(activation=tanh, loss=cross_entropy) -> problem`, with any functions of ν and of (outputs, labels)."""


def chain(activation: ActivationFn | None = None, loss: Any = losses.cross_entropy) -> Problem:
    """Six examples of three classes for a 4-5-3 network."""
    return _chain(activation, loss, jnp.result_type(float))


@functools.cache  # one objective for all estimators, so that its gradient is compiled once
def _chain(activation: ActivationFn | None, loss: Any, precision: Any) -> Problem:
    net = mlp([4, 5, 3], activation=tanh() if activation is None else activation)
    at = _drawn(lambda: (net.init(jax.random.key(4), precision), _examples(0.7, 0, 4)))
    return Problem(supervised(net.apply, loss), *at, net.apply)


def recurrent(activation: ActivationFn | None = None, loss: Any = losses.cross_entropy) -> Problem:
    """Two recurrent units in a loop "time" read six examples, one value per step; their last state is read out."""
    return _recurrent(activation, loss, jnp.result_type(float))


@functools.cache
def _recurrent(activation: ActivationFn | None, loss: Any, precision: Any) -> Problem:
    net = in_time(rnn(2, activation=tanh() if activation is None else activation), 1, 3)

    def forward(params: Params, inputs: Array, propagate: Propagate = feedforward) -> Array:
        return net.apply(params, inputs[..., None], propagate)

    at = _drawn(lambda: (net.init(jax.random.key(10), precision), _examples(1.5, 0.5, 4)))
    return Problem(supervised(forward, loss), *at, forward)


def convolution() -> Problem:
    """A convolutional network with images of 4 × 4, two features of 3 × 3 and three classes."""
    return _convolution(jnp.result_type(float))


@functools.cache
def _convolution(precision: Any) -> Problem:
    net = network(
        Layer("image", (4, 4, 1)),
        Layer("features", (2, 2, 2), connections.conv(3), tanh()),
        Layer("vector", None, connections.flatten()),
        Layer("output", 3, connections.dense()),
    )
    return _on(net, KEYS["convolution"], precision, 4, 4, 1)


def batch_norm() -> Problem:
    """A network with three units that are normalised over the batch, so that examples interact."""
    return _batch_norm(jnp.result_type(float))


@functools.cache
def _batch_norm(precision: Any) -> Problem:
    net = network(
        Layer("input", 4),
        normalised(Layer("hidden", 3, connections.dense(bias=False), tanh()), epsilon=0.1),
        Layer("output", 3, connections.dense()),
    )
    return _on(net, KEYS["batch_norm"], precision, 4)


def two_heads() -> Problem:
    """A network whose four hidden units are read out as both a class and a value."""
    return _two_heads(jnp.result_type(float))


@functools.cache
def _two_heads(precision: Any) -> Problem:
    def forward(params: Params, x: Array, propagate: Propagate = feedforward) -> tuple[Array, Array]:
        hidden = propagate("hidden", _affine, jnp.tanh, params["hidden"], x)
        read = lambda name: propagate(name, _affine, lambda nu: nu, params[name], hidden)
        return read("class"), read("value")

    def loss(outputs: tuple[Array, Array], labels: Array) -> Array:
        value = jax.nn.one_hot(labels, 1, dtype=outputs[1].dtype)  # whether it is the first class
        return losses.cross_entropy(outputs[0], labels) + losses.half_squared_error(outputs[1], value)

    def init() -> Params:
        keys = jax.random.split(jax.random.key(KEYS["two_heads"]), 3)
        sizes = {"hidden": (4, 4), "class": (4, 3), "value": (4, 1)}
        return {
            name: {"weight": jax.random.normal(key, shape, precision) / 2, "bias": jnp.zeros(shape[1], precision)}
            for key, (name, shape) in zip(keys, sizes.items(), strict=True)
        }

    return Problem(supervised(forward, loss), *_drawn(lambda: (init(), _examples(0.7, 0, 4))), forward)


def half_precision() -> Problem:
    """`chain` with parameters and examples in bfloat16."""
    return _half_precision(jnp.result_type(float))


@functools.cache
def _half_precision(precision: Any) -> Problem:
    del precision
    problem = chain()
    params, (inputs, labels) = problem.params, problem.batch
    halved, inputs = _drawn(lambda: jax.tree.map(lambda x: x.astype(jnp.bfloat16), (params, inputs)))
    return problem._replace(params=halved, batch=(inputs, labels))


KEYS = {"convolution": 5, "batch_norm": 5, "two_heads": 0}
"""Seeds of the initial parameters: of the first sixty, those whose leaf with the smallest gradient has the largest."""


def _on(net: Network, seed: int, precision: Any, *shape: int) -> Problem:
    at = _drawn(lambda: (net.init(jax.random.key(seed), precision), _examples(0.7, 0, *shape)))
    return Problem(supervised(net.apply, losses.cross_entropy), *at, net.apply)


def _drawn(make: Callable[[], tuple[Params, Batch]]) -> tuple[Params, Batch]:
    """Runs it as one program, where each operation would otherwise be compiled on its own."""
    return jax.jit(make)()


_affine: Connection = lambda params, x: x @ params["weight"] + params["bias"][None, :]


def _examples(scale: float, mean: float, *shape: int) -> tuple[Array, Array]:
    """Draws six examples, most of them of one class, so that biases have as much to learn as weights."""
    return scale * jax.random.normal(jax.random.key(7), (6, *shape)) + mean, jnp.array([0, 0, 0, 0, 1, 2])
