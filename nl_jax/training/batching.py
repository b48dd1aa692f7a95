"""Orders: pure functions of a key and a step's number that choose the examples of each step.

`order(key, first_step, num_steps, num_examples, batch_size) -> indices`, integers of shape [num_steps, batch_size],
at least 0 and below num_examples. Indices depend only on the step's number, not on how steps are grouped, so a run may
be stopped anywhere and continued.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from nl_jax.base import Array, Key

Order = Callable[[Key, Array, int, int, int], Array]

_ROUNDS = 32  # each about halves the distance to uniform, which tests can detect up to 8 rounds


def shuffled(key: Key, first_step: Array, num_steps: int, num_examples: int, batch_size: int) -> Array:
    """Passes over the data, each in a new random order, with no example twice in one pass.

    If `batch_size` does not divide `num_examples`, the examples left over are skipped in that pass. The cost depends
    only on the number of indices requested: no permutation of all the examples is formed.
    """
    per_pass = num_examples // batch_size
    step = jnp.asarray(first_step, jnp.int32) + jnp.arange(num_steps, dtype=jnp.int32)
    number, place = step // per_pass, step % per_pass
    positions = place[:, None] * batch_size + jnp.arange(batch_size, dtype=jnp.int32)[None]
    # Random words are drawn once per pass. Drawn once per step, they would cost as much as the rounds in short passes.
    passes = number[0] + jnp.arange(min(num_steps, (num_steps - 1) // per_pass + 2), dtype=jnp.int32)
    return _permuted(_words(key, passes)[..., number - number[0]], positions, num_examples)


def _words(key: Key, number: Array, num_rounds: int = _ROUNDS) -> Array:
    """Draws the random words of permutations by their numbers, int32 [rows]; returns uint32 [rounds, 2, rows]."""
    words = jax.vmap(lambda one: jax.random.bits(jax.random.fold_in(key, one), (num_rounds, 2), jnp.uint32))(number)
    return jnp.moveaxis(words, 0, -1)


def _permuted(words: Array, positions: Array, size: int) -> Array:
    """Maps positions by random permutations of `size` elements: the swap-or-not shuffle.

    In each round an element x and its partner k − x (mod size) are exchanged or not, by a random bit of the pair
    (Hoang, Morris & Rogaway 2012, fig. 2). The cost of one image is a fixed number of rounds, whatever the size.

    Args:
      words: the words of each row's permutation, from `_words`: uint32 [rounds, 2, rows].
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
    """Returns one bit that depends on all 32 bits of x (the finalizer of MurmurHash3)."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return (x ^ (x >> 16)) & 1 == 1


def uniform(key: Key, first_step: Array, num_steps: int, num_examples: int, batch_size: int) -> Array:
    """Chooses every example uniformly at random, with replacement (seed 001 §1, step 1)."""

    def batch(step: Array) -> Array:
        return jax.random.randint(jax.random.fold_in(key, step), (batch_size,), 0, num_examples)

    return jax.vmap(batch)(first_step + jnp.arange(num_steps, dtype=jnp.int32))
