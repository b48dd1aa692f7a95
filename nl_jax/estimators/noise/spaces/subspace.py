"""The space of weights in a few directions of their inputs."""

import math
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp

from nl_jax._core.numerics import wide_dtype
from nl_jax._core.products import LazyWeight, as_slices, looked_up, mapped, product, use
from nl_jax._core.products.lazy_weight import Bilinear, Part
from nl_jax._core.require import floating, per_example, takes_propagate
from nl_jax.base import Array, Batch, Objective, Params, Propagate
from nl_jax.estimators.noise.engine.chunks import Footprint, default_chunk, occupied
from nl_jax.estimators.noise.engine.shares import Share
from nl_jax.estimators.noise.spaces.bases import Basis, Found
from nl_jax.estimators.noise.spaces.view import Costs, Measure, Noise, Space, View
from nl_jax.estimators.noise.spaces.weight_space import WeightView
from nl_jax.propagation import feedforward


def subspace(objective: Objective, basis: Basis) -> Space:
    """Displaces weights by Q G, with G the noise of a few coordinates, and all other parameters as `weights` does.

    W + σ Q G is never formed: x (W + σ Q G) = x W + σ (x Q) G, so that all samples share the products with W.

    Args:
      objective: any per-example objective that the basis accepts.
      basis: from `nl.bases`.

    Raises:
      ValueError: if `basis` is not one of `nl.bases`, or does not suit the objective.
    """
    if not isinstance(basis, Basis):
        raise ValueError(f"basis must be one of nl.bases, made by a call such as inputs(rank=4); got {basis!r}")
    basis.require(objective)

    def view(params: Params, batch: Batch, noise: Noise) -> View:
        return SubspaceView(objective, basis, params, batch, noise)

    return view


class SubspaceView(WeightView):
    """The coordinates of weights in a basis, at given parameters; they are 0 where nothing is displaced."""

    def __init__(self, objective: Objective, basis: Basis, params: Params, batch: Batch, noise: Noise) -> None:
        floating(params)
        weights, whole = jax.tree.flatten(params)
        # A fold-in that no sample's index uses.
        found = basis.find(jax.random.fold_in(noise.key, jnp.uint32(2**32 - 1)), objective, params, batch)
        origin = jax.tree.unflatten(whole, [_coordinates(i, leaf, found) for i, leaf in enumerate(weights)])

        def of_coordinates(coordinates: Params, batch: Batch, propagate: Propagate = feedforward) -> Array:
            own = jax.tree.leaves(coordinates, is_leaf=lambda leaf: isinstance(leaf, LazyWeight))
            moved = [
                _Displaced(leaf, found.matrices[i], c) if i in found.matrices else c
                for i, (leaf, c) in enumerate(zip(weights, own, strict=True))
            ]
            given = {"propagate": propagate} if takes_propagate(objective) else {}
            return objective(jax.tree.unflatten(whole, moved), batch, **given)

        super().__init__(of_coordinates, origin, batch, noise)
        self.weights, self.found = weights, found
        self.costs = Costs(basis.evaluations, clean=1 if found.losses is None else 0, tangent=self.costs.tangent)
        examples = jax.eval_shape(lambda: per_example(objective(params, batch))).shape[0]
        values = use(objective, params, batch).values * examples * weights[0].dtype.itemsize
        # Samples share the products with W: each adds only its coordinates and its axons.
        self.chunk = default_chunk(noise.num_samples, Footprint(occupied(origin) + values, weights_of_its_own=False))

    def clean(self) -> Array:
        return super().clean() if self.found.losses is None else self.found.losses

    def judged(self, measure: Measure, chunk: int | None, share: Share) -> tuple[Params, Array]:
        sampled, loss = super().judged(measure, chunk, share)
        return sampled.formed(self.params), loss

    def gradient(self, judged: Params) -> Params:
        pairs = zip(self.weights, jax.tree.leaves(judged), strict=True)
        return jax.tree.unflatten(self.tree, [_lifted(i, leaf, c, self.found) for i, (leaf, c) in enumerate(pairs)])


def _coordinates(place: int, leaf: Array, found: Found) -> Array:
    """Returns the origin of a parameter's noise: 0 for a weight in its subspace, itself for all others."""
    if place not in found.matrices:
        return leaf
    stack = leaf.shape[: found.stacked[place]]
    return jnp.zeros((*stack, found.matrices[place].shape[-1], leaf.shape[-1]), leaf.dtype)


def _lifted(place: int, leaf: Array, coordinates: Array, found: Found) -> Array:
    """Computes Q c."""
    if place not in found.matrices:
        return coordinates
    wide = wide_dtype(leaf.dtype)
    stacked, rank = found.stacked[place], coordinates.shape[-2]
    stack, inputs = leaf.shape[:stacked], math.prod(leaf.shape[stacked:-1])
    matrix = found.matrices[place].reshape(*stack, inputs, rank)
    return (matrix.astype(wide) @ coordinates.astype(wide)).reshape(leaf.shape).astype(leaf.dtype)


class _Displaced(LazyWeight):
    """W + A B, `left` A […, inputs, rank] and `right` B [rank, units], each an array or a lazy weight for one."""

    def __init__(self, weight: Array, left: Array | LazyWeight, right: Array | LazyWeight) -> None:
        super().__init__(weight)
        self.left, self.right = left, right

    def map(self, function: Part, *, swap: bool) -> Self:
        left, right = (mapped(part, function, swap=swap) for part in (self.left, self.right))
        return type(self)(function(self.weight), *((right, left) if swap else (left, right)))

    def as_slices(self) -> tuple[Any, Callable[[Any], LazyWeight]]:
        if self.right.ndim < 3:
            return super().as_slices()
        parts, close = as_slices([self.weight, self.left, self.right])
        return parts, lambda slices: _Displaced(*close(slices))

    def product(self, bilinear: Bilinear, x: Array) -> Array:
        return bilinear(x, self.weight) + product(jnp.matmul, product(bilinear, x, self.left), self.right)

    def rows(self, ids: Array) -> Array:
        return self.weight[ids] + product(jnp.matmul, looked_up(self.left, ids), self.right)
