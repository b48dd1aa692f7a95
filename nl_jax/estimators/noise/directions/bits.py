"""Random signs and normal numbers from few random words."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nl_jax.base import Array, Key


def words(key: Key, count: int) -> Array:
    """Returns random words, uint32 [count].

    For threefry they are the words of fresh keys: a key keeps both words that one run of the generator yields, while
    `jax.random.bits` makes one word of them, for twice the work. Other generators' keys repeat themselves.
    """
    if str(jax.random.key_impl(key)) != "threefry2x32":
        return jax.random.bits(key, (count,), jnp.uint32)
    keys = -(-count // 2)
    if 8 < keys < 16:  # XLA's CPU code is 3 times slower for a batch of such rows than for rows of 16
        keys = 16
    return jax.random.key_data(jax.random.split(key, keys)).reshape(-1)[:count]


def unpack(words: Array, size: int, dtype: Any) -> Array:
    """Returns the words' bits, lowest first, as signs [size]: 0 as −1, 1 as +1."""
    places = jnp.arange(32, dtype=jnp.uint32)
    bits = (jnp.expand_dims(words, 1) >> jnp.expand_dims(places, 0)) & 1
    return 2 * bits.reshape(-1)[:size].astype(dtype) - 1


def signs(key: Key, shape: tuple[int, ...], dtype: Any) -> Array:
    """Draws independent ±1; one word gives 32."""
    size = math.prod(shape)
    return unpack(words(key, -(-size // 32)), size, dtype).reshape(shape)


def normal(key: Key, shape: tuple[int, ...], dtype: Any) -> Array:
    """Draws independent N(0, 1), one word each: √2 erf⁻¹(u) of u uniform on (−1, 1), as `jax.random.normal`."""
    if jnp.dtype(dtype).itemsize > 4:
        return jax.random.normal(key, shape, dtype)
    mantissa = words(key, math.prod(shape)) >> 9
    unit = jax.lax.bitcast_convert_type(mantissa | jnp.uint32(0x3F800000), jnp.float32) - 1  # [0, 1), exact
    least = np.nextafter(np.float32(-1), np.float32(0))
    u = jnp.maximum(least, 2 * unit + least)
    return (np.float32(np.sqrt(2)) * jax.lax.erf_inv(u)).astype(dtype).reshape(shape)
