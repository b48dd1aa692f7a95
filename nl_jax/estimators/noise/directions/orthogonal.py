"""Orthogonal signs: rows of a randomised Hadamard matrix."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp

from nl_jax.base import Array, Key, Params
from nl_jax.estimators.noise.directions.bits import unpack, words
from nl_jax.estimators.noise.directions.blocks import Block, Fill
from nl_jax.estimators.noise.directions.flat import divide, divided
from nl_jax.estimators.noise.directions.layout import Layout, is_large
from nl_jax.estimators.noise.directions.sampler import NamedSampler
from nl_jax.estimators.noise.directions.structured import Direction, Sampler

# Lower terms of an irreducible polynomial over GF(2) of each degree 1 … 31 (Seroussi 1998); the second: x² + x + 1.
_LOWER_TERMS = (
    *(0b1, 0b11, 0b11, 0b11, 0b101, 0b11, 0b11, 0b11011, 0b11, 0b1001, 0b101, 0b1001, 0b11011, 0b100001, 0b11),
    *(0b101011, 0b1001, 0b1001, 0b100111, 0b1001, 0b101, 0b11, 0b100001, 0b11011, 0b1001, 0b11011, 0b100111, 0b11),
    *(0b101, 0b11, 0b1001),
)


def orthogonal() -> Sampler:
    """Samples ±1 directions orthogonal to each other: rows of a Hadamard matrix, columns randomly signed.

    The matrix has order n, the least power of two not below P (at least 2; the blocks of large parameters are rounded
    up to whole words of 32). Rows are taken without replacement. Relative variance (P − 1)/K · (n − K)/(n − 1): less
    than that of independent signs, and at K = n the estimate is exact as σ → 0. After n samples another randomised
    matrix is used.
    """

    def sampler(key: Key, index: Array, template: Params) -> Direction:
        leaves = jax.tree.leaves(template)
        # Columns are assigned in whole words: first to all small leaves, then to each large one, block by block.
        together = sum(leaf.size for leaf in leaves if not is_large(leaf))
        large_leaves = [leaf.shape for leaf in leaves if is_large(leaf)]
        begins = list(itertools.accumulate(map(_words_of, large_leaves), initial=-(-together // 32)))
        total = 32 * begins[-1] if large_leaves else together
        degree = max(1, (total - 1).bit_length())
        if degree > 30:
            raise ValueError(f"orthogonal directions have at most 2^30 components, got {total}: use rademacher()")
        index = jnp.asarray(index, jnp.uint32)
        sign_key, row_key = jax.random.split(jax.random.fold_in(key, index >> degree))
        # A product with a random factor in GF(2^degree) is a permutation that maps any two rows to any other two with
        # equal probability. The variance formula needs no more, and no table of n entries is needed.
        factor = jax.random.randint(row_key, (), 1, 2**degree, jnp.int32).astype(jnp.uint32)
        row = _times(factor, index & jnp.uint32(2**degree - 1), degree)

        def small(leaves: list[Any]) -> list[Array]:
            parts = divide(_flipped(sign_key, row, jnp.uint32(0), together), leaves)
            return [xi.astype(leaf.dtype) for xi, leaf in zip(parts, leaves, strict=True)]

        def large(number: int, leaf: Any) -> tuple[Any, Fill]:
            each = _words_of_block(leaf.shape)

            def fill(seed: tuple[Key, Array, Array], block: Block, components: int, dtype: Any) -> Array:
                key, row, begin = seed
                first = begin + jnp.uint32(each) * block.number.astype(jnp.uint32)
                return _flipped(jax.random.fold_in(key, block.number), row, first, components).astype(dtype)

            return (jax.random.fold_in(sign_key, number + 1), row, jnp.uint32(begins[number])), fill

        return divided(template, small, large)

    return NamedSampler("orthogonal", sampler)


def _words_of_block(shape: tuple[int, ...]) -> int:
    layout = Layout.of(shape)
    return -(-layout.inputs * layout.width // 32)


def _words_of(shape: tuple[int, ...]) -> int:
    layout = Layout.of(shape)
    return layout.slices * layout.blocks * _words_of_block(shape)


def _flipped(key: Key, row: Array, first: Array, components: int) -> Array:
    """Returns a piece of a row from a word of columns on; columns are signed by a key that all rows share."""
    count = -(-components // 32)
    return unpack(words(key, count) ^ _hadamard(row, first, count), components, jnp.float32)


def _hadamard(row: Array, first: Array, count: int) -> Array:
    """A piece of a row of Sylvester's matrix, H_ij = (−1)^(number of ones common to i and j): words of 32 columns.

    A column's place in its word is the low five bits of its number, so that every word is one pattern or its inverse.
    """
    place, word = jnp.arange(32, dtype=jnp.uint32), first + jnp.arange(count, dtype=jnp.uint32)
    pattern = jnp.sum((jax.lax.population_count(row & place) & 1) << place, dtype=jnp.uint32)
    inverted = jax.lax.population_count((row >> 5) & word) & 1
    return pattern ^ (0 - inverted)


def _times(a: Array, b: Array, degree: int) -> Array:
    """Multiplies two elements of GF(2^degree), polynomials over GF(2) as the bits of a word."""
    product = jnp.uint32(0)
    for power in range(degree):
        product ^= jnp.where((b >> power) & 1, a, jnp.uint32(0))
        overflow = (a >> (degree - 1)) & 1
        a = ((a << 1) & jnp.uint32(2**degree - 1)) ^ (overflow * jnp.uint32(_LOWER_TERMS[degree - 1]))
    return product
