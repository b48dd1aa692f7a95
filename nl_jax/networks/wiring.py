"""A network: a hierarchy of layers joined by connections (seed 003 §1).

The seed's four terms are axons (a layer's activity), layer (their geometry), connection (from lower layers) and update
(the activation).
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nl_jax._core.paths import path_name
from nl_jax._core.require import typed_key
from nl_jax.base import ActivationFn, Array, Key, Params, Propagate
from nl_jax.networks import diagram, summary
from nl_jax.networks.connections import ConnectionSpec, Joint, Shape
from nl_jax.networks.layers import Layer, Transform
from nl_jax.propagation import feedforward, record


class Network(NamedTuple):
    """A network as pure functions. `print(network)` shows its summary.

    Attributes:
      init: `init(key, dtype=float32) -> params`, nested dicts such as `params["hidden"]["weight"]`. A layer that
        receives several connections nests them by source: `params["output"]["hidden"]["weight"]`.
      apply: `apply(params, inputs, propagate=feedforward) -> outputs`, the axons (activity) of the last layer.
      axons: `axons(params, inputs) -> {layer: axons}`, the axons of every layer, including the input.
      shapes: one example's shape by layer, from the input up.
      layers: the layers it was built from.
    """

    init: Callable[..., Params]
    apply: Callable[..., Array]
    axons: Callable[[Params, Array], dict[str, Array]]
    shapes: dict[str, Shape]
    layers: tuple[Layer, ...]

    def named(self, name: str) -> "Network":
        """Returns the network with "name." before each layer's name, so that several can be parts of one network.

        Raises:
          ValueError: if the name is empty or not a string.
        """
        if not isinstance(name, str) or not name:
            raise ValueError(f"name must be a non-empty string, got {name!r}")
        names = {layer.name: f"{name}.{layer.name}" for layer in self.layers}
        return network(*(layer.renamed(names) for layer in self.layers))

    def summary(self) -> str:
        """Returns a table of layers: shapes, activations, connections and parameters."""
        return summary.table(self)

    def diagram(self, **settings: Any) -> Any:
        """Draws units and connections as a matplotlib figure; settings are those of `nl_jax.networks.diagram.draw`."""
        return diagram.draw(self, **settings)

    def __repr__(self) -> str:
        chain = " → ".join(f"{name} {'×'.join(map(str, shape))}" for name, shape in self.shapes.items())
        return f"Network({chain})"

    def __str__(self) -> str:
        return self.summary()


class _Wired(NamedTuple):
    """A layer whose connections are joined to the layers below."""

    name: str
    shape: Shape
    sources: tuple[str, ...]
    joints: dict[str, Joint]
    activation: ActivationFn
    transform: Transform

    def init(self, key: Key, dtype: jax.typing.DTypeLike) -> Params:
        keys = jax.random.split(key, len(self.joints))
        parts = {source: joint.init(k, dtype) for k, (source, joint) in zip(keys, self.joints.items(), strict=True)}
        joined = parts if len(parts) > 1 else next(iter(parts.values()))
        own = self.transform.init(self.shape, dtype)
        for taken in joined.keys() & own.keys():
            raise ValueError(f"layer {self.name!r} has a parameter {taken!r} of its own: rename its source {taken!r}")
        return joined | own

    @property
    def connection(self) -> Callable[..., Array]:
        return self.transform.apply(self.total)

    def total(self, params: Params, *inputs: Array) -> Array:
        # z_i starts at 0 and accumulates (seed 003 eq. 12); so does the pre-activation.
        if len(self.joints) == 1:
            (joint,) = self.joints.values()
            return joint.apply(params, *inputs)
        parts = [joint.apply(params[source], x) for (source, joint), x in zip(self.joints.items(), inputs, strict=True)]
        return sum(parts[1:], start=parts[0])


def network(*layers: Layer | Network) -> Network:
    """Builds a network from its layers, listed from the input up.

    The first layer is the input and has no connections; every other layer receives connections from
    any layers listed before it; the last layer's axons are the outputs.

    A network among the layers is a part of the hierarchy (seed 003 §1). Its layers are added to the list, and the layer
    listed before it replaces its input layer.

    Args:
      *layers: layers, at least two, or networks.

    Returns:
      A `Network` of pure functions.

    Raises:
      ValueError: for a duplicate name, a source that is missing or not below, or shapes that do not fit. The message
        names the layer.

    >>> import jax, nl_jax as nl
    >>> net = network(
    ...     nl.Layer("input", 4),
    ...     nl.Layer("hidden", 8, nl.connections.dense(), nl.activations.tanh()),
    ...     nl.Layer("output", 2, [nl.connections.dense("hidden"), nl.connections.dense("input", bias=False)]),
    ... )
    >>> jax.tree.map(jax.numpy.shape, net.init(jax.random.key(0)))["output"]
    {'hidden': {'bias': (2,), 'weight': (8, 2)}, 'input': {'weight': (4, 2)}}

    >>> eye = nl.mlp([16, 8, 4], activation=nl.activations.relu()).named("eye")
    >>> network(eye, nl.mlp([4, 2], activation=nl.activations.relu()))
    Network(eye.input 16 → eye.hidden1 8 → eye.output 4 → output 2)
    """
    for layer in layers:
        if not isinstance(layer, Layer | Network):
            raise ValueError(f"network takes layers one by one, network(*layers); got {type(layer).__name__}")
    layers, met = _unfolded(layers)
    if len(layers) < 2 or layers[0].connections or layers[0].shape is None:
        raise ValueError(
            "a network needs at least two layers, the first being the input: a Layer with a shape and no "
            f"connections; got {', '.join(repr(layer.name) for layer in layers) or 'none'}"
        )
    source = layers[0]
    shapes: dict[str, Shape] = {source.name: layers[0].shape}
    wired: list[_Wired] = []
    for below, layer in itertools.pairwise(layers):
        if layer.name in shapes:
            raise ValueError(
                f"two layers are named {layer.name!r}: give each layer its own name, and a network among layers "
                'one by network.named("name")'
            )
        sources, joints = _join(layer, below.name, shapes)
        shapes[layer.name] = _agreed_shape(layer, joints)
        wired.append(_Wired(layer.name, shapes[layer.name], sources, joints, layer.activation, layer.transform))
    for name, inner, shape in met:
        if shapes[name] != shape:
            raise ValueError(
                f"the network whose input is {inner!r} reads shape {shape}, and layer {name!r} listed before it has "
                f"{shapes[name]}"
            )

    def init(key: Key, dtype: jax.typing.DTypeLike = jnp.float32) -> Params:
        typed_key(key)
        keys = jax.random.split(key, len(wired))
        return {layer.name: layer.init(k, dtype) for k, layer in zip(keys, wired, strict=True)}

    expected = jax.eval_shape(init, jax.random.key(0))

    def apply(params: Params, inputs: Array, propagate: Propagate = feedforward) -> Array:
        _check_inputs(inputs, source.name, shapes)
        _check_params(params, expected)
        axons = {source.name: inputs}
        for layer in wired:
            received = (axons[name] for name in layer.sources)
            axons[layer.name] = propagate(layer.name, layer.connection, layer.activation, params[layer.name], *received)
        return axons[wired[-1].name]

    def axons(params: Params, inputs: Array) -> dict[str, Array]:
        return {source.name: inputs} | record(apply)(params, inputs)[1]

    return Network(init, apply, axons, shapes, layers)


def _unfolded(layers: Sequence[Layer | Network]) -> tuple[tuple[Layer, ...], list[tuple[str, str, Shape]]]:
    """Flattens the parts: all layers, and for each part the layer before it and its input's name and shape."""
    flat: list[Layer] = []
    met: list[tuple[str, str, Shape]] = []
    for item in layers:
        if isinstance(item, Layer):
            flat.append(item)
            continue
        entry, *inner = item.layers
        if not flat:
            flat.append(entry)
        below = flat[-1].name
        met.append((below, entry.name, item.shapes[entry.name]))
        flat.extend(layer.renamed({entry.name: below}) for layer in inner)
    return tuple(flat), met


