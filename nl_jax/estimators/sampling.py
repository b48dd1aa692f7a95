"""Averages over many random samples, in chunks: memory for one chunk, whatever the number of samples."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from nl_jax.base import Array, Key, State
from nl_jax.numerics import wide_dtype


def default_chunk(num_samples: int, template: State) -> int:
    """Samples evaluated at once, for displacements of the template's size.

    One on a CPU, where batches of small products are slow; elsewhere up to 256, and no more than fit in a gigabyte.
    """
    if jax.default_backend() == "cpu":
        return 1
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(template))
    return max(1, min(num_samples, 256, 2**30 // max(size, 1)))


def mean_over_samples(sample: Callable[[Key], State], key: Key, num_samples: int, chunk: int) -> State:
    """The mean of `sample(key_i)` over i = 0 … num_samples − 1, accumulated by a scan over chunks.

    Sample keys are folded from the sample's own index, so that the result does not depend on the chunk
    beyond rounding. The last chunk is smaller where the numbers do not divide. Sums are kept in float32 at
    least: in half precision a long sum would stop growing.
    """
    chunk = min(chunk, num_samples)
    chunks, rest = divmod(num_samples, chunk)

    def total(indices: Array) -> State:
        if indices.shape[0] == 1:
            return sample(jax.random.fold_in(key, indices[0]))
        samples = jax.vmap(lambda i: sample(jax.random.fold_in(key, i)))(indices)
        return jax.tree.map(lambda x: jnp.sum(x, axis=0, dtype=wide_dtype(x.dtype)), samples)

    def accumulate(carry: tuple[State, Array], size: int) -> tuple[State, Array]:
        summed, first = carry
        part = total(first + jnp.arange(size, dtype=jnp.int32))
        return jax.tree.map(lambda s, x: s + x.astype(s.dtype), summed, part), first + size

    shapes = jax.eval_shape(sample, key)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, wide_dtype(s.dtype)), shapes)
    carry, _ = jax.lax.scan(lambda carry, _: (accumulate(carry, chunk), None), (zeros, jnp.int32(0)), length=chunks)
    summed, _ = accumulate(carry, rest) if rest else carry
    return jax.tree.map(lambda s, x: (x / num_samples).astype(s.dtype), shapes, summed)
