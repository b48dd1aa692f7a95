"""Random signs: 32 of them in every random word."""

import math

import jax
import jax.numpy as jnp

from nl_jax.base import Array, Key


def words(key: Key, size: int) -> Array:
    """Random words that hold `size` bits, uint32.

    Of threefry they are the words of fresh keys: of the two words that one run of the generator yields a key keeps
    both, where `jax.random.bits` makes one of them, for twice the work. Other generators' keys repeat themselves.
    """
    count = -(-size // 32)
    if str(jax.random.key_impl(key)) != "threefry2x32":
        return jax.random.bits(key, (count,), jnp.uint32)
    return jax.random.key_data(jax.random.split(key, -(-count // 2))).reshape(-1)[:count]


def unpack(words: Array, size: int, dtype: jnp.dtype) -> Array:
    """The words' bits, lowest first, as signs [size]: 0 as −1, 1 as +1."""
    places = jnp.arange(32, dtype=jnp.uint32)
    bits = (jnp.expand_dims(words, 1) >> jnp.expand_dims(places, 0)) & 1
    return 2 * bits.reshape(-1)[:size].astype(dtype) - 1


def signs(key: Key, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """Independent ±1."""
    size = math.prod(shape)
    return unpack(words(key, size), size, dtype).reshape(shape)
