"""Deep residual networks: one layer with a skip connection, repeated in a loop over depth."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nl_jax._core.require import positive_integer, takes, typed_key
from nl_jax.activations import identity
from nl_jax.base import ActivationFn, Array, Key, Params, Propagate
from nl_jax.networks.scalings import Scaling, ScalingFn, Weight, depth_mup
from nl_jax.propagation import feedforward, scan


class Residual(NamedTuple):
    """A residual network as pure functions.

    Attributes:
      init: `init(key, dtype=float32) -> params`: "first" and "output" hold one weight each; "block" holds the stacked
        weights of all layers between them, [layers − 2, units, units].
      apply: `apply(params, inputs, propagate=feedforward) -> outputs`, [batch, inputs] to [batch, outputs].
      scaling: the initial deviations and the multipliers of its weights.
    """

    init: Callable[..., Params]
    apply: Callable[..., Array]
    scaling: Scaling


def residual(
    inputs: int,
    units: int,
    outputs: int,
    *,
    layers: int,
    activation: ActivationFn,
    scaling: ScalingFn = depth_mup,
) -> Residual:
    """A residual network whose layers run in a loop called "depth"; `scaling` sets the size of its weights.

        x_1 = a_1 W_1 x_0
        x_l = x_{l−1} + a_l W_l f(x_{l−1})   for l = 2 … L − 1
        x_L = a_L W_L f(x_{L−1})

    The default is the network of μPC (Innocenti et al. 2025, table 1), for predictive coding through a hundred layers.
    A layer's axons (activity) x_l are the whole sum. Predictive coding therefore uses the error
    x_l − x_{l−1} − a_l W_l f(x_{l−1}), as the paper does. There are no biases. Only one layer is compiled, whatever
    the depth.

    Args:
      inputs: N₀, at least 1.
      units: N, of each hidden layer, at least 1.
      outputs: at least 1.
      layers: L, the number of weight matrices, at least 3.
      activation: f, any elementwise function; the first layer and the outputs are linear.
      scaling: `nl.scalings.depth_mup`, `nl.scalings.standard` or any function `scaling(inputs, units, layers)`.

    Returns:
      A `Residual` network of pure functions, with layers "first", "depth/block" and "output".

    Raises:
      ValueError: if an argument is not as described; when run, for inputs of another shape.

    >>> import jax, nl_jax as nl
    >>> net = residual(64, 32, 10, layers=100, activation=nl.activations.tanh())
    >>> params = net.init(jax.random.key(0))
    >>> params["block"]["weight"].shape
    (98, 32, 32)
    >>> net.apply(params, jax.numpy.ones([5, 64])).shape
    (5, 10)
    """
    inputs, units, outputs = (
        positive_integer(name, n) for name, n in {"inputs": inputs, "units": units, "outputs": outputs}.items()
    )
    if positive_integer("layers", layers) < 3:
        raise ValueError(f"layers must be at least 3, one with a skip connection between first and last, got {layers}")
    takes("activation", activation, 1, "those of nl.activations are made by a call, nl.activations.tanh()")
    takes("scaling", scaling, 3, "choose nl.scalings.depth_mup or nl.scalings.standard, without a call")
    of = scaling(inputs, units, layers)

    def init(key: Key, dtype: jax.typing.DTypeLike = jnp.float32) -> Params:
        typed_key(key)

        def drawn(key: Key, weight: Weight, *shape: int) -> Params:
            return {"weight": jnp.asarray(weight.deviation, dtype) * jax.random.normal(key, shape, dtype)}

        first, block, output = jax.random.split(key, 3)
        return {
            "first": drawn(first, of.first, inputs, units),
            "block": drawn(block, of.block, layers - 2, units, units),
            "output": drawn(output, of.output, units, outputs),
        }

    def enter(params: Params, x: Array) -> Array:
        return of.first.multiplier * (x @ params["weight"])

    def add(params: Params, x: Array) -> Array:
        return x + of.block.multiplier * (activation(x) @ params["weight"])

    def read(params: Params, x: Array) -> Array:
        return of.output.multiplier * (activation(x) @ params["weight"])

    def apply(params: Params, x: Array, propagate: Propagate = feedforward) -> Array:
        if jnp.ndim(x) != 2 or x.shape[1] != inputs:
            raise ValueError(f"inputs must have shape [batch, {inputs}], got {list(jnp.shape(x))}")

        def block(x: Array, own: Params, propagate: Propagate) -> tuple[Array, Any]:
            return propagate("block", add, identity(), own, x), None

        x = propagate("first", enter, identity(), params["first"], x)
        x, _ = scan("depth", block, x, params["block"], propagate)
        return propagate("output", read, identity(), params["output"], x)

    return Residual(init, apply, of)
