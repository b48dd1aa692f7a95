"""All-to-all connections, with or without lateral connections within the layer."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import initializers
from jax.scipy.linalg import solve_triangular

from nl_jax.base import Array, Initializer, Key, Params
from nl_jax.networks.connections.connection import ConnectionSpec, Joint, Shape, weights


class Dense(ConnectionSpec):
    """An all-to-all connection, ν = x W + b; code that converts parameters recognises it by its type."""


def dense(
    source: str | None = None,
    *,
    weight_init: Initializer = initializers.lecun_normal(),
    bias: bool = True,
    bias_init: Initializer = initializers.zeros,
) -> Dense:
    """All-to-all connection between vectors: ν = x W + b (seed 003 eq. 6, with examples as rows).

    Args:
      source: name of the lower layer; by default the layer listed just before.
      weight_init: scheme for W, shape [inputs, units].
      bias: whether there is a b, shape [units]. A layer with several connections needs only one.
      bias_init: scheme for b.
    """

    def join(source_shape: Shape, shape: Shape | None) -> Joint:
        if len(source_shape) != 1:
            raise ValueError(f"dense reads a vector, its source has shape {source_shape}: put a flatten layer between")
        if shape is None or len(shape) != 1:
            raise ValueError(f"dense needs a layer of shape (units,), got {shape}")
        units = shape[0]

        def apply(params: Params, x: Array) -> Array:
            nu = x @ params["weight"]
            return nu + jnp.expand_dims(params["bias"], 0) if bias else nu

        init = weights({"weight": (weight_init, (source_shape[0], units))}, bias_init if bias else None, units)
        return Joint(shape, init, apply)

    return Dense(join, source, "dense")


def lateral_dense(
    source: str | None = None,
    *,
    weight_init: Initializer = initializers.lecun_normal(),
    lateral_init: Initializer = initializers.zeros,
    bias: bool = True,
    bias_init: Initializer = initializers.zeros,
) -> ConnectionSpec:
    """All-to-all connection where each unit is inhibited by those before it: ν_j = (x W + b)_j − Σ_{i<j} ν_i C_ij.

    This is the lateral inhibition of Kung and Diamantaras (1990) among linear units, see `nl.rules.apex`. The lateral
    connections are triangular, so ν solves ν (I + C) = x W + b in one pass.

    Args:
      source: name of the lower layer; by default the layer listed just before.
      weight_init: scheme for W, shape [inputs, units].
      lateral_init: scheme for C, `params["lateral"]` of shape [units, units]; only entries above the diagonal are used.
      bias: whether there is a b, shape [units].
      bias_init: scheme for b.
    """

    def join(source_shape: Shape, shape: Shape | None) -> Joint:
        plain = dense(weight_init=weight_init, bias=bias, bias_init=bias_init).join(source_shape, shape)
        (units,) = plain.shape

        def init(key: Key, dtype: Any) -> Params:
            key, lateral_key = jax.random.split(key)
            return {**plain.init(key, dtype), "lateral": lateral_init(lateral_key, (units, units), dtype)}

        def apply(params: Params, x: Array) -> Array:
            C = jnp.triu(params["lateral"], k=1)
            return solve_triangular(C, plain.apply(params, x).T, trans=1, unit_diagonal=True).T

        return Joint(plain.shape, init, apply)

    return ConnectionSpec(join, source, "lateral_dense")
