"""Sums over random samples in chunks, in the memory of one chunk."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from nl_jax._core.numerics import wide_dtype
from nl_jax.base import Array, State


class Footprint(NamedTuple):
    """The demands of one sample.

    Attributes:
      bytes: of the arrays that it adds.
      weights_of_its_own: whether it multiplies by weights of its own, so that samples share no product.
    """

    bytes: int
    weights_of_its_own: bool


def occupied(tree: State) -> int:
    """Counts the bytes of a tree's arrays."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def default_chunk(num_samples: int, footprint: Footprint) -> int:
    """Chooses how many samples are evaluated at once.

    On a CPU: one if samples have their own weights, because batches of small products are slow there; otherwise as many
    as share a cache of 4 MiB, up to 32. On other backends: as many as fit in a gigabyte, up to 256.
    """
    on_cpu = jax.default_backend() == "cpu"
    if on_cpu and footprint.weights_of_its_own:
        return 1
    room, most = (2**22, 32) if on_cpu else (2**30, 256)
    fitting = 2 ** int(math.log2(max(1, room / max(footprint.bytes, 1))))
    return min(num_samples, most, fitting)


def sum_over_samples(partial_sum: Callable[[Array], State], indices: Array, chunk: int) -> State:
    """Sums a tree over samples, a chunk at a time.

    Args:
      partial_sum: `partial_sum(indices) -> tree`, the sum over the samples of the given int32 indices. Indices are the
        samples' own, so that up to rounding the result does not depend on the chunk.
      indices: of the samples, int32 [n], consecutive and at least one.
      chunk: samples at once, at least 1; the last chunk is smaller if the numbers do not divide.

    Returns:
      The sum, in float32 at least: in half precision a long sum would stop growing.
    """
    num_samples, begin = len(indices), indices[0]
    chunk = min(chunk, num_samples)
    chunks, rest = divmod(num_samples, chunk)

    def part(first: Array, size: int) -> State:
        widened = partial_sum(first + jnp.arange(size, dtype=jnp.int32))
        return jax.tree.map(lambda x: x.astype(wide_dtype(x.dtype)), widened)

    if chunks == 1:
        summed = part(begin, chunk)
    else:
        shapes = jax.eval_shape(lambda: part(begin, chunk))
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

        def add(carry: tuple[State, Array], _: None) -> tuple[tuple[State, Array], None]:
            total, first = carry
            return (jax.tree.map(jnp.add, total, part(first, chunk)), first + chunk), None

        (summed, _), _ = jax.lax.scan(add, (zeros, begin), length=chunks)
    if rest:
        summed = jax.tree.map(jnp.add, summed, part(begin + chunk * chunks, rest))
    return summed


def stacked(sample: Callable[[Array], State]) -> Callable[[Array], State]:
    """Maps `sample(index)` over indices, with the samples' axis first; a single sample is not batched."""

    def over(indices: Array) -> State:
        if indices.shape[0] == 1:
            return jax.tree.map(lambda x: jnp.expand_dims(x, 0), sample(indices[0]))
        return jax.vmap(sample)(indices)

    return over


def require_sharding(sharding: Any, num_samples: int, sum_updates: bool | None = None) -> None:
    """Raises ValueError unless the sharding can divide the samples, or is None."""
    if sum_updates is not None and not isinstance(sum_updates, bool):
        raise ValueError(f"sum_updates must be True, False, or None for what suits; got {sum_updates!r}")
    if sharding is None:
        if sum_updates is not None:
            raise ValueError(f"sum_updates={sum_updates} needs sharding=, the devices that exchange updates")
        return
    if not isinstance(sharding, NamedSharding) or len(sharding.spec) != 1 or not isinstance(sharding.spec[0], str):
        raise ValueError(
            "sharding must divide the samples over one axis of a mesh, NamedSharding(mesh, PartitionSpec('samples')), "
            f"got {sharding!r}"
        )
    devices = sharding.mesh.shape[sharding.spec[0]]
    if num_samples % devices:
        raise ValueError(f"num_samples must be a multiple of the {devices} devices that share them, got {num_samples}")


class Share(NamedTuple):
    """The samples that one device evaluates, and its communication with the others.

    Attributes:
      indices: the global numbers of its samples, int32.
      axis: the axis of the mesh along which the samples are divided; None if all are on this device.
    """

    indices: Array
    axis: str | None

    def gathered(self, tree: State) -> State:
        """Gathers arrays with a leading axis of samples from all devices, in order."""
        return tree if self.axis is None else jax.lax.all_gather(tree, self.axis, tiled=True)

    def summed(self, tree: State) -> State:
        """Sums arrays over devices."""
        return tree if self.axis is None else jax.lax.psum(tree, self.axis)


def alone(num_samples: int) -> Share:
    """Returns all samples, on one device."""
    return Share(jnp.arange(num_samples, dtype=jnp.int32), None)


def shared_out(
    function: Callable[..., State], num_samples: int, sharding: NamedSharding | None
) -> Callable[..., State]:
    """Returns a function that calls `function(share, *arguments)` on every device, with its share of the samples.

    The samples are 0 … num_samples − 1. Every device has its own, by their global number, so that the result does not
    depend on the number of devices. Devices exchange only what `share` gathers or sums.

    Args:
      function: returns a tree of arrays, the same on all devices.
      num_samples: a multiple of the number of devices.
      sharding: the mesh and its axis along which samples are divided; None for no division. The mesh's other axes stay
        as they are: a batch or parameters may be sharded over them. Inside a `jax.shard_map` over that axis, the axis
        is taken from there.
    """
    if sharding is None:
        return lambda *arguments: function(alone(num_samples), *arguments)
    axis = sharding.spec[0]
    each = num_samples // sharding.mesh.shape[axis]

    def own(*arguments: Any) -> State:
        return function(Share(jax.lax.axis_index(axis) * each + jnp.arange(each, dtype=jnp.int32), axis), *arguments)

    def call(*arguments: Any) -> State:
        around = jax.sharding.get_abstract_mesh()
        if axis in around.manual_axes:
            return own(*arguments)
        none, mesh = PartitionSpec(), None if axis in around.axis_names else sharding.mesh
        return jax.shard_map(own, mesh=mesh, in_specs=none, out_specs=none, axis_names={axis}, check_vma=False)(
            *arguments
        )

    return call


def sums_updates(sharding: NamedSharding | None, footprint: int, components: int) -> bool:
    """Decides whether devices sum partial gradients, or exchange scalars and each add up the whole gradient.

    Adding K directions on every device takes time in proportion to K, while partial gradients are summed once, whatever
    K. So devices sum. They exchange scalars instead if directions are much smaller than the parameters, as rank-one
    noise is: one matrix product adds these, at little cost for one more direction.

    Args:
      sharding: of the samples.
      footprint: the count of numbers that a direction is drawn as.
      components: P, the number of components of the parameters.
    """
    if sharding is None or sharding.mesh.shape[sharding.spec[0]] == 1:
        return False
    return 2 * footprint > components
