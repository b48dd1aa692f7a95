"""Low-rank signs: directions a bᵀ of weights, never formed."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from nl_jax._core.numerics import wide_dtype
from nl_jax._core.products import LazyWeight
from nl_jax._core.products.lazy_weight import Bilinear, Part
from nl_jax._core.require import positive_integer
from nl_jax.base import Array, Key, Params
from nl_jax.estimators.noise.directions.bits import signs
from nl_jax.estimators.noise.directions.flat import drawn
from nl_jax.estimators.noise.directions.layout import At, Layout, is_large, over_blocks
from nl_jax.estimators.noise.directions.placement import placed
from nl_jax.estimators.noise.directions.sampler import NamedSampler
from nl_jax.estimators.noise.directions.structured import Direction, Sampler, Structured


def rank_one() -> Sampler:
    """Samples V = a bᵀ with signs a, b for every weight; see `low_rank`.

    Second moment mn ‖G‖² for an m × n weight with gradient G, as for independent signs: relative variance (P − 1)/K, at
    a small part of their cost.
    """
    return low_rank(1)


def low_rank(rank: int) -> Sampler:
    """Samples V = Σ_r a_r b_rᵀ/√rank with signs a, b for every weight, independent signs for all else.

    Weights are parameters of two axes or more that layers only multiply by (x W + b, in dense layers and convolutions),
    or look up (W[ids]). As x (W + σ V) = x W + σ (x A) Bᵀ, all samples share the product with W. Averages are
    accumulated as Aᵀ diag(change) B. (Rank-one noise: Sarkar et al. 2025, there Gaussian, at a second moment of
    (m + 2)(n + 2) ‖G‖².)

    Second moment (mn + 2(1 − 1/rank)) ‖G‖² per weight: from that of independent signs at rank 1 towards
    the Gaussian one. Relative variance (P − 1 + 2(1 − 1/rank) Σ_weights ‖G‖²/‖g‖²)/K.

    Args:
      rank: at least 1.
    """
    rank = positive_integer("rank", rank)

    def sampler(key: Key, index: Array, template: Params) -> Direction:
        def parts(leaf: Any) -> Any:
            if leaf.ndim < 2:
                return leaf
            left, right = (*leaf.shape[:-1], rank), (rank, leaf.shape[-1])
            sharding = placed(leaf)
            whole = None if sharding is None else NamedSharding(sharding.mesh, PartitionSpec())
            a, b = (jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=whole) for shape in (left, right))
            return LowRank(a, b, sharding)  # type: ignore[arg-type]

        # A large weight's factors are small enough to be drawn whole.
        in_blocks = lambda leaf: is_large(leaf) and leaf.ndim < 2
        return drawn(_signs, jax.random.fold_in(key, index), jax.tree.map(parts, template), in_blocks)

    return NamedSampler("low_rank", sampler, rank=rank)


def _signs(key: Key, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    # 1/ξ = ξ. XLA treats a division as expensive: without it, XLA would unpack the same signs again for every example
    # they are multiplied with (on a CPU, half of an estimate's time).
    return 1 / signs(key, shape, dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LowRank(Structured):
    """V = A B/√rank, `left` A [..., inputs, rank] and `right` B [rank, units].

    `sharding` is that of the weight. All devices have A and B.
    """

    left: Array
    right: Array
    sharding: NamedSharding | None = field(default=None, metadata={"static": True})

    @property
    def scale(self) -> float:
        return 1 / math.sqrt(self.right.shape[-2])

    def displace(self, weight: Array, sigma: Any) -> LazyWeight:
        return _Displaced(weight, self.left, self.right, sigma * self.scale)

    def added(self, total: Array, change: Array) -> Array:
        # Σ_k change_k A_k B_k: one product over samples and ranks at once
        wide = wide_dtype(self.left.dtype)
        rate = jnp.mean(change, axis=1).astype(wide) * self.scale
        left = self.left.astype(wide) * jnp.expand_dims(rate, tuple(range(1, self.left.ndim)))
        left = jnp.moveaxis(left, -1, 1).reshape(-1, *self.left.shape[1:-1])
        right = self.right.astype(wide).reshape(left.shape[0], -1)
        if not is_large(total):
            return total + jnp.tensordot(left, right, axes=(0, 0)).astype(total.dtype)
        layout = Layout.of(total.shape)
        left = left.reshape(-1, layout.slices, layout.inputs)

        def increment(factors: tuple[Array, Array], at: At) -> Array:
            left, right = factors
            slice, block, count, width = at
            units = jax.lax.dynamic_slice_in_dim(right, block * layout.width, count * width, axis=1)
            return left[:, slice].T @ units

        return over_blocks(layout, total, increment, (left, right), self.sharding)


class _Displaced(LazyWeight):
    """W + σ A B."""

    def __init__(self, weight: Array, left: Array, right: Array, sigma: Any) -> None:
        super().__init__(weight)
        self.left, self.right, self.sigma = left, right, sigma

    def map(self, function: Part, *, swap: bool) -> Self:
        left, right = function(self.left), function(self.right)
        return type(self)(function(self.weight), *((right, left) if swap else (left, right)), self.sigma)

    def as_slices(self) -> tuple[Any, Callable[[Any], LazyWeight]]:
        if self.ndim < 3:
            return super().as_slices()
        # Each slice of a stacked weight has its own A; all slices share B.
        return (self.weight, self.left), lambda parts: _Displaced(parts[0], parts[1], self.right, self.sigma)

    def product(self, bilinear: Bilinear, x: Array) -> Array:
        seen = bilinear(x, self.left)
        seen = seen * jnp.asarray(self.sigma, seen.dtype)
        # For rank one, an outer product; a matrix product with a single term would be slower.
        noise = seen * self.right.reshape(*(1,) * (seen.ndim - 1), -1) if len(self.right) == 1 else seen @ self.right
        return bilinear(x, self.weight) + noise

    def rows(self, ids: Array) -> Array:
        return self.weight[ids] + jnp.asarray(self.sigma, self.left.dtype) * self.left[ids] @ self.right
