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


def convolve(
    x: Array, weight: Array, strides: Pair, padding: str | Sequence[Sequence[int]], *, small: int | None = None
) -> Array:
    """Convolves images [batch, height, width, channels in] with W [height, width, channels in, channels out].

    On a GPU or TPU this is `lax.conv_general_dilated`. XLA's CPU compiler is slow, by a factor of up to a hundred, for
    that function's derivatives in a loop (a training loop, or a relaxation) or of vmapped weights. There, the
    derivatives are matrix products of patches, and so is the convolution itself if the patches are small.

    Args:
      x, weight, strides, padding: as of `lax.conv_general_dilated`.
      small: bytes of patches that count as small. Under a vmap over images, which hides their number, hand in 0.
    """
    if jax.default_backend() != "cpu":
        return _convolution(x, weight, strides, padding)
    pads = explicit_padding(x.shape[1:3], weight.shape[:2], strides, padding)
    outputs = jax.eval_shape(lambda x, weight: _convolution(x, weight, strides, pads), x, weight)
    patches = math.prod(outputs.shape[:-1]) * math.prod(weight.shape[:-1]) * outputs.dtype.itemsize
    few = isinstance(patches, int) and patches <= (_SMALL if small is None else small)  # it may be symbolic
    return (_of_patches if few else _convolution_by_patches)(x, weight, strides, pads)


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[Pair],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    **others: Any,
) -> Array:
    """Convolves as `jax.lax.conv_general_dilated` does, with derivatives that are fast in compiled loops on a CPU too.

    Give it to convolutions of other libraries, such as `flax.nnx.Conv(…, conv_general_dilated=…)`; `nl.from_flax` and
    `nl.from_equinox` use it by themselves. On a CPU, the derivatives of convolutions over one or two axes, without
    dilation or groups, are products of patches, as those of `nl.connections.conv`. (In half precision they add up in
    half precision.) All others are JAX's own.

    Args:
      lhs: inputs, with axes in the order of `dimension_numbers`: batch, channels, pixels by default.
      rhs: weights, with axes channels out, channels in, pixels by default.
      window_strides: pixels from patch to patch, one number for each axis of pixels.
      padding: "SAME", "SAME_LOWER", "VALID", or the pixels (before, after) for each axis.
      lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count, batch_group_count, others: as of
        `jax.lax.conv_general_dilated`.

    Returns:
      The outputs of `jax.lax.conv_general_dilated`, up to rounding.

    Raises:
      TypeError, ValueError, RuntimeError: as `jax.lax.conv_general_dilated` does.

    >>> import jax.numpy as jnp, nl_jax as nl
    >>> images, weight = jnp.ones((1, 3, 4, 4)), jnp.ones((2, 3, 3, 3))
    >>> nl.connections.conv_general_dilated(images, weight, (1, 1), "VALID").shape
    (1, 2, 2, 2)
    """
    settings = {
        "window_strides": window_strides, "padding": padding, "lhs_dilation": lhs_dilation,
        "rhs_dilation": rhs_dilation, "dimension_numbers": dimension_numbers,
        "feature_group_count": feature_group_count, "batch_group_count": batch_group_count, **others,
    }  # fmt: skip
    return convolve_general(lhs, rhs, settings)


def convolve_general(lhs: Array, rhs: Array, settings: dict[str, Any], *, small: int | None = None) -> Array:
    """Convolves with the `settings` of `lax.conv_general_dilated`; `small` is that of `convolve`."""
    in_jax = lambda lhs, rhs: lax.conv_general_dilated(lhs, rhs, **settings)
    outputs = jax.eval_shape(in_jax, lhs, rhs)  # raises what JAX raises
    x_axes, weight_axes, out_axes = lax.conv_dimension_numbers(lhs.shape, rhs.shape, settings.get("dimension_numbers"))
    x = lhs.transpose(x_axes[0], *x_axes[2:], x_axes[1])
    weight = rhs.transpose(*weight_axes[2:], *weight_axes[1::-1])
    if jax.default_backend() != "cpu" or not _is_plain(x.shape, weight.shape, outputs.shape, settings):
        return in_jax(lhs, rhs)
    strides, pads = settings["window_strides"], settings["padding"]
    if isinstance(pads, str):
        pads = lax.padtype_to_pads(x.shape[1:-1], weight.shape[:-2], strides, pads)
    if lhs.ndim == 3:  # an image of one column
        x, weight = x[:, :, None], weight[:, None]
        strides, pads = (*strides, 1), (*pads, (0, 0))
    (down, across), (rows, columns) = strides, pads
    nu = convolve(x, weight, (down, across), (rows, columns), small=small)
    channels_last = out_axes[0], *out_axes[2:], out_axes[1]
    return jnp.moveaxis(nu.reshape([outputs.shape[axis] for axis in channels_last]), range(lhs.ndim), channels_last)


def _is_plain(
    images: Sequence[Any], weight: Sequence[Any], outputs: Sequence[Any], settings: Mapping[str, Any]
) -> bool:
    """Whether products of patches compute a convolution, of these shapes with the channels last.

    It has no dilation, no groups, no precision or output type of its own, and does not crop its images. Its pixels are
    known, and it has outputs.
    """
    ones = [settings.get(name) for name in ("lhs_dilation", "rhs_dilation")]
    ones += [[settings.get(name, 1)] for name in ("feature_group_count", "batch_group_count")]
    known = "window_strides", "padding", "dimension_numbers", "lhs_dilation", "rhs_dilation"
    others = [value for name, value in settings.items() if name not in known and not name.endswith("group_count")]
    padding = settings["padding"]
    return (
        len(images) in (3, 4)
        and all(number == 1 for numbers in ones if numbers is not None for number in numbers)
        and all(value is None for value in others)
        and all(isinstance(size, int) for size in (*images[1:], *weight))
        and all(size != 0 for size in outputs)
        and (isinstance(padding, str) or min(min(pair) for pair in padding) >= 0)
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