def _join(layer: Layer, below: str, shapes: Mapping[str, Shape]) -> tuple[tuple[str, ...], dict[str, Joint]]:
    """Returns the layer's sources and its joints by source; a second joint from one source gets the suffix "_2"."""
    if not layer.connections:
        raise ValueError(f"layer {layer.name!r} receives no connection; only the first layer may")
    sources: list[str] = []
    joints: dict[str, Joint] = {}
    for connection in layer.connections:
        if not isinstance(connection, ConnectionSpec):
            raise ValueError(f"layer {layer.name!r}: {connection!r} is not a connection of nl.connections")
        name = below if connection.source is None else connection.source
        if name not in shapes:
            raise ValueError(
                f"layer {layer.name!r} receives from {name!r}, which is not a layer below it; "
                f"below it are {', '.join(map(repr, shapes))}"
            )
        sources.append(name)
        key = name if sources.count(name) == 1 else f"{name}_{sources.count(name)}"
        if key in joints:
            raise ValueError(f"layer {layer.name!r} has two connections whose parameters are called {key!r}")
        try:
            joints[key] = connection.join(shapes[name], layer.shape)
        except ValueError as error:
            raise ValueError(f"layer {layer.name!r}, connection from {name!r}: {error}") from error
    return tuple(sources), joints


def _agreed_shape(layer: Layer, joints: Mapping[str, Joint]) -> Shape:
    wanted = next(iter(joints.values())).shape if layer.shape is None else layer.shape
    for name, joint in joints.items():
        if joint.shape != wanted:
            raise ValueError(
                f"layer {layer.name!r} has shape {wanted}, but its connection from {name!r} gives {joint.shape}"
            )
    return wanted


def _check_inputs(inputs: Array, source: str, shapes: Mapping[str, Shape]) -> None:
    if isinstance(inputs, tuple | list | dict):
        raise ValueError(
            f"a network takes an array of inputs, got a {type(inputs).__name__} {jax.tree.map(jnp.shape, inputs)}: "
            "make an objective of it, by nl.supervised(network.apply, loss), which takes (inputs, targets)"
        )
    if jnp.ndim(inputs) == 0 or jnp.shape(inputs)[1:] != shapes[source]:
        raise ValueError(
            f"input layer {source!r} takes inputs of shape [batch, {', '.join(map(str, shapes[source]))}], "
            f"got {list(jnp.shape(inputs))}"
        )


def _check_params(params: Params, expected: Params) -> None:
    for name, layer in expected.items():
        if name not in params:
            raise ValueError(f"params have no entry for layer {name!r}; make them with network.init(key)")
        here, there = _shapes(params[name]), _shapes(layer)
        if here != there:
            raise ValueError(f"layer {name!r} has parameters of shapes {there}, got {here}")


def _shapes(params: Params) -> dict[str, Shape]:
    return {path_name(path): np.shape(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
