"""Convolution of images, computed so that it is fast in compiled loops on a CPU too."""

import functools
import math
from collections.abc import Sequence
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
