"""A gradient as a list of rates: ĝ = 1/K Σ_k r_k ξ_k, whose directions ξ can be drawn again from the key."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from nl_jax._core.numerics import wide_dtype
from nl_jax.base import Array, Key, Params
from nl_jax.estimators.noise.directions import Direction, Sampler, Structured
from nl_jax.estimators.noise.directions.blocks import Blocks
from nl_jax.estimators.noise.directions.placement import placed, zeros
from nl_jax.estimators.noise.directions.sampler import drawing
from nl_jax.estimators.noise.directions.structured import parts
from nl_jax.estimators.noise.engine.chunks import Footprint, default_chunk, occupied, stacked
from nl_jax.estimators.noise.engine.shares import Share, alone, shared_out, sums_updates


class Leaf(NamedTuple):
    """The properties of one parameter that a sampler needs.

    Attributes:
      shape, dtype: of the parameter.
      weight: whether the sampler is shown a weight; otherwise it is shown a vector, for which a structured sampler
        draws independent noise.
      sharding: how the parameter is sharded over devices, see `nl_jax.estimators.noise.directions.placement.placed`.
    """

    shape: tuple[int, ...]
    dtype: Any
    weight: bool
    sharding: NamedSharding | None


@dataclass(frozen=True)
class Directions:
    """The directions of a sampler for parameters of given shapes; equal if sampler and shapes are."""

    sampler: Sampler
    tree: Any
    leaves: tuple[Leaf, ...]

    @classmethod
    def of(
        cls, sampler: Sampler, params: Params, weights: Sequence[bool], shardings: Sequence[Any] | None = None
    ) -> Self:
        """Directions for parameters, a tree of arrays or of their shapes.

        Args:
          sampler: from `nl.directions`.
          params: the parameters.
          weights: by leaf, whether it is a weight.
          shardings: by leaf, how it is sharded over devices; None for what is visible from the parameters.
        """
        leaves, tree = jax.tree.flatten(params)
        found = zip(leaves, weights, shardings or [None] * len(leaves), strict=True)
        return cls(
            sampler,
            tree,
            tuple(
                Leaf(tuple(leaf.shape), jnp.dtype(leaf.dtype), weight, placed(leaf, at)) for leaf, weight, at in found
            ),
        )

    def draw(self, key: Key, index: Array) -> Direction:
        """Draws the index-th direction of the estimate that `key` belongs to, a tree like the parameters."""
        shown = [
            jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
            if leaf.weight or len(leaf.shape) == 1
            else jax.ShapeDtypeStruct((math.prod(leaf.shape),), leaf.dtype)
            for leaf in self.leaves
        ]
        direction = parts(drawing(self.sampler)(key, index, self.tree.unflatten(shown)))
        return self.tree.unflatten(
            [
                xi if isinstance(xi, Structured) else xi.reshape(leaf.shape)
                for xi, leaf in zip(direction, self.leaves, strict=True)
            ]
        )


@functools.partial(jax.tree_util.register_dataclass, data_fields=["key", "rates"], meta_fields=["directions"])
@dataclass(frozen=True)
class SampledGradient:
    """ĝ = 1/K Σ_k mean_n (r_kn ξ_kn), with every direction ξ drawn again where it is needed.

    Attributes:
      key: the estimate's key.
      rates: the losses' rates of change along the directions, in float32 at least: [K, 1], or [K, batch] where every
        example has its own directions.
      directions: how they are drawn.
    """

    key: Key
    rates: Array
    directions: Directions

    def added(self, params: Params, scale: Any) -> Params:
        """Computes params + scale · ĝ, block by block, in place if XLA allows; stores nothing of the parameters' size.

        Args:
          params: the parameters, or any tree of their shapes.
          scale: a number, or a float32 scalar.

        Returns:
          A tree like `params`, in its dtypes.
        """
        return self._added(params, scale, alone(self.rates.shape[0]).indices)

    def _added(self, params: Params, scale: Any, indices: Array) -> Params:
        """As `added`, for the samples of some consecutive indices."""
        leaves, tree = jax.tree.flatten(params)
        count, of_all = len(indices), self.rates.shape[0]
        own = self.rates if count == of_all else self.rates[indices]
        rates = own * (jnp.asarray(scale, self.rates.dtype) / of_all)
        draw = lambda index: self.directions.draw(self.key, index)
        size = occupied(jax.eval_shape(draw, jnp.int32(0)))
        # Per-example signs are many; samples that have them are added one by one.
        chunk = 1 if rates.shape[1] > 1 else default_chunk(count, Footprint(size, weights_of_its_own=False))

        def part(leaves: list[Array], indices: Array, rates: Array) -> list[Array]:
            directions = parts(stacked(draw)(indices))
            return [_added(leaf, xi, rates) for leaf, xi in zip(leaves, directions, strict=True)]

        chunks, rest = divmod(count, chunk)
        if chunks == 1:
            leaves = part(leaves, indices[:chunk], rates[:chunk])
        else:
            whole = indices[: chunks * chunk].reshape(chunks, chunk), rates[: chunks * chunk].reshape(chunks, chunk, -1)
            leaves, _ = jax.lax.scan(lambda leaves, some: (part(leaves, *some), None), leaves, whole)
        if rest:
            leaves = part(leaves, indices[-rest:], rates[-rest:])
        return jax.tree.unflatten(tree, leaves)

    def formed(self, params: Params, sharding: NamedSharding | None = None, sum_updates: bool | None = None) -> Params:
        """Returns ĝ as a tree like `params`.

        Args:
          params: the parameters, or any tree of their shapes.
          sharding: how the samples are divided over devices.
          sum_updates: whether each device adds up its own samples' directions and these sums are summed; otherwise each
            device adds up all directions, and nothing is exchanged. None: by `shares.sums_updates`.
        """
        if sum_updates is None:
            sum_updates = sums_updates(sharding, self._drawn(), sum(leaf.size for leaf in jax.tree.leaves(params)))

        def total(share: Share, sampled: SampledGradient, params: Params) -> Params:
            pairs = zip(jax.tree.leaves(params), self.directions.leaves, strict=True)
            nothing = [zeros(leaf.shape, wide_dtype(leaf.dtype), of.sharding) for leaf, of in pairs]
            return share.summed(
                sampled._added(jax.tree.unflatten(jax.tree.structure(params), nothing), 1, share.indices)
            )

        formed = shared_out(total, self.rates.shape[0], sharding if sum_updates else None)(self, params)
        return jax.tree.map(lambda total, leaf: total.astype(leaf.dtype), formed, params)

    def _drawn(self) -> int:
        """Counts the numbers that a direction is drawn as."""
        drawn = parts(jax.eval_shape(lambda: self.directions.draw(self.key, jnp.int32(0))))
        return sum(
            math.prod(xi.shape) if isinstance(xi, Blocks) else sum(leaf.size for leaf in jax.tree.leaves(xi))
            for xi in drawn
        )


def _added(leaf: Array, directions: Any, rates: Array) -> Array:
    if isinstance(directions, Structured):
        return directions.added(leaf.reshape(_shape(directions, leaf)), rates).reshape(leaf.shape)
    wide = wide_dtype(directions.dtype)
    change = jnp.tensordot(jnp.mean(rates, axis=1).astype(wide), directions.astype(wide), axes=1)
    return leaf + jax.lax.optimization_barrier(change.astype(leaf.dtype))  # rounded here, whatever XLA fuses it with


def _shape(directions: Any, leaf: Array) -> tuple[int, ...]:
    """Returns the shape in which a leaf was shown to the sampler: its own, or that of a vector."""
    return getattr(directions, "shape", leaf.shape)
