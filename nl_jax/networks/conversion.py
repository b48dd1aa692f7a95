"""Converts a network of logistic sigmoid units into an equivalent network of tanh units."""

import copy
import itertools
from collections.abc import Container
from typing import Any

import jax
import jax.numpy as jnp

from nl_jax.activations import Activation, sigmoid_by_tanh, tanh
from nl_jax.base import Params
from nl_jax.networks.connections import Dense
from nl_jax.networks.layers import Layer
from nl_jax.networks.wiring import Network, network


def tanh_from_sigmoid(net: Network, params: Params) -> tuple[Network, Params]:
    """Converts to the equivalent network of tanh units (seed 000, logistic sigmoid and hyperbolic tangent).

    Since σ(ν) = (tanh(ν/2) + 1)/2, every hidden layer of logistic sigmoid units becomes one of tanh(ν/2) units, and
    the layers that read it get w' = w/2 and b' = b + Σ_i w_i/2. Sigmoid units in the last layer, which no layer reads,
    become `sigmoid_by_tanh`. Everything else is unchanged.

    Args:
      net: a network made by `nl.network`, of any depth and hierarchy. Its sigmoid units are those of
        `nl.activations.sigmoid()` and `jax.nn.sigmoid`.
      params: its parameters.

    Returns:
      The new network and its parameters, a tree of the same structure.

    Raises:
      ValueError: if a hidden sigmoid layer is read by a connection that is not dense, or by a layer none of whose
        dense connections has a bias. The message names the layers.

    >>> import jax, nl_jax as nl
    >>> net = nl.mlp([3, 4, 1], activation=nl.activations.sigmoid())
    >>> params = net.init(jax.random.key(0))
    >>> x = jax.random.normal(jax.random.key(1), (5, 3))
    >>> converted, tanh_params = tanh_from_sigmoid(net, params)
    >>> bool(abs(converted.apply(tanh_params, x) - net.apply(params, x)).max() < 1e-6)
    True
    """
    sigmoids = {layer.name for layer in net.layers if _is_sigmoid(layer)}
    *below, last = net.layers
    units = [_respond(layer, tanh(beta=0.5)) if layer.name in sigmoids else layer for layer in below]
    output = _respond(last, sigmoid_by_tanh()) if last.name in sigmoids else last
    converted = {
        layer.name: _read_tanh(layer, lower.name, params[layer.name], sigmoids)
        for lower, layer in itertools.pairwise(net.layers)
    }
    return network(*units, output), {**params, **converted}


def _is_sigmoid(layer: Layer) -> bool:
    f = layer.activation
    return (f.function if isinstance(f, Activation) else f) is jax.nn.sigmoid


def _respond(layer: Layer, activation: Activation) -> Layer:
    layer = copy.copy(layer)
    layer.activation = activation
    return layer


def _read_tanh(layer: Layer, lower: str, params: Params, sigmoids: Container[str]) -> Params:
    """Converts a layer's parameters for lower axons (activity) 2σ(ν) − 1 instead of σ(ν)."""
    connections = {lower if c.source is None else c.source: c for c in layer.connections}
    nested = len(connections) > 1  # as network.init nests parameters by source
    parts: dict[str, Any] = dict(params) if nested else dict.fromkeys(connections, params)
    biased = [name for name, c in connections.items() if isinstance(c, Dense) and "bias" in parts[name]]
    for name, connection in connections.items():
        if name not in sigmoids:
            continue
        remedy = f"give {name!r} the activation nl.activations.sigmoid_by_tanh(), which is left as it is"
        if not isinstance(connection, Dense):
            raise ValueError(f"layer {layer.name!r} reads the sigmoid layer {name!r} by what is not dense: {remedy}")
        if not biased:
            raise ValueError(
                f"layer {layer.name!r} reads the sigmoid layer {name!r} without a bias to shift: give a dense "
                f"connection of {layer.name!r} one, dense(bias=True), or {remedy}"
            )
        weight = parts[name]["weight"] / 2
        parts[name] = {**parts[name], "weight": weight}
        shifted = name if name in biased else biased[0]
        parts[shifted] = {**parts[shifted], "bias": parts[shifted]["bias"] + jnp.sum(weight, axis=0)}
    return parts if nested else parts[next(iter(connections))]
