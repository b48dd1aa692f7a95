"""Sums over random samples in chunks, in the memory of one chunk."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

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
