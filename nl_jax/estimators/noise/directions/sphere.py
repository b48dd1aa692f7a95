"""Directions uniform on a sphere."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp

from nl_jax._core.numerics import wide_dtype
from nl_jax.base import Array, Key, Params
from nl_jax.estimators.noise.directions.bits import normal
from nl_jax.estimators.noise.directions.blocks import Block, Fill
from nl_jax.estimators.noise.directions.flat import divide, divided, size
from nl_jax.estimators.noise.directions.layout import Layout, is_large
from nl_jax.estimators.noise.directions.sampler import NamedSampler
from nl_jax.estimators.noise.directions.structured import Direction, Sampler


def sphere() -> Sampler:
    """Samples ξ uniformly on the sphere of radius √P: a Gaussian direction whose length does not vary.

    Second moment P ‖g‖², relative variance (P − 1)/K (Nesterov and Spokoiny 2017 smooth over the ball it bounds).

    Large parameters are drawn in blocks. The squared lengths of the blocks of a uniform direction are P times a
    Dirichlet variable of parameters n_b/2, with n_b the block's number of components; each block is uniform on its own
    sphere.
    """

    def sampler(key: Key, index: Array, template: Params) -> Direction:
        leaves = jax.tree.leaves(template)
        own = jax.random.fold_in(key, index)
        together = sum(leaf.size for leaf in leaves if not is_large(leaf))
        sizes = [[together] if together else [], *(_block_sizes(leaf.shape) for leaf in leaves if is_large(leaf))]
        lengths = _lengths(jax.random.fold_in(own, 0), sizes, size(template))

        def small(leaves: list[Any]) -> list[Array]:
            flat = _on_sphere(own, together, lengths[0][0], wide_dtype(*(leaf.dtype for leaf in leaves)))
            return [part.astype(leaf.dtype) for part, leaf in zip(divide(flat, leaves), leaves, strict=True)]

        def large(number: int, leaf: Any) -> tuple[Any, Fill]:
            def fill(seed: tuple[Key, Array], block: Block, components: int, dtype: Any) -> Array:
                key, lengths = seed
                key = jax.random.fold_in(key, block.number)
                return _on_sphere(key, components, lengths[block.number], wide_dtype(dtype)).astype(dtype)

            return (jax.random.fold_in(own, number + 1), lengths[number + 1]), fill

        return divided(template, small, large)

    return NamedSampler("sphere", sampler)


def _on_sphere(key: Key, components: int, length: Array, dtype: Any) -> Array:
    x = normal(key, (components,), dtype)
    return x * (length.astype(dtype) / jnp.sqrt(jnp.sum(x * x)))


def _lengths(key: Key, sizes: list[list[int]], total: int) -> list[Array]:
    """Draws the length of every block, by leaf."""
    flat = list(itertools.chain(*sizes))
    dtype = jnp.result_type(float)
    if len(flat) == 1:
        squares = jnp.full(1, total, dtype)
    else:
        gamma = jax.random.gamma(key, jnp.asarray(flat, dtype) / 2)
        squares = total * gamma / jnp.sum(gamma)
    ends = list(itertools.accumulate(map(len, sizes)))
    return [jnp.sqrt(squares[end - len(own) : end]) for end, own in zip(ends, sizes, strict=True)]


def _block_sizes(shape: tuple[int, ...]) -> list[int]:
    """Returns the numbers of components of a large leaf's blocks, in order."""
    layout = Layout.of(shape)
    widths = [layout.width] * layout.whole + [layout.rest] * (layout.rest > 0)
    return [layout.inputs * width for width in widths] * layout.slices
