"""Noise of large parameters, drawn in blocks where it is needed and never stored."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding

from nl_jax._core.numerics import wide_dtype
from nl_jax._core.products import LazyWeight
from nl_jax._core.products.lazy_weight import Bilinear, Part
from nl_jax.base import Array
from nl_jax.estimators.noise.directions.layout import At, Layout, over_blocks
from nl_jax.estimators.noise.directions.placement import without_first, zeros
from nl_jax.estimators.noise.directions.structured import Structured

_identity: Part = lambda part: part


class Block(NamedTuple):
    """The position of a block: its number among the parameter's blocks, and that of its first component."""

    number: Array
    start: Array


Fill = Callable[[Any, Block, int, Any], Array]
"""`fill(seed, block, components, dtype) -> noise [components]` of one block."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Blocks(Structured):
    """ξ of one parameter, of shape […, inputs, units], as a recipe for its blocks.

    Attributes:
      seed: what `fill` draws from, a tree of arrays.
      slice: the number of the first slice along the leading axes, an int32 scalar: 0 except inside a loop.
      fill: draws one block.
      shape, dtype: of ξ.
      sharding: how the parameter is sharded over devices; None if each has all of it, or if that is not known.
    """

    seed: Any
    slice: Array
    fill: Fill = field(metadata={"static": True})
    shape: tuple[int, ...] = field(metadata={"static": True})
    dtype: Any = field(metadata={"static": True})
    sharding: NamedSharding | None = field(default=None, metadata={"static": True})

    @property
    def layout(self) -> Layout:
        return Layout.of(self.shape)

    def tile(self, slice: Array, block: Array, count: int, width: int) -> Array:
        """Draws consecutive blocks of a slice, [inputs, count · width]."""
        layout = self.layout

        def one(block: Array) -> Array:
            number = slice * layout.blocks + block
            start = (slice * layout.units + block * layout.width) * layout.inputs
            noise = self.fill(self.seed, Block(number, start), layout.inputs * width, self.dtype)
            return noise.reshape(layout.inputs, width)

        if count == 1:
            return one(block)
        drawn = jax.vmap(one)(block + jnp.arange(count, dtype=jnp.int32))
        return jnp.moveaxis(drawn, 0, 1).reshape(layout.inputs, count * width)

    def columns(self, block: Array, count: int, width: int) -> Array:
        """Draws the same columns of all slices, […, inputs, count · width]."""
        layout = self.layout
        slices = self.slice + jnp.arange(layout.slices, dtype=jnp.int32)
        if layout.slices == 1:
            tile = self.tile(slices[0], block, count, width)
        else:
            tile = jax.vmap(lambda one: self.tile(one, block, count, width))(slices)
        return tile.reshape(*self.shape[:-1], count * width)

    def displace(self, weight: Array, sigma: Any) -> LazyWeight:
        return _Tiled(weight, self, sigma)

    def alone(self) -> LazyWeight:
        """Returns ξ itself, to be multiplied without being formed."""
        return _Tiled(None, self, 1)

    def plus(self, weight: Array, scale: Any) -> Array:
        """Returns W + scale · ξ as an array."""

        def increment(data: tuple[Self, Array], at: At) -> Array:
            noise, scale = data
            slice, block, count, width = at
            return scale * noise.tile(noise.slice + slice, block, count, width)

        return over_blocks(self.layout, weight, increment, (self, jnp.asarray(scale, self.dtype)), self.sharding)

    def formed(self) -> Array:
        """Returns ξ as an array."""
        return self.plus(zeros(self.shape, self.dtype, self.sharding), 1)

    def added(self, total: Array, change: Array) -> Array:
        wide = wide_dtype(self.dtype)
        rates = jnp.mean(change.astype(wide), axis=1)

        def increment(data: tuple[Self, Array], at: At) -> Array:
            def add(summed: Array, one: tuple[Self, Array]) -> tuple[Array, None]:
                noise, rate = one
                return summed + rate * noise.tile(*at).astype(wide), None

            _, _, count, width = at
            zeros = jnp.zeros((self.layout.inputs, count * width), wide)
            return lax.scan(add, zeros, data)[0]

        return over_blocks(self.layout, total, increment, (self, rates), self.sharding)


def in_blocks(direction: Any) -> int:
    """Counts the components of a direction that are drawn in blocks."""
    is_blocks = lambda part: isinstance(part, Blocks)
    found = filter(is_blocks, jax.tree.leaves(direction, is_leaf=is_blocks))
    return sum(math.prod(noise.shape) for noise in found)


class _Tiled(LazyWeight):
    """W + σ ξ, or ξ alone, formed and multiplied a few units at a time."""

    def __init__(
        self, weight: Array | None, noise: Blocks, sigma: Any, function: Part = _identity, *, swapped: bool = False
    ) -> None:
        self.plain, self.noise, self.sigma = weight, noise, sigma
        self.function, self.swapped = function, swapped
        example = jax.ShapeDtypeStruct(noise.shape, noise.dtype) if weight is None else weight
        super().__init__(jax.eval_shape(function, example))

    def map(self, function: Part, *, swap: bool) -> Self:
        both = lambda part: function(self.function(part))
        return type(self)(self.plain, self.noise, self.sigma, both, swapped=self.swapped != swap)

    def as_slices(self) -> tuple[Any, Callable[[Any], LazyWeight]]:
        if self.swapped or self.function is not _identity or self.ndim < 3:
            return super().as_slices()
        first, *rest = self.noise.shape
        slices = self.noise.slice + math.prod(rest[:-2]) * jnp.arange(first, dtype=jnp.int32)

        def rebuilt(parts: tuple[Array | None, Array]) -> LazyWeight:
            weight, slice = parts
            noise = replace(self.noise, slice=slice, shape=tuple(rest), sharding=without_first(self.noise.sharding))
            return type(self)(weight, noise, self.sigma)

        return (self.plain, slices), rebuilt

    def formed(self) -> Array:
        """Forms all of it, on the devices where the weight lies."""
        return self.function(self.noise.formed() if self.plain is None else self.noise.plus(self.plain, self.sigma))

    def product(self, bilinear: Bilinear, x: Array) -> Array:
        layout = self.noise.layout
        if self.noise.sharding is not None:
            return bilinear(x, self.formed())

        def piece(block: Array, count: int, width: int) -> Array:
            at, units = block * layout.width, count * width
            seen = lax.dynamic_slice_in_dim(x, at, units, axis=-1) if self.swapped else x
            return bilinear(seen, self.part(block, count, width))

        return (_sum if self.swapped else _side_by_side)(layout, piece)

    def part(self, block: Array, count: int, width: int) -> Array:
        """Forms some units of W + σ ξ, with the function applied to them."""
        part = self.noise.columns(block, count, width)
        if self.plain is not None:
            weight = lax.dynamic_slice_in_dim(self.plain, block * self.noise.layout.width, count * width, axis=-1)
            part = weight + jnp.asarray(self.sigma, weight.dtype) * part
        return self.function(part)

    def rows(self, ids: Array) -> Array:
        """For W, draws every block and takes its part of the rows; for Wᵀ, draws only the blocks of the units."""
        layout = self.noise.layout
        if self.noise.sharding is not None:
            return self.formed()[ids]
        if not self.swapped:
            return _side_by_side(layout, lambda *at: self.part(*at)[ids])

        def unit(id: Array) -> Array:
            block, at = id // layout.width, id % layout.width
            whole = lambda: lax.dynamic_index_in_dim(self.part(block, 1, layout.width), at, keepdims=False)
            if not layout.rest:
                return whole()
            last = lambda: lax.dynamic_index_in_dim(self.part(block, 1, layout.rest), at, keepdims=False)
            return lax.cond(block < layout.whole, whole, last)

        inside = jnp.clip(jnp.where(ids < 0, ids + layout.units, ids), 0, layout.units - 1)  # as arrays are indexed
        return lax.map(unit, inside.reshape(-1).astype(jnp.int32)).reshape(*ids.shape, layout.inputs)


Piece = Callable[[Array, int, int], Array]
"""`piece(block, count, width) -> y`, the contribution of consecutive blocks."""


def _side_by_side(layout: Layout, piece: Piece) -> Array:
    steps = layout.whole // layout.together
    one = lambda block: piece(block, layout.together, layout.width)
    if steps == 1:
        y = one(jnp.int32(0))
    else:  # written to where they are to stay: stacked, they would have to be copied

        def put(y: Array, step: Array) -> tuple[Array, None]:
            block = layout.together * step
            return lax.dynamic_update_slice_in_dim(y, one(block), block * layout.width, axis=-1), None

        form = jax.eval_shape(one, jnp.int32(0))
        nothing = jnp.zeros((*form.shape[:-1], layout.whole * layout.width), form.dtype)
        y, _ = lax.scan(put, nothing, jnp.arange(steps, dtype=jnp.int32))
    if not layout.rest:
        return y
    return jnp.concatenate([y, piece(jnp.int32(layout.whole), 1, layout.rest)], axis=-1)


def _sum(layout: Layout, piece: Piece) -> Array:
    one = lambda block: piece(block, layout.together, layout.width)
    later = layout.together * jnp.arange(1, layout.whole // layout.together, dtype=jnp.int32)
    y, _ = lax.scan(lambda y, block: (y + one(block), None), one(jnp.int32(0)), later)
    return y + piece(jnp.int32(layout.whole), 1, layout.rest) if layout.rest else y
