"""Division of parameters into blocks, and the loop over an array's blocks."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from nl_jax.base import Array
from nl_jax.estimators.noise.directions.placement import dividing_axes, specification

LARGE = 2**14
"""Parameters of more components than this are drawn in blocks; all others are drawn together, as one array."""

BLOCK = 2**16
"""The maximum number of components of a block, unless a single unit has more."""


def is_large(leaf: Any) -> bool:
    """Returns whether a parameter is drawn in blocks."""
    return leaf.size > LARGE


class Layout(NamedTuple):
    """How a parameter of shape […, inputs, units] is divided into blocks of a few units each.

    The layout is part of the noise's definition: it depends on the shape alone. Every slice along the leading axes has
    its own blocks, so that a loop over stacked weights draws only those of its step.

    Attributes:
      slices: product of the leading axes.
      inputs: length of the second-to-last axis, 1 for a vector.
      units: length of the last axis.
      width: units of a block.
    """

    slices: int
    inputs: int
    units: int
    width: int

    @classmethod
    def of(cls, shape: tuple[int, ...]) -> Self:
        """Blocks of at most 2^16 components, or of one unit, of a width that divides the units if there is one."""
        inputs, units = (1, *shape)[-2:]
        most = min(units, max(1, BLOCK // inputs))
        width = next((w for w in range(most, most // 2, -1) if units % w == 0), most)
        return cls(math.prod(shape[:-2]), inputs, units, width)

    @property
    def whole(self) -> int:
        """The number of blocks of full width in a slice."""
        return self.units // self.width

    @property
    def rest(self) -> int:
        """The number of units of the narrower last block, if there is one."""
        return self.units % self.width

    @property
    def blocks(self) -> int:
        """The number of blocks in a slice."""
        return self.whole + (self.rest > 0)

    @property
    def together(self) -> int:
        """The number of blocks handled at once: a product must not be too narrow, and must fill an accelerator."""
        size = self.inputs * self.width
        on_cpu = jax.default_backend() == "cpu"
        most = min(-(-64 // self.width), 2**18 // size) if on_cpu else 2**22 // size
        return next((g for g in range(min(most, self.whole), 1, -1) if self.whole % g == 0), 1)


At = tuple[Array, Array, int, int]
"""(slice, block, count, width): consecutive blocks of a slice, of `width` units each."""

Increment = Callable[[Any, At], Array]
"""`increment(data, at) -> [inputs, count · width]`, the values to add to some blocks."""


def over_blocks(
    layout: Layout, total: Array, increment: Increment, data: Any, sharding: NamedSharding | None = None
) -> Array:
    """Returns the array with `increment(data, at)` added to each of its blocks.

    It is changed in place if XLA allows: only one block is stored beside the array.

    Args:
      layout: the array's layout.
      total: the array, […, inputs, units].
      increment: the values to add to some blocks.
      data: a tree of arrays that `increment` needs, the same on all devices.
      sharding: how the array is sharded over devices. Each device adds to its own part, and nothing is exchanged. None
        for an array that is whole on every device.
    """
    axes = dividing_axes(sharding, total.ndim)
    if sharding is None or not axes:
        return _over(layout, total, functools.partial(increment, data), layout.together)
    spec, around = PartitionSpec(*specification(sharding, total.ndim)), jax.sharding.get_abstract_mesh()

    def own(total: Array, data: Any) -> Array:
        part = _Part.here(layout, shape, sharding, total.shape)
        return part.added(total, functools.partial(increment, data))

    shape = total.shape
    return jax.shard_map(
        own, mesh=None if axes <= set(around.axis_names) else sharding.mesh, in_specs=(spec, PartitionSpec()),
        out_specs=spec, axis_names=axes, check_vma=False,
    )(total, data)  # fmt: skip


class _Part(NamedTuple):
    """A device's part of an array that is divided along its units or its leading axes, and not along its inputs.

    Attributes:
      layout: the part in pieces, each of which lies in one block of the whole.
      whole: the layout of the whole.
      slice: the number, in the whole, of a slice of the part.
      unit: the number, in the whole, of the part's first unit.
    """

    layout: Layout
    whole: Layout
    slice: Callable[[Array], Array]
    unit: Array

    @classmethod
    def here(cls, whole: Layout, shape: tuple[int, ...], sharding: NamedSharding, own: tuple[int, ...]) -> Self:
        first = [
            lax.axis_index(names) * size if names else jnp.int32(0)
            for names, size in zip(specification(sharding, len(shape)), own, strict=True)
        ]

        def slice(number: Array) -> Array:
            found = jnp.int32(0)
            places = jnp.unravel_index(number, own[:-2]) if own[:-2] else ()
            for place, begin, size in zip(places, first, shape, strict=False):
                found = found * size + begin + place.astype(jnp.int32)
            return found

        width = math.gcd(own[-1], whole.width)
        return cls(Layout(math.prod(own[:-2]), whole.inputs, own[-1], width), whole, slice, first[-1])

    def added(self, total: Array, increment: Callable[[At], Array]) -> Array:
        """Adds those of the whole's increments that belong to the part."""
        if self.layout.width == self.whole.width:  # it consists of whole blocks
            first = self.unit // self.whole.width
            return _over(
                self.layout,
                total,
                lambda at: increment((self.slice(at[0]), first + at[1], *at[2:])),
                self.layout.together,
            )

        def piece(at: At) -> Array:
            unit = self.unit + at[1] * self.layout.width
            block = unit // self.whole.width

            def of_block(width: int) -> Array:
                drawn = increment((self.slice(at[0]), block, 1, width))
                return lax.dynamic_slice_in_dim(drawn, unit - block * self.whole.width, self.layout.width, axis=1)

            if not self.whole.rest:
                return of_block(self.whole.width)
            wide, last = (functools.partial(of_block, width) for width in (self.whole.width, self.whole.rest))
            return lax.cond(block < self.whole.whole, wide, last)

        return _over(self.layout, total, piece, together=1)


def _over(layout: Layout, total: Array, increment: Callable[[At], Array], together: int) -> Array:
    shape, dtype = total.shape, total.dtype
    total = total.reshape(layout.slices, layout.inputs, layout.units)

    def add(total: Array, slice: Array, block: Array, count: int, width: int) -> Array:
        at = slice, jnp.int32(0), block * layout.width
        old = lax.dynamic_slice(total, at, (1, layout.inputs, count * width))
        new = old + jnp.expand_dims(increment((slice, block, count, width)).astype(dtype), 0)
        return lax.dynamic_update_slice(total, new, at)

    in_slice = layout.whole // together

    def step(i: Array, total: Array) -> Array:
        return add(total, i // in_slice, i % in_slice * together, together, layout.width)

    total = _repeated(layout.slices * in_slice, step, total)
    if layout.rest:
        last = jnp.int32(layout.whole)
        total = _repeated(layout.slices, lambda i, total: add(total, i, last, 1, layout.rest), total)
    return total.reshape(shape)


def _repeated(count: int, step: Callable[[Array, Array], Array], total: Array) -> Array:
    if count == 1:
        return step(jnp.int32(0), total)
    return lax.scan(lambda total, i: (step(i, total), None), total, jnp.arange(count, dtype=jnp.int32))[0]
