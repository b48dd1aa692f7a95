"""The type of a cell, and the weighted sum of inputs and recurrent units that all cells share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import initializers

from nl_jax.base import Array, Initializer, Key, Params

Carry = dict[str, Array]


class Cell(NamedTuple):
    """One step of a recurrent network, as pure functions.

    Attributes:
      units: the number of outputs.
      init: `init(key, inputs, dtype=float32) -> params`, nested dicts by layer; `inputs` is the number of inputs.
      start: `start(batch, dtype=float32) -> carry`, the state before the first step, arrays [batch, units].
      step: `step(params, carry, x, propagate) -> (carry, output)`, x [batch, inputs], output [batch, units].
    """

    units: int
    init: Callable[..., Params]
    start: Callable[..., Carry]
    step: Callable[[Params, Carry, Array, Any], tuple[Carry, Array]]

    def __repr__(self) -> str:
        return f"Cell({self.units} units)"


def connected(params: Params, x: Array, h: Array) -> Array:
    """Computes ν = x W + h U + b."""
    return x @ params["weight"] + h @ params["recurrent"] + jnp.expand_dims(params["bias"], 0)


def weights(
    key: Key,
    inputs: int,
    units: int,
    dtype: jax.typing.DTypeLike,
    weight_init: Initializer,
    recurrent_init: Initializer,
) -> Params:
    """Initialises W [inputs, units], U [units, units] and b [units] of one weighted sum."""
    keys = jax.random.split(key)
    return {
        "weight": weight_init(keys[0], (inputs, units), dtype),
        "recurrent": recurrent_init(keys[1], (units, units), dtype),
        "bias": jnp.zeros(units, dtype),
    }


WEIGHT_INIT, RECURRENT_INIT = initializers.lecun_normal(), initializers.orthogonal()


def silent(*names: str, units: int) -> Callable[..., Carry]:
    """Returns the `start` function of a cell whose initial state is zero."""

    def start(batch: int, dtype: jax.typing.DTypeLike = jnp.float32) -> Carry:
        return {name: jnp.zeros((batch, units), dtype) for name in names}

    return start
