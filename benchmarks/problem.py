"""The problem that benchmarks measure on: a tanh network, cross-entropy and random data."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import nl_jax as nl


class Problem(NamedTuple):
    """A network at its initial parameters, and random data, since time does not depend on them."""

    title: str
    sizes: tuple[int, ...]
    objective: Callable[..., jax.Array]
    params: Any
    data: tuple[jax.Array, jax.Array]

    def mean_loss(self, params: Any, batch: Any) -> jax.Array:
        """The mean loss, PyTorch's `cross_entropy`: a scalar."""
        return jnp.mean(self.objective(params, batch))


def problem(sizes: tuple[int, ...], examples: int) -> Problem:
    """A dense network of these sizes, and examples with uniform inputs and labels."""
    network = nl.mlp(sizes, activation=nl.activations.tanh())
    keys = jax.random.split(jax.random.key(0), 3)
    inputs = jax.random.uniform(keys[1], (examples, sizes[0]))
    labels = jax.random.randint(keys[2], (examples,), 0, sizes[-1])
    objective = nl.supervised(network.apply, nl.losses.cross_entropy)
    title = "-".join(map(str, sizes)) + " tanh, cross-entropy, random data"
    return Problem(title, sizes, objective, network.init(keys[0]), (inputs, labels))


def images(examples: int) -> Problem:
    """A small convolutional network, 3 x 3 with stride 2 to 16 and 32 channels, on 28 x 28 uniform pixels."""
    connect, tanh = nl.connections, nl.activations.tanh()
    network = nl.network(
        nl.Layer("image", (28, 28, 1)),
        nl.Layer("low", None, connect.conv(3, channels=16, stride=2), tanh),
        nl.Layer("high", None, connect.conv(3, channels=32, stride=2), tanh),
        nl.Layer("vector", None, connect.flatten()),
        nl.Layer("output", 10, connect.dense()),
    )
    keys = jax.random.split(jax.random.key(0), 3)
    inputs = jax.random.uniform(keys[1], (examples, 28, 28, 1))
    labels = jax.random.randint(keys[2], (examples,), 0, 10)
    objective = nl.supervised(network.apply, nl.losses.cross_entropy)
    title = "28x28-conv16-conv32-10 tanh, cross-entropy, random data"
    return Problem(title, (784, 10), objective, network.init(keys[0]), (inputs, labels))
