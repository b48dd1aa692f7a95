"""Convolution of standardised patches."""

import math
from typing import Any

import jax.numpy as jnp
from jax.nn import initializers

from nl_jax._core.products import product
from nl_jax._core.require import positive_integer, positive_number
from nl_jax.base import Array, Initializer, Key, Params
from nl_jax.networks.connections.connection import ConnectionSpec, Joint, Shape
from nl_jax.networks.connections.convolution import convolve
from nl_jax.networks.connections.images import pair, require_image, spatial


def standardised_conv(
    kernel: int | tuple[int, int],
    source: str | None = None,
    *,
    channels: int,
    stride: int | tuple[int, int] = 1,
    epsilon: float = 0.01,
    weight_init: Initializer = initializers.lecun_normal(),
) -> ConnectionSpec:
    """Convolves standardised patches p of n values: ν_j = Σ_i p̂_i W_ij with p̂ = (p − μ)/√(n (σ² + ε)).

    Units respond to the form of a patch, not to its brightness or contrast (Coates et al. 2011). All units are silent
    for a uniform patch. ‖p̂‖ is nearly 1, so the response of a prototype of norm 1 is its cosine with the patch.

    Args:
      kernel: height and width of W in pixels; one number if they are equal. A kernel as large as the source makes it a
        dense connection.
      source: name of the lower layer; by default the layer listed just before.
      channels: output channels.
      stride: step in pixels, vertical and horizontal; one number if they are equal.
      epsilon: ε, above 0, the variance of patches that count as uniform, in units of the source's axons (activity)
        squared.
      weight_init: scheme for W, shape [height, width, channels in, channels out].

    Raises:
      ValueError: if an argument is not as described.
    """
    window, strides = pair("kernel", kernel), pair("stride", stride)
    positive_integer("channels", channels)
    epsilon = positive_number("epsilon", epsilon)

    def join(source_shape: Shape, shape: Shape | None) -> Joint:
        del shape
        require_image("standardised_conv", source_shape)
        values = math.prod(window) * source_shape[-1]

        def standardised(x: Array, weight: Array) -> Array:
            response = lambda x, weight: convolve(x, weight, strides, "VALID")
            every = jnp.ones((*window, source_shape[-1], 1), x.dtype) / values
            mean = response(x, every)
            variance = jnp.maximum(response(x**2, every) - mean**2, 0)
            sums = jnp.sum(weight, axis=(0, 1, 2), keepdims=True)
            return (response(x, weight) - mean * sums) / jnp.sqrt(values * (variance + epsilon))

        def init(key: Key, dtype: Any) -> Params:
            return {"weight": weight_init(key, (*window, source_shape[-1], channels), dtype)}

        def apply(params: Params, x: Array) -> Array:
            return product(standardised, x, params["weight"])

        return Joint((*spatial(source_shape, window, strides, "VALID"), channels), init, apply)

    return ConnectionSpec(join, source, "standardised_conv")
