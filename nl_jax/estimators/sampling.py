"""Averages over many random samples, in chunks: memory for one chunk, whatever the number of samples."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from nl_jax.base import Array, Key, State


def default_chunk(num_samples: int) -> int:
    """Samples evaluated at once: one on a CPU, where batches of small products are slow, else up to 256."""
    return 1 if jax.default_backend() == "cpu" else min(num_samples, 256)


def mean_over_samples(sample: Callable[[Key], State], key: Key, num_samples: int, chunk: int) -> State:
    """The mean of `sample(key_i)` over i = 0 … num_samples − 1, accumulated by a scan over chunks.

    Sample keys are folded from the sample's own index, so that the result does not depend on the chunk
    beyond rounding. The last chunk is smaller where the numbers do not divide.
    """
    chunk = min(chunk, num_samples)
    chunks, rest = divmod(num_samples, chunk)

    def total(indices: Array) -> State:
        if indices.shape[0] == 1:
            return sample(jax.random.fold_in(key, indices[0]))
        samples = jax.vmap(lambda i: sample(jax.random.fold_in(key, i)))(indices)
        return jax.tree.map(lambda x: jnp.sum(x, axis=0, dtype=x.dtype), samples)

    def accumulate(carry: tuple[State, Array], size: int) -> tuple[State, Array]:
        summed, first = carry
        return jax.tree.map(jnp.add, summed, total(first + jnp.arange(size, dtype=jnp.int32))), first + size

    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(sample, key))
    carry, _ = jax.lax.scan(lambda carry, _: (accumulate(carry, chunk), None), (zeros, jnp.int32(0)), length=chunks)
    summed, _ = accumulate(carry, rest) if rest else carry
    return jax.tree.map(lambda x: x / num_samples, summed)
