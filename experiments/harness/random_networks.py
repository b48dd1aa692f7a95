"""Random networks of many layers, and the law of node perturbation's variance for each of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import nl_jax as nl
from experiments.harness.failure import ExperimentError
from nl_jax.propagation import inject, record
from nl_jax.theory import perturbation

GAUSSIAN = 3.0  # kurtosis of the noise


class Case(NamedTuple):
    """A kind of network: all layers have the same number of units, without biases."""

    activation: Callable[[jax.Array], jax.Array]
    """Activation of all layers but the last, which is linear."""
    gain: float
    """Variance of the weights, times the number of inputs."""
    orthogonal: bool = False
    """Whether weights preserve every norm exactly, not only on average."""


CASES = {
    "linear, orthogonal": Case(lambda nu: nu, 1.0, orthogonal=True),
    "tanh, gain 1": Case(jnp.tanh, 1.0),
    "relu, gain 2": Case(jax.nn.relu, 2.0),
    "relu, gain 1": Case(jax.nn.relu, 1.0),
}


def network(activation: Callable[[jax.Array], jax.Array]) -> nl.base.Forward:
    """Hidden layers in a loop over depth, and a linear output; params {"hidden": [depth − 1, in, out], "output"}."""

    def affine(weight: jax.Array, x: jax.Array) -> jax.Array:
        return x @ weight

    def forward(params: Any, x: jax.Array, propagate: Any = nl.propagation.feedforward) -> jax.Array:
        def step(x: jax.Array, weight: jax.Array, propagate: Any) -> tuple[jax.Array, None]:
            return propagate("hidden", affine, activation, weight, x), None

        x, _ = nl.scan("depth", step, x, params["hidden"], propagate)
        return propagate("output", affine, lambda nu: nu, params["output"], x)

    return forward


def draw(case: Case, depth: int, width: int, networks: int) -> tuple[Any, tuple[np.ndarray, np.ndarray]]:
    """Parameters and one example for each network: Gaussian inputs, targets in a random direction from the outputs.

    The targets' distance from the outputs is about the outputs' size, so that rounding of the loss does not hide a
    gradient, however small. A network with a silent layer has no gradient and is drawn again.

    Raises:
      ExperimentError: if most networks have a silent layer.
    """
    random = np.random.default_rng((depth, width))
    drawn = 2 * networks + 10
    weights = random.normal(size=(drawn, depth, width, width)) * (case.gain / width) ** 0.5
    if case.orthogonal:
        weights = np.linalg.qr(weights).Q * case.gain**0.5
    inputs, errors = random.normal(size=(2, drawn, 1, width))
    x = inputs
    for layer in range(depth - 1):
        x = np.asarray(case.activation(x @ weights[:, layer]))
    heard = np.flatnonzero(np.any(x != 0, axis=(1, 2)))[:networks]
    if len(heard) < networks:
        raise ExperimentError(f"--widths: of {depth} layers of {width} units most are silent; take wider ones")
    outputs = x @ weights[:, -1]
    targets = outputs + np.mean(outputs**2, axis=2, keepdims=True) ** 0.5 * errors
    return {"hidden": weights[heard, :-1], "output": weights[heard, -1]}, (inputs[heard], targets[heard])


def second_moment(forward: nl.base.Forward, params: Any, batch: Any) -> jax.Array:
    """s of node perturbation by its law, from this network's axons (activity) and credit."""
    objective = nl.supervised(forward, nl.losses.half_squared_error)
    _, axons = record(forward)(params, batch[0])
    zeros = jax.tree.map(jnp.zeros_like, axons)
    credit = jax.grad(lambda offsets: jnp.sum(inject(objective)(params, batch, offsets)))(zeros)
    below = jnp.concatenate([batch[0][None], axons["depth/hidden"]])
    credits = jnp.concatenate([credit["depth/hidden"], credit["output"][None]])
    layers = {str(l): layer for l, layer in enumerate(zip(below, credits, strict=True))}
    return perturbation.nodes(layers, kurtosis=GAUSSIAN)
