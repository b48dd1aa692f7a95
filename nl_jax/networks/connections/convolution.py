"""Convolution of images, computed so that it is fast in compiled loops on a CPU too."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from nl_jax.base import Array

Pair = tuple[int, int]
Pads = tuple[Pair, Pair]

_SMALL = 4 * 2**20
"""Bytes of all patches up to which their product with the weights, on a CPU, took about as long as XLA's convolution or
less (under vmap over weights down to a sixth)."""


def convolve(x: Array, weight: Array, strides: Pair, padding: str | Sequence[Sequence[int]]) -> Array:
    """Convolves images [batch, height, width, channels in] with W [height, width, channels in, channels out].

    On a GPU or TPU this is `lax.conv_general_dilated`. XLA's CPU compiler is slow, by a factor of up to a hundred, for
    that function's derivatives in a loop (a training loop, or a relaxation) or of vmapped weights. There, the
    derivatives are matrix products of patches, and so is the convolution itself if the patches are small.
    """
    if jax.default_backend() != "cpu":
        return _convolution(x, weight, strides, padding)
    pads = explicit_padding(x.shape[1:3], weight.shape[:2], strides, padding)
    outputs = jax.eval_shape(lambda x, weight: _convolution(x, weight, strides, pads), x, weight)
    patches = math.prod(outputs.shape[:-1]) * math.prod(weight.shape[:-1]) * outputs.dtype.itemsize
    return (_of_patches if patches <= _SMALL else _convolution_by_patches)(x, weight, strides, pads)


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[Pair],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    **others: Any,
) -> Array:
    """Convolves as `jax.lax.conv_general_dilated` does, with derivatives that are fast in compiled loops on a CPU too.

    Give it to convolutions of other libraries, such as `flax.nnx.Conv(…, conv_general_dilated=…)`; `nl.from_flax` and
    `nl.from_equinox` use it by themselves. On a CPU, the derivatives of convolutions over one or two axes, without
    dilation or groups, are products of patches, as those of `nl.connections.conv`. All others are JAX's own.

    Args:
      lhs: inputs, with axes in the order of `dimension_numbers`: batch, channels, pixels by default.
      rhs: weights, with axes channels out, channels in, pixels by default.
      window_strides: pixels from patch to patch, one number for each axis of pixels.
      padding: "SAME", "SAME_LOWER", "VALID", or the pixels (before, after) for each axis.
      lhs_dilation, rhs_dilation, dimension_numbers, others: as in `jax.lax.conv_general_dilated`.

    Returns:
      The outputs of `jax.lax.conv_general_dilated`, up to rounding.

    Raises:
      TypeError, ValueError: as `jax.lax.conv_general_dilated` does.

    >>> import jax.numpy as jnp, nl_jax as nl
    >>> images, weight = jnp.ones((1, 3, 4, 4)), jnp.ones((2, 3, 3, 3))
    >>> nl.connections.conv_general_dilated(images, weight, (1, 1), "VALID").shape
    (1, 2, 2, 2)
    """
    in_jax = lambda lhs, rhs: lax.conv_general_dilated(
        lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers, **others
    )
    outputs = jax.eval_shape(in_jax, lhs, rhs)  # raises what JAX raises
    plain = _is_plain((lhs_dilation, rhs_dilation), others) and lhs.ndim in (3, 4)
    if jax.default_backend() != "cpu" or not plain:
        return in_jax(lhs, rhs)
    x_axes, weight_axes, out_axes = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    x = lhs.transpose(x_axes[0], *x_axes[2:], x_axes[1])
    weight = rhs.transpose(*weight_axes[2:], *weight_axes[1::-1])
    source, window = x.shape[1:-1], weight.shape[:-2]
    pads = lax.padtype_to_pads(source, window, window_strides, padding) if isinstance(padding, str) else padding
    if any(number < 0 for pair in pads for number in pair):  # crops the image
        return in_jax(lhs, rhs)
    (down, across), (rows, columns) = (*window_strides, 1)[:2], (*pads, (0, 0))[:2]
    if lhs.ndim == 3:  # an image of one column
        x, weight = x[:, :, None], weight[:, None]
    nu = convolve(x, weight, (down, across), (rows, columns))
    channels_last = out_axes[0], *out_axes[2:], out_axes[1]
    return jnp.moveaxis(nu.reshape([outputs.shape[axis] for axis in channels_last]), range(lhs.ndim), channels_last)


def _is_plain(dilations: Sequence[Sequence[int] | None], others: Mapping[str, Any]) -> bool:
    """Whether a convolution has no dilation, no groups, and no precision or output type of its own."""
    groups = "feature_group_count", "batch_group_count"
    return all(dilation is None or set(dilation) == {1} for dilation in dilations) and all(
        value == 1 if name in groups else value is None for name, value in others.items()
    )


def explicit_padding(
    source: Sequence[int], window: Sequence[int], strides: Sequence[int], padding: str | Sequence[Sequence[int]]
) -> Pads:
    """Returns the pixels of padding: ((top, bottom), (left, right))."""
    pads = lax.padtype_to_pads(source, window, strides, padding) if isinstance(padding, str) else padding
    (top, bottom), (left, right) = pads
    return (top, bottom), (left, right)


def _convolution(x: Array, weight: Array, strides: Pair, padding: Any) -> Array:
    return lax.conv_general_dilated(x, weight, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _of_patches(x: Array, weight: Array, strides: Pair, padding: Pads) -> Array:
    """Multiplies every patch of the images by the weights."""
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    (height, width), (down, across) = weight.shape[:2], strides
    rows, columns = x.shape[1] - height + 1, x.shape[2] - width + 1
    # Position (i, j) of all patches at once, for every position.
    positions = [x[:, i : i + rows : down, j : j + columns : across] for i in range(height) for j in range(width)]
    return jnp.concatenate(positions, axis=-1) @ weight.reshape(-1, weight.shape[-1])


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _convolution_by_patches(x: Array, weight: Array, strides: Pair, padding: Pads) -> Array:
    """Convolves; derivatives are products of patches."""
    return _convolution(x, weight, strides, padding)


def _derivative(strides: Pair, padding: Pads, values: Any, changes: Any) -> tuple[Array, Any]:
    """Returns ν = x ∗ W and dν = dx ∗ W + x ∗ dW."""
    (x, weight), (dx, dweight) = values, changes
    terms = [] if isinstance(dx, SymbolicZero) else [_of_patches(dx, weight, strides, padding)]
    terms += [] if isinstance(dweight, SymbolicZero) else [_of_patches(x, dweight, strides, padding)]
    nu = _convolution_by_patches(x, weight, strides, padding)
    return nu, sum(terms[1:], terms[0]) if terms else jnp.zeros_like(nu)


_convolution_by_patches.defjvp(_derivative, symbolic_zeros=True)
