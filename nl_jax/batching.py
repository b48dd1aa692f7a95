"""Which examples each step sees: pure functions of a key and the step's number.

`order(key, first_step, num_steps, num_examples, batch_size) -> indices`, shape [num_steps, batch_size].
Indices depend on the step's own number alone, never on how steps are grouped, so that a run may be cut
anywhere and continued.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from nl_jax.base import Array, Key

Order = Callable[[Key, Array, int, int, int], Array]


def shuffled(key: Key, first_step: Array, num_steps: int, num_examples: int, batch_size: int) -> Array:
    """Passes over the data, each in an order of its own, no example twice in one pass.

    Examples left over where `batch_size` does not divide `num_examples` sit out that pass.
    """
    per_pass = num_examples // batch_size
    passes = -(-num_steps // per_pass) + 1  # one more, as the first may be under way

    def batches(number: Array) -> Array:
        # One sort by 32 random bits each, where jax.random.permutation makes two; ties, which keep order, are rare. The
        # second key decides them, so that the sort need not be a stable one, which takes longer.
        bits = jax.random.bits(jax.random.fold_in(key, number), (num_examples,), jnp.uint32)
        _, order = jax.lax.sort((bits, jnp.arange(num_examples, dtype=jnp.int32)), num_keys=2, is_stable=False)
        return order[: per_pass * batch_size].reshape(per_pass, batch_size)

    # Whether the last is reached depends on where the first stands; to shuffle a large set is dear, so only if it is.
    first = first_step // per_pass
    certain = jax.vmap(batches)(first + jnp.arange(passes - 1, dtype=jnp.int32))
    reached = (first_step + num_steps - 1) // per_pass >= first + passes - 1
    last = jax.lax.cond(reached, batches, lambda number: jnp.zeros_like(certain[0]), first + passes - 1)
    upcoming = jnp.concatenate([certain, jnp.expand_dims(last, 0)]).reshape(passes * per_pass, batch_size)
    return jax.lax.dynamic_slice_in_dim(upcoming, first_step % per_pass, num_steps)


def uniform(key: Key, first_step: Array, num_steps: int, num_examples: int, batch_size: int) -> Array:
    """Every example chosen uniformly at random, with replacement (seed 001 §1, step 1)."""

    def batch(step: Array) -> Array:
        return jax.random.randint(jax.random.fold_in(key, step), (batch_size,), 0, num_examples)

    return jax.vmap(batch)(first_step + jnp.arange(num_steps, dtype=jnp.int32))
