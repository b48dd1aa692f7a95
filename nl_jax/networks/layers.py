"""A layer: its shape, the connections that it receives, and its activation (seed 003 §1)."""

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Self

from nl_jax._core.require import is_size, takes
from nl_jax.activations import identity, named, require_true_derivative
from nl_jax.base import ActivationFn, Array
from nl_jax.networks.connections import ConnectionSpec, Shape


class Transform(NamedTuple):
    """A transform of a layer's whole pre-activation (the sum over its connections).

    Attributes:
      init: `init(shape, dtype) -> params`, the transform's own parameters by name, for one example's shape. They are
        stored next to the layer's parameters.
      apply: `apply(connection) -> connection`; both are functions `(params, *inputs) -> pre-activation` of all
        connections together.
      name: its name in a summary.
    """

    init: Callable[[Shape, Any], dict[str, Array]]
    apply: Callable[[Callable[..., Array]], Callable[..., Array]]
    name: str


_UNCHANGED = Transform(lambda shape, dtype: {}, lambda connection: connection, "")


class Layer:
    """One layer of a hierarchy: its name, shape, incoming connections and activation.

    Its pre-activation is the sum over its connections, ν_j = Σ_i (M_ji x_i + b_j), and its axons (activity) are
    x_j = f_j(ν_j) (seed 003 eq. 6, 12).

    Args:
      name: unique in the network.
      shape: shape of one example's axons: (units,) or units for a vector, (height, width, channels) for an image.
        None infers it from the connections (convolution, pooling, flatten).
      connections: one or several connections made by `nl.connections`; none for the input layer.
      activation: any elementwise function; those of `nl.activations` know their derivative.

    Raises:
      ValueError: if a size is not a whole number of at least 1, the name is empty, a layer without connections has an
        activation, or an activation's declared derivative is not its function's.
    """

    def __init__(
        self,
        name: str,
        shape: int | Sequence[int] | None = None,
        connections: ConnectionSpec | Sequence[ConnectionSpec] = (),
        activation: ActivationFn | None = None,
    ) -> None:
        if not isinstance(name, str) or not name:
            raise ValueError(f"a layer's name must be a non-empty string, got {name!r}")
        sizes = shape if shape is None or isinstance(shape, Sequence) else (shape,)
        if sizes is not None and not all(map(is_size, sizes)):
            raise ValueError(f"layer {name!r}: shape must be of whole numbers of at least 1, got {shape!r}")
        self.name = name
        self.shape: Shape | None = None if sizes is None else tuple(map(int, sizes))
        self.connections = (connections,) if isinstance(connections, ConnectionSpec) else tuple(connections)
        if activation is not None:
            remedy = "those of nl.activations are made by a call, nl.activations.tanh()"
            takes(f"layer {name!r}: activation", activation, 1, remedy)
        if activation is not None and not self.connections:
            raise ValueError(f"layer {name!r} receives no connection, so that its activation would never be used")
        require_true_derivative(activation, name)
        self.activation: ActivationFn = identity() if activation is None else activation
        self.transform = _UNCHANGED

    def __repr__(self) -> str:
        if not self.connections:
            return f"Layer({self.name!r}, {self.shape})"
        connections = ", ".join(map(repr, self.connections))
        return f"Layer({self.name!r}, {self.shape}, [{connections}], {named(self.activation)})"

    def renamed(self, names: Mapping[str, str]) -> Self:
        """Returns a copy with the layer and its sources renamed by the mapping `names`."""
        layer = copy.copy(self)
        layer.name = names.get(self.name, self.name)
        layer.connections = tuple(
            dataclasses.replace(one, source=names.get(one.source, one.source)) if one.source else one
            for one in self.connections
        )
        return layer

    def transformed(self, transform: Transform) -> Self:
        """Returns a copy of the layer whose pre-activation is transformed.

        Raises:
          ValueError: if the layer has no connections or already has a transform.
        """
        if not self.connections:
            raise ValueError(f"layer {self.name!r} receives no connection, so that there is nothing to transform")
        if self.transform is not _UNCHANGED:
            raise ValueError(f"layer {self.name!r} is transformed twice; a layer can have only one transform")
        layer = copy.copy(self)
        layer.transform = transform
        return layer
