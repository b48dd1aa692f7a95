"""Connections: how the axons of a lower layer enter the pre-activation of a higher one.

Each function here says what a connection is, without shapes; the shapes come from the two layers it
joins, when `nl.network` builds it. Images are [height, width, channels], as in JAX's own NHWC.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import initializers
from jax.scipy.linalg import solve_triangular

from nl_jax.base import Array, Key, Params
from nl_jax.checks import is_size, positive_integer
from nl_jax.products import product

Shape = tuple[int, ...]
Initializer = Callable[..., Array]
"""`initializer(key, shape, dtype) -> array`, as `jax.nn.initializers` makes them, by scheme:
`lecun_normal()`, `glorot_uniform()` (Xavier), `he_normal()` (Kaiming), `orthogonal()`, …"""


class Joint(NamedTuple):
    """A connection between two layers of known shapes.

    Attributes:
      shape: of one example's pre-activation.
      init: `init(key, dtype) -> params`.
      apply: `apply(params, axons) -> pre-activation`, batch axis first.
    """

    shape: Shape
    init: Callable[[Key, Any], Params]
    apply: Callable[[Params, Array], Array]


@dataclass(frozen=True)
class Connection:
    """A connection from a lower layer, yet without shapes.

    Attributes:
      join: `join(source_shape, shape) -> Joint`, where `shape` is the receiving layer's, or None if it
        is to be inferred. Raises ValueError if the shapes do not fit.
      source: the lower layer's name, or None for the layer listed just before.
    """

    join: Callable[[Shape, Shape | None], Joint]
    source: str | None = None


class Dense(Connection):
    """All to all, ν = x W + b: known as such to whoever rewrites a network's parameters."""


def dense(
    source: str | None = None,
    *,
    weight_init: Initializer = initializers.lecun_normal(),
    bias: bool = True,
    bias_init: Initializer = initializers.zeros,
) -> Dense:
    """All to all: ν = x W + b (seed 003 eq. 6, with examples as rows), from and to vectors.

    Args:
      source: name of the lower layer; by default the layer listed just before.
      weight_init: scheme for W, shape [inputs, units].
      bias: whether there is a b, shape [units]. A layer of several connections needs only one.
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

        init = _weights({"weight": (weight_init, (source_shape[0], units))}, bias_init if bias else None, units)
        return Joint(shape, init, apply)

    return Dense(join, source)


def lateral_dense(
    source: str | None = None,
    *,
    weight_init: Initializer = initializers.lecun_normal(),
    lateral_init: Initializer = initializers.zeros,
    bias: bool = True,
    bias_init: Initializer = initializers.zeros,
) -> Connection:
    """All to all, each unit inhibited by those before it: ν_j = (x W + b)_j − Σ_{i<j} ν_i C_ij.

    The lateral inhibition of Kung and Diamantaras (1990) among linear units, see `nl.rules.apex`: a triangle of
    connections, so that ν solves ν (I + C) = x W + b in one pass.

    Args:
      source: name of the lower layer; by default the layer listed just before.
      weight_init: scheme for W, shape [inputs, units].
      lateral_init: scheme for C, `params["lateral"]` of shape [units, units]; on and below its diagonal it is not read.
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

    return Connection(join, source)


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
) -> Connection:
    """2-D convolution, ν = x ∗ W + b, from an image to an image.

    Args:
      kernel: height and width of W in pixels, one number if equal.
      source: name of the lower layer; by default the layer listed just before.
      channels: output channels; by default the receiving layer's last axis.
      stride: step in pixels, down and across, one number if equal.
      padding: "VALID", "SAME", or ((top, bottom), (left, right)) in pixels.
      weight_init: scheme for W, shape [height, width, channels in, channels out].
      bias: whether there is a b, shape [channels out].
      bias_init: scheme for b.

    Raises:
      ValueError: if kernel, stride, channels or padding are not of these forms.
    """
    window, strides = _pair("kernel", kernel), _pair("stride", stride)
    _check_padding(padding)
    if channels is not None:
        positive_integer("channels", channels)

    def join(source_shape: Shape, shape: Shape | None) -> Joint:
        _require_image("conv", source_shape)
        if shape is not None and len(shape) != 3:
            raise ValueError(f"conv needs a layer of shape (height, width, channels), got {shape}")
        features = channels if channels is not None else shape[-1] if shape is not None else None
        if features is None:
            raise ValueError("conv needs channels=… where the layer's shape is left to be inferred")

        def convolve(x: Array, weight: Array) -> Array:
            return lax.conv_general_dilated(x, weight, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))

        def apply(params: Params, x: Array) -> Array:
            nu = product(convolve, x, params["weight"])
            return nu + jnp.expand_dims(params["bias"], (0, 1, 2)) if bias else nu

        weight = (*window, source_shape[-1], features)
        init = _weights({"weight": (weight_init, weight)}, bias_init if bias else None, features)
        return Joint((*_spatial(source_shape, window, strides, padding), features), init, apply)

    return Connection(join, source)


