"""Prepares what all members learn: digits, networks and the parameters and batches of each seed."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nl_jax as nl
from experiments.harness import data
from nl_jax.base import Array, Params

MOMENTS = 10  # number of times at which training is evaluated


class Settings(NamedTuple):
    """The settings of `Config` that the parts share."""

    hidden: tuple[int, ...]
    penalties: tuple[float, ...]
    iterations: tuple[int, ...]
    updates: int
    batch_size: int
    learning_rate: float
    decay: float
    seeds: int


class Start(NamedTuple):
    """A seed's initial parameters and training batches, the same for all members; stacked by seed."""

    key: Array
    params: Params
    linear: Params
    """Parameters of the linear network."""
    drawn: Array
    """Indices of the training examples, [moments, updates per moment, batch]."""


class Images(NamedTuple):
    """Images and one-hot targets, passed to every program as arguments; as constants they would slow compilation."""

    train: tuple[Array, Array]
    test: tuple[Array, Array]


class Lesson(NamedTuple):
    """The data, network and objective to learn."""

    data: Images
    starts: Start
    network: nl.Network
    objective: Callable[..., Array]
    settings: Settings

    @property
    def batch(self) -> tuple[Array, Array]:
        """The batch on which errors are measured."""
        return jax.tree.map(lambda x: x[: self.settings.batch_size], self.data.train)

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """The optimizer of all members."""
        return optax.chain(optax.add_decayed_weights(self.settings.decay), optax.sgd(self.settings.learning_rate))


def lesson_of(settings: Settings, digits: data.Dataset) -> Lesson:
    """Returns the lesson on these digits, in double precision."""
    train, test = (
        (jnp.asarray(split.images, jnp.float64), jax.nn.one_hot(split.labels, digits.num_classes, dtype=jnp.float64))
        for split in (digits.train, digits.test)
    )
    network = _network(settings)
    objective = nl.supervised(network.apply, nl.losses.half_squared_error)
    keys = jax.random.split(jax.random.key(0), settings.seeds)
    moments = (settings.seeds, MOMENTS, settings.updates // MOMENTS, settings.batch_size)

    @jax.jit
    @jax.vmap
    def begin(key: Array, drawn: Array) -> Start:
        return Start(key, network.init(key, jnp.float64), linear(settings).init(key, jnp.float64), drawn)

    starts = begin(keys, np.random.default_rng(0).integers(len(train[0]), size=moments))
    return Lesson(Images(train, test), starts, network, objective, settings)


def _network(settings: Settings) -> nl.Network:
    return nl.mlp([64, *settings.hidden, 10], activation=nl.activations.tanh())


def linear(settings: Settings) -> nl.Network:
    """Returns the linear network, whose estimates theory predicts."""
    return nl.mlp([64, *settings.hidden, 10], activation=nl.activations.identity(), bias=False)
