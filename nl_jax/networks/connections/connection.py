"""The types of connections, before and after they are joined to a layer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from nl_jax.base import Array, Initializer, Key, Params

Shape = tuple[int, ...]


class Joint(NamedTuple):
    """A connection between two layers of known shapes.

    Attributes:
      shape: the shape of one example's pre-activation.
      init: `init(key, dtype) -> params`.
      apply: `apply(params, axons) -> pre-activation`, batch axis first.
    """

    shape: Shape
    init: Callable[[Key, Any], Params]
    apply: Callable[[Params, Array], Array]


@dataclass(frozen=True, repr=False)
class ConnectionSpec:
    """A connection from a lower layer, whose shapes are not yet known.

    Attributes:
      join: `join(source_shape, shape) -> Joint`, where `shape` is the receiving layer's, or None to infer it. Raises
        ValueError if the shapes do not fit.
      source: the lower layer's name, or None for the layer listed just before.
      kind: its name in a summary, such as "dense".
    """

    join: Callable[[Shape, Shape | None], Joint]
    source: str | None = None
    kind: str = "connection"

    def __repr__(self) -> str:
        return f"{self.kind}({'' if self.source is None else repr(self.source)})"


def weights(
    schemes: dict[str, tuple[Initializer, Shape]], bias_init: Initializer | None, features: int
) -> Callable[[Key, Any], Params]:
    """Returns the `init` of a joint with these weights and, if `bias_init` is given, a bias of shape [features]."""
    drawn = dict(schemes) if bias_init is None else {**schemes, "bias": (bias_init, (features,))}

    def init(key: Key, dtype: Any) -> Params:
        keys = jax.random.split(key, len(drawn))
        return {name: draw(k, shape, dtype) for k, (name, (draw, shape)) in zip(keys, drawn.items(), strict=True)}

    return init
