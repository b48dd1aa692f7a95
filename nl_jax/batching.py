"""Which examples each step sees: pure functions of a key and the step's number.

`order(key, first_step, num_steps, num_examples, batch_size) -> indices`, shape [num_steps, batch_size].
Indices depend on the step's own number alone, never on how steps are grouped, so that a run may be cut
anywhere and continued.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from nl_jax.base import Array, Key

Order = Callable[[Key, Array, int, int, int], Array]

_ROUNDS = 32  # each about halves the distance to uniform, which tests can see with up to 8


def shuffled(key: Key, first_step: Array, num_steps: int, num_examples: int, batch_size: int) -> Array:
    """Passes over the data, each in an order of its own, no example twice in one pass.

    Examples left over where `batch_size` does not divide `num_examples` sit out that pass. The cost is that of the
    indices asked for: no permutation of all the examples is ever formed.
    """
    per_pass = num_examples // batch_size
    step = jnp.asarray(first_step, jnp.int32) + jnp.arange(num_steps, dtype=jnp.int32)
    number, place = step // per_pass, step % per_pass
    positions = place[:, None] * batch_size + jnp.arange(batch_size, dtype=jnp.int32)[None]
    # Random words are drawn once a pass, not once a step: for short passes they would cost as much as the rounds.
    passes = number[0] + jnp.arange(min(num_steps, (num_steps - 1) // per_pass + 2), dtype=jnp.int32)
    return _permuted(_words(key, passes)[..., number - number[0]], positions, num_examples)


def _words(key: Key, number: Array, num_rounds: int = _ROUNDS) -> Array:
    """Random words of permutations by their numbers, int32 [rows]; returns uint32 [rounds, 2, rows]."""
    words = jax.vmap(lambda one: jax.random.bits(jax.random.fold_in(key, one), (num_rounds, 2), jnp.uint32))(number)
    return jnp.moveaxis(words, 0, -1)


def _permuted(words: Array, positions: Array, size: int) -> Array:
    """Where random permutations of `size` elements take positions: the swap-or-not shuffle.

    In each round an element x and its partner k − x (mod size) are exchanged or not, by a random bit of the pair
    (Hoang, Morris & Rogaway 2012, fig. 2). So one image costs a number of rounds, whatever the size.

    Args:
      words: of each row's permutation, from `_words`: uint32 [rounds, 2, rows].
      positions: int32 of at least 0 and less than `size`, [rows, columns].
      size: how many elements are permuted.
    """

    def swap_or_not(x: Array, words: Array) -> tuple[Array, None]:
        difference = (words[0] % np.uint32(size)).astype(jnp.int32) - x
        partner = jnp.where(difference < 0, difference + size, difference)
        pair = jnp.maximum(x, partner).astype(jnp.uint32)
        return jnp.where(_bit(pair ^ words[1]), partner, x), None

    return jax.lax.scan(swap_or_not, positions, words[..., None])[0]


def _bit(x: Array) -> Array:
    """A bit that depends on all 32 of x (the finalizer of MurmurHash3)."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return (x ^ (x >> 16)) & 1 == 1


def uniform(key: Key, first_step: Array, num_steps: int, num_examples: int, batch_size: int) -> Array:
    """Every example chosen uniformly at random, with replacement (seed 001 §1, step 1)."""

    def batch(step: Array) -> Array:
        return jax.random.randint(jax.random.fold_in(key, step), (batch_size,), 0, num_examples)

    return jax.vmap(batch)(first_step + jnp.arange(num_steps, dtype=jnp.int32))
