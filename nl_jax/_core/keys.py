"""Random keys that depend on a layer's name and step alone."""

import functools
import zlib
from typing import Any

import jax

from nl_jax.base import Key


def layer_key(key: Key, name: str) -> Key:
    """Returns a key for the layer from its name: it does not depend on other layers."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def own_key(key: Key, layer: Any) -> Key:
    """Returns a key for the layer, and in a loop for the step; it does not depend on other layers."""
    return functools.reduce(jax.random.fold_in, layer.steps, layer_key(key, layer.name))