def max_pool(
    window: int | tuple[int, int],
    source: str | None = None,
    *,
    stride: int | tuple[int, int] | None = None,
    padding: str | tuple[tuple[int, int], tuple[int, int]] = "VALID",
) -> Connection:
    """The largest input of each window, from an image to an image (seed 003 eq. 11).

    In the seed's words a connection of weight 1 on the largest input and 0 elsewhere, so credit flows
    to the winner alone; of equal inputs, the first (row by row) wins.

    Args:
      window: height and width in pixels, one number if equal.
      source: name of the lower layer; by default the layer listed just before.
      stride: step in pixels; by default the window.
      padding: as for `conv`; padding never wins.

    Raises:
      ValueError: if window, stride or padding are not of these forms.
    """
    size = _pair("window", window)
    strides = size if stride is None else _pair("stride", stride)
    _check_padding(padding)

    def join(source_shape: Shape, shape: Shape | None) -> Joint:
        del shape
        _require_image("max_pool", source_shape)
        height, width = _spatial(source_shape, size, strides, padding)
        pads = _explicit(source_shape, size, strides, padding)
        if any(max(side) >= length for side, length in zip(pads, size, strict=True)):
            raise ValueError(
                f"padding {pads} leaves windows of {size} with nothing but padding; keep it below the window"
            )

        def apply(params: Params, x: Array) -> Array:
            del params
            if any(map(any, pads)):
                x = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=-jnp.inf)
            down, across = strides
            # Place (i, j) of all windows at once, for every place.
            contenders = [
                x[:, i : i + down * (height - 1) + 1 : down, j : j + across * (width - 1) + 1 : across]
                for i in range(size[0])
                for j in range(size[1])
            ]
            return functools.reduce(_winner, contenders)

        return Joint((height, width, source_shape[-1]), lambda key, dtype: {}, apply)

    return Connection(join, source)


def winner_take_all(source: str | None = None, *, group: int | None = None) -> Connection:
    """Of every group of neighbouring units the largest alone passes, in its place; all others give 0.

    In the seed's words a connection ν = x M of weight 1 on the largest input and 0 elsewhere (seed 003 eq. 11),
    so that credit flows to the winners alone; of equal inputs the first wins, and a NaN wins over any number.
    The receiving layer has the source's shape; `max_pool` is the image's, where each group leaves one axon.

    Args:
      source: name of the lower layer; by default the layer listed just before.
      group: neighbours along the last axis that compete, a divisor of its size; by default all of them.

    Raises:
      ValueError: if group is not a whole number of at least 1.
    """
    if group is not None:
        positive_integer("group", group)

    def join(source_shape: Shape, shape: Shape | None) -> Joint:
        del shape
        units = source_shape[-1]
        rivals = units if group is None else group
        if units % rivals:
            raise ValueError(f"winner_take_all cannot part {units} units into groups of {rivals}: choose a divisor")

        def apply(params: Params, x: Array) -> Array:
            del params
            groups = x.reshape(*x.shape[:-1], units // rivals, rivals)
            wins = jax.nn.one_hot(jnp.argmax(groups, axis=-1), rivals, dtype=bool)
            return jnp.where(wins, groups, 0).reshape(x.shape)

        return Joint(source_shape, lambda key, dtype: {}, apply)

    return Connection(join, source)


def reshape(source: str | None = None) -> Connection:
    """The source's axons in the receiving layer's shape, row-major."""

    def join(source_shape: Shape, shape: Shape | None) -> Joint:
        if shape is None or math.prod(shape) != math.prod(source_shape):
            raise ValueError(f"reshape cannot fit the source's shape {source_shape} into {shape}")
        return Joint(shape, lambda key, dtype: {}, lambda params, x: x.reshape(x.shape[0], *shape))

    return Connection(join, source)


def flatten(source: str | None = None) -> Connection:
    """The source's axons as one vector, row-major."""

    def join(source_shape: Shape, shape: Shape | None) -> Joint:
        return reshape().join(source_shape, (math.prod(source_shape),))

    return Connection(join, source)


def _weights(
    weights: dict[str, tuple[Initializer, Shape]], bias_init: Initializer | None, features: int
) -> Callable[[Key, Any], Params]:
    drawn = dict(weights) if bias_init is None else {**weights, "bias": (bias_init, (features,))}

    def init(key: Key, dtype: Any) -> Params:
        keys = jax.random.split(key, len(drawn))
        return {name: draw(k, shape, dtype) for k, (name, (draw, shape)) in zip(keys, drawn.items(), strict=True)}

    return init


def _winner(best: Array, challenger: Array) -> Array:
    # Not jnp.maximum, whose credit splits between equals; a NaN wins, so that it is not lost.
    return jnp.where((best >= challenger) | jnp.isnan(best), best, challenger)


def _pair(name: str, value: Any) -> tuple[int, int]:
    pair = value if isinstance(value, Sequence) else (value, value)
    if len(pair) != 2 or not all(map(is_size, pair)):
        raise ValueError(f"{name} must be a whole number of at least 1 or a pair of them, got {value!r}")
    return int(pair[0]), int(pair[1])


def _check_padding(padding: Any) -> None:
    named = padding in ("VALID", "SAME")
    explicit = not isinstance(padding, str) and all(
        len(side) == 2 and all(isinstance(p, int) and p >= 0 for p in side) for side in padding
    )
    if not named and not (explicit and len(padding) == 2):
        raise ValueError(f"padding must be 'VALID', 'SAME' or ((top, bottom), (left, right)), got {padding!r}")


def _require_image(what: str, shape: Shape) -> None:
    if len(shape) != 3:
        raise ValueError(f"{what} reads an image (height, width, channels), its source has shape {shape}")


def _explicit(source: Shape, window: Shape, strides: Shape, padding: Any) -> tuple[tuple[int, int], ...]:
    if isinstance(padding, str):
        return tuple(lax.padtype_to_pads(source[:2], window, strides, padding))
    return tuple(padding)


def _spatial(source: Shape, window: Shape, strides: Shape, padding: Any) -> Shape:
    pads = _explicit(source, window, strides, padding)
    axes = zip(source[:2], window, strides, pads, strict=True)
    sides = tuple((n + low + high - w) // s + 1 for n, w, s, (low, high) in axes)
    if min(sides) < 1:
        raise ValueError(f"a window of {window} does not fit into the source's shape {source}")
    return sides
