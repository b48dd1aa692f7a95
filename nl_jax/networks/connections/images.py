"""Connections between images, [height, width, channels]: convolution and pooling."""

import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax.nn import initializers

from nl_jax._core.products import product
from nl_jax._core.require import is_size, positive_integer
from nl_jax.base import Array, Initializer, Params
from nl_jax.networks.connections.connection import ConnectionSpec, Joint, Shape, weights
from nl_jax.networks.connections.convolution import convolve, explicit_padding


def conv(
    kernel: int | tuple[int, int],
    source: str | None = None,
    *,
    channels: int | None = None,
    stride: int | tuple[int, int] = 1,
    padding: str | tuple[tuple[int, int], tuple[int, int]] = "VALID",
    weight_init: Initializer = initializers.lecun_normal(),
    bias: bool = True,
    bias_init: Initializer = initializers.zeros,
) -> ConnectionSpec:
    """2-D convolution, ν = x ∗ W + b, from an image to an image.

    Args:
      kernel: height and width of W in pixels; one number if they are equal.
      source: name of the lower layer; by default the layer listed just before.
      channels: output channels; by default the receiving layer's last axis.
      stride: step in pixels, vertical and horizontal; one number if they are equal.
      padding: "VALID", "SAME", or ((top, bottom), (left, right)) in pixels.
      weight_init: scheme for W, shape [height, width, channels in, channels out].
      bias: whether there is a b, shape [channels out].
      bias_init: scheme for b.

    Raises:
      ValueError: if kernel, stride, channels or padding are not of these forms.
    """
    window, strides = pair("kernel", kernel), pair("stride", stride)
    _check_padding(padding)
    if channels is not None:
        positive_integer("channels", channels)

    def join(source_shape: Shape, shape: Shape | None) -> Joint:
        require_image("conv", source_shape)
        if shape is not None and len(shape) != 3:
            raise ValueError(f"conv needs a layer of shape (height, width, channels), got {shape}")
        features = channels if channels is not None else shape[-1] if shape is not None else None
        if features is None:
            raise ValueError("conv needs channels=… where the layer's shape is left to be inferred")

        def apply(params: Params, x: Array) -> Array:
            nu = product(lambda x, weight: convolve(x, weight, strides, padding), x, params["weight"])
            return nu + jnp.expand_dims(params["bias"], (0, 1, 2)) if bias else nu

        weight = (*window, source_shape[-1], features)
        init = weights({"weight": (weight_init, weight)}, bias_init if bias else None, features)
        return Joint((*spatial(source_shape, window, strides, padding), features), init, apply)

    return ConnectionSpec(join, source, "conv")


def max_pool(
    window: int | tuple[int, int],
    source: str | None = None,
    *,
    stride: int | tuple[int, int] | None = None,
    padding: str | tuple[tuple[int, int], tuple[int, int]] = "VALID",
) -> ConnectionSpec:
    """Max pooling: the largest input of each window, from an image to an image (seed 003 eq. 11).

    The seed defines it as a connection of weight 1 on the largest input and 0 elsewhere, so credit flows only to the
    winner. Among equal inputs the first (row by row) wins.

    Args:
      window: height and width in pixels; one number if they are equal.
      source: name of the lower layer; by default the layer listed just before.
      stride: step in pixels; by default the window.
      padding: as for `conv`; padding never wins.

    Raises:
      ValueError: if window, stride or padding are not of these forms.
    """
    size = pair("window", window)
    strides = size if stride is None else pair("stride", stride)
    _check_padding(padding)

    def join(source_shape: Shape, shape: Shape | None) -> Joint:
        del shape
        require_image("max_pool", source_shape)
        height, width = spatial(source_shape, size, strides, padding)
        pads = explicit_padding(source_shape[:2], size, strides, padding)
        if any(max(side) >= length for side, length in zip(pads, size, strict=True)):
            raise ValueError(
                f"padding {pads} leaves windows of {size} with nothing but padding; keep it below the window"
            )

        def apply(params: Params, x: Array) -> Array:
            del params
            if any(map(any, pads)):
                x = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=-jnp.inf)
            down, across = strides
            # Position (i, j) of all windows at once, for every position.
            contenders = [
                x[:, i : i + down * (height - 1) + 1 : down, j : j + across * (width - 1) + 1 : across]
                for i in range(size[0])
                for j in range(size[1])
            ]
            return functools.reduce(_winner, contenders)

        return Joint((height, width, source_shape[-1]), lambda key, dtype: {}, apply)

    return ConnectionSpec(join, source, "max_pool")


def _winner(best: Array, challenger: Array) -> Array:
    # jnp.maximum would split credit between equal inputs. A NaN wins, so that it propagates.
    return jnp.where((best >= challenger) | jnp.isnan(best), best, challenger)


def pair(name: str, value: Any) -> tuple[int, int]:
    """Converts one whole number of at least 1, or two, to a pair; otherwise raises a ValueError that names them."""
    both = value if isinstance(value, Sequence) else (value, value)
    if len(both) != 2 or not all(map(is_size, both)):
        raise ValueError(f"{name} must be a whole number of at least 1 or a pair of them, got {value!r}")
    return int(both[0]), int(both[1])


def _check_padding(padding: Any) -> None:
    named = padding in ("VALID", "SAME")
    explicit = not isinstance(padding, str) and all(
        len(side) == 2 and all(isinstance(p, int) and p >= 0 for p in side) for side in padding
    )
    if not named and not (explicit and len(padding) == 2):
        raise ValueError(f"padding must be 'VALID', 'SAME' or ((top, bottom), (left, right)), got {padding!r}")


def require_image(what: str, shape: Shape) -> None:
    """Raises a ValueError if the source is not an image."""
    if len(shape) != 3:
        raise ValueError(f"{what} reads an image (height, width, channels), its source has shape {shape}")


def spatial(source: Shape, window: Shape, strides: Shape, padding: Any) -> Shape:
    """Computes the height and width of the output of a sliding window; raises a ValueError if no window fits."""
    pads = explicit_padding(source[:2], window, strides, padding)
    axes = zip(source[:2], window, strides, pads, strict=True)
    sides = tuple((n + low + high - w) // s + 1 for n, w, s, (low, high) in axes)
    if min(sides) < 1:
        raise ValueError(f"a window of {window} does not fit into the source's shape {source}")
    return sides
