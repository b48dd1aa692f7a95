"""Orthogonal signs: rows of a randomised Hadamard matrix."""

import jax
import jax.numpy as jnp

from nl_jax.base import Array, Key, Params
from nl_jax.estimators.directions.flat import cut, size
from nl_jax.estimators.directions.signs import unpack, words
from nl_jax.estimators.directions.structured import Direction, Law

# Lower terms of an irreducible polynomial over GF(2) of each degree 1 … 31 (Seroussi 1998); the second: x² + x + 1.
_LOWER_TERMS = (
    *(0b1, 0b11, 0b11, 0b11, 0b101, 0b11, 0b11, 0b11011, 0b11, 0b1001, 0b101, 0b1001, 0b11011, 0b100001, 0b11),
    *(0b101011, 0b1001, 0b1001, 0b100111, 0b1001, 0b101, 0b11, 0b100001, 0b11011, 0b1001, 0b11011, 0b100111, 0b11),
    *(0b101, 0b11, 0b1001),
)


def orthogonal() -> Law:
    """±1 directions orthogonal to each other: rows of a Hadamard matrix, columns randomly signed.

    The matrix has order n, the least power of two not below P (at least 2), and rows are taken without
    replacement. Relative variance (P − 1)/K · (n − K)/(n − 1): less than that of independent signs, and at K = n
    the estimate is exact as σ → 0. Beyond n samples another randomised matrix follows.
    """

    def law(key: Key, index: Array, template: Params) -> Direction:
        total = size(template)
        degree = max(1, (total - 1).bit_length())
        if degree > 30:
            raise ValueError(f"orthogonal directions reach 2^30 components, got {total}: use rademacher()")
        index = jnp.asarray(index, jnp.uint32)
        sign_key, row_key = jax.random.split(jax.random.fold_in(key, index >> degree))
        # A product with a random factor in GF(2^degree) is a permutation that takes any two rows to any other two
        # with equal chance: all that the variance law asks, without a table of n entries.
        factor = jax.random.randint(row_key, (), 1, 2**degree, jnp.int32).astype(jnp.uint32)
        row = _times(factor, index & jnp.uint32(2**degree - 1), degree)
        leaves, tree = jax.tree.flatten(template)
        flips = words(sign_key, total) ^ _hadamard(row, -(-total // 32))
        parts = cut(unpack(flips, total, jnp.float32), leaves)
        return jax.tree.unflatten(tree, [xi.astype(leaf.dtype) for xi, leaf in zip(parts, leaves, strict=True)])

    law.__name__ = law.__qualname__ = "orthogonal"
    return law


def _hadamard(row: Array, count: int) -> Array:
    """A row of Sylvester's matrix, H_ij = (−1)^(number of ones common to i and j), as `count` words of 32 columns.

    A column's place in its word is the low five bits of its number, so that every word is one pattern or its inverse.
    """
    place, word = jnp.arange(32, dtype=jnp.uint32), jnp.arange(count, dtype=jnp.uint32)
    pattern = jnp.sum((jax.lax.population_count(row & place) & 1) << place, dtype=jnp.uint32)
    inverted = jax.lax.population_count((row >> 5) & word) & 1
    return pattern ^ (0 - inverted)


def _times(a: Array, b: Array, degree: int) -> Array:
    """The product of two elements of GF(2^degree), polynomials over GF(2) as the bits of a word."""
    product = jnp.uint32(0)
    for power in range(degree):
        product ^= jnp.where((b >> power) & 1, a, jnp.uint32(0))
        overflow = (a >> (degree - 1)) & 1
        a = ((a << 1) & jnp.uint32(2**degree - 1)) ^ (overflow * jnp.uint32(_LOWER_TERMS[degree - 1]))
    return product
