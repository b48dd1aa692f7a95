"""Sums over many random samples, in chunks: memory for one chunk, whatever the number of samples."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from nl_jax.base import Array, State
from nl_jax.numerics import wide_dtype


class Footprint(NamedTuple):
    """What one sample asks of the machine.

    Attributes:
      bytes: of the arrays it brings along.
      weights_of_its_own: whether it multiplies by weights of its own, so that samples share no product.
    """

    bytes: int
    weights_of_its_own: bool


def occupied(tree: State) -> int:
    """Bytes of a tree's arrays."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def default_chunk(num_samples: int, footprint: Footprint) -> int:
    """Samples evaluated at once.

    On a CPU one, where samples have weights of their own, for batches of small products are slow there; otherwise
    as many as share a cache of 4 MiB, up to 32. Elsewhere as many as fit in a gigabyte, up to 256.
    """
    on_cpu = jax.default_backend() == "cpu"
    if on_cpu and footprint.weights_of_its_own:
        return 1
    room, most = (2**22, 32) if on_cpu else (2**30, 256)
    fitting = 2 ** int(math.log2(max(1, room / max(footprint.bytes, 1))))
    return min(num_samples, most, fitting)


def sum_over_samples(partial_sum: Callable[[Array], State], num_samples: int, chunk: int) -> State:
    """Σ over sample indices 0 … num_samples − 1 of a tree, a chunk at a time.

    Args:
      partial_sum: `partial_sum(indices) -> tree`, the sum over the samples of the given int32 indices. Indices are
        the samples' own, so that the result does not depend on the chunk beyond rounding.
      num_samples: at least 1.
      chunk: samples at once, at least 1; the last chunk is smaller where the numbers do not divide.

    Returns:
      The sum, in float32 at least: in half precision a long sum would stop growing.
    """
    chunk = min(chunk, num_samples)
    chunks, rest = divmod(num_samples, chunk)

    def part(first: Array, size: int) -> State:
        widened = partial_sum(first + jnp.arange(size, dtype=jnp.int32))
        return jax.tree.map(lambda x: x.astype(wide_dtype(x.dtype)), widened)

    if chunks == 1:
        summed = part(jnp.int32(0), chunk)
    else:
        shapes = jax.eval_shape(lambda: part(jnp.int32(0), chunk))
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

        def add(carry: tuple[State, Array], _: None) -> tuple[tuple[State, Array], None]:
            total, first = carry
            return (jax.tree.map(jnp.add, total, part(first, chunk)), first + chunk), None

        (summed, _), _ = jax.lax.scan(add, (zeros, jnp.int32(0)), length=chunks)
    if rest:
        summed = jax.tree.map(jnp.add, summed, part(jnp.int32(chunk * chunks), rest))
    return summed


def stacked(sample: Callable[[Array], State]) -> Callable[[Array], State]:
    """`sample(index)` over many indices, leading axis the samples'; of one, without a batch to multiply in."""

    def over(indices: Array) -> State:
        if indices.shape[0] == 1:
            return jax.tree.map(lambda x: jnp.expand_dims(x, 0), sample(indices[0]))
        return jax.vmap(sample)(indices)

    return over


def require_sharding(sharding: Any, num_samples: int) -> None:
    """ValueError unless samples can be divided by the sharding, or it is None."""
    if sharding is None:
        return
    if not isinstance(sharding, NamedSharding) or len(sharding.spec) != 1 or not isinstance(sharding.spec[0], str):
        raise ValueError(
            "sharding must divide the samples over one axis of a mesh, NamedSharding(mesh, PartitionSpec('samples')), "
            f"got {sharding!r}"
        )
    devices = sharding.mesh.shape[sharding.spec[0]]
    if num_samples % devices:
        raise ValueError(f"num_samples must be a multiple of the {devices} devices that share them, got {num_samples}")


def shared_out(
    function: Callable[..., State], num_samples: int, sharding: NamedSharding | None
) -> Callable[..., State]:
    """Calls `function(indices, *arguments)` for samples 0 … num_samples − 1, divided over devices.

    Every device has its own samples, by their global number, so that the result does not depend on how many devices
    there are. What they return is gathered, and is all that travels between them.

    Args:
      function: returns a tree of arrays with a leading axis of samples.
      num_samples: a multiple of the devices.
      sharding: along which axis of which mesh; None for no division. The mesh's other axes stay as they are: a batch
        or parameters may be laid over them.
    """
    if sharding is None:
        return lambda *arguments: function(jnp.arange(num_samples, dtype=jnp.int32), *arguments)
    axis = sharding.spec[0]
    share = num_samples // sharding.mesh.shape[axis]

    def own(*arguments: Any) -> State:
        indices = jax.lax.axis_index(axis) * share + jnp.arange(share, dtype=jnp.int32)
        return jax.lax.all_gather(function(indices, *arguments), axis, tiled=True)

    none, mesh = PartitionSpec(), sharding.mesh
    return jax.shard_map(own, mesh=mesh, in_specs=none, out_specs=none, axis_names={axis}, check_vma=False)
