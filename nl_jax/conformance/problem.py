"""The network that estimators are certified on."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nl_jax import losses
from nl_jax.activations import tanh
from nl_jax.base import ActivationFn, Batch, Objective, Params
from nl_jax.networks.mlp import mlp
from nl_jax.objectives import supervised


class Problem(NamedTuple):
    """A network, an objective on it and a batch."""

    objective: Objective
    params: Params
    batch: Batch
    forward: Any


def chain(activation: ActivationFn | None = None, loss: Any = losses.cross_entropy) -> Problem:
    """Six examples of three classes for a 4-5-3 network: small enough to measure every component's mean well."""
    network = mlp([4, 5, 3], activation=tanh() if activation is None else activation)
    inputs = jax.random.normal(jax.random.key(7), (6, 4))
    params = network.init(jax.random.key(1), inputs.dtype)
    return Problem(supervised(network.apply, loss), params, (inputs, jnp.arange(6) % 3), network.apply)
