"""Bases of the subspaces that weights are perturbed in: a few directions of a weight's inputs for all its units."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nl_jax.base import Array, Batch, Key, Objective, Params
from nl_jax.checks import layered, positive_integer
from nl_jax.estimators.input_span import inputs_of, sketches
from nl_jax.numerics import wide_dtype
from nl_jax.products import use


class Found(NamedTuple):
    """The bases of one estimate.

    Attributes:
      matrices: Q of some weights, by their place among the parameters' leaves: […, inputs, rank] for a weight
        […, inputs, units], its leading axes included.
      stacked: how many of the leading axes number weights of a stack, each with a basis of its own, by place.
      losses: of the run that found them, at the parameters, [batch]; None if there was none.
    """

    matrices: dict[int, Array]
    stacked: dict[int, int]
    losses: Array | None


class Basis(NamedTuple):
    """How bases are found.

    Attributes:
      require: `require(objective)`, a ValueError if the objective will not do.
      find: `find(key, objective, params, batch) -> Found`.
      evaluations: what finding them costs, the clean losses included if there are any.
    """

    require: Callable[[Objective], None]
    find: Callable[[Key, Objective, Params, Batch], Found]
    evaluations: int


def inputs(rank: int | None = None) -> Basis:
    """The span of what a weight is multiplied with in this batch (AGZO; Lin et al. 2026).

    The gradient of W in x W is Σ x δᵀ, so that it lies in the span of the inputs x. Noise Q G, with Q an orthonormal
    basis of it and G [rank, units] random, wastes nothing on directions that no loss can depend on. Q is that of the
    sketch XᵀX Ω of all inputs X [rows, inputs], Ω random: one pass and its local products, no way back.

    A rank of the batch's rows or more covers the span, and an estimate is unbiased. A lower one leans to the leading
    directions of the inputs, and the estimate is **biased**: its mean is the gradient's part in the span of Q,
    averaged over Ω.

    It is for weights that layers multiply by and nothing else uses, in loops and convolutions (patches) as well. A
    weight that is also transposed, looked up or used outside the layers has a gradient beyond the span; it keeps
    isotropic noise, as biases do.

    Args:
      rank: columns of Q, at least 1, and never more than a weight's inputs; None for the number of rows, which covers.

    Returns:
      A basis for `nl.subspace_perturbation` and `nl.spaces.subspace`, of 2 evaluations with the clean pass.

    Raises:
      ValueError: if the rank is not as described; when used, if the objective takes no `propagate`.
    """
    chosen = None if rank is None else positive_integer("rank", rank)

    def find(key: Key, objective: Objective, params: Params, batch: Batch) -> Found:
        leaves = jax.tree.leaves(params)
        of_place = inputs_of(objective, params, batch)
        ranks = {
            place: min(math.prod(leaves[place].shape[own.stacked : -1]), chosen or own.rows)
            for place, own in of_place.items()
        }
        losses, found = sketches(objective, params, batch, key, ranks)
        matrices = {place: orthonormal(sketch, of_place[place].stacked) for place, sketch in found.items()}
        return Found(matrices, {place: own.stacked for place, own in of_place.items()}, losses)

    return Basis(lambda objective: layered("the basis of a weight's inputs", objective), find, evaluations=2)


def random(rank: int) -> Basis:
    """A random subspace for each weight, uniform, drawn anew for every estimate (ZO-Muon; Lang et al. 2026).

    Noise √(m/r) Q G of a weight [m, units], with Q [m, r] of orthonormal columns, has unit covariance: an
    estimate is unbiased. It is no better than isotropic noise: the relative variance of K samples is
    φ + (P + 1 + φ)/K, with φ = Σ (m/r − 1) ‖∂E/∂W‖²/‖g‖², for Gaussian coordinates. They share one subspace, and what
    it misses they all miss: φ stays. What it is good for is an estimate of low rank.

    It is for weights of two axes or more that the objective only multiplies by or looks up; all others have isotropic
    noise. The inputs of a convolution are its patches, and a stack of weights that a loop slices has a basis for each.

    Args:
      rank: r, columns of Q, at least 1, and never more than a weight's inputs.

    Returns:
      A basis for `nl.subspace_perturbation` and `nl.spaces.subspace`, of no evaluations.

    Raises:
      ValueError: if the rank is not as described.
    """
    chosen = positive_integer("rank", rank)

    def find(key: Key, objective: Objective, params: Params, batch: Batch) -> Found:
        matrices: dict[int, Array] = {}
        stacked: dict[int, int] = {}
        leaves = jax.tree.leaves(params)
        uses = use(objective, params, batch)
        for place, leaf in enumerate(leaves):
            if not uses.multiplied[place]:
                continue
            stacked[place] = uses.stacked[place]
            inputs = math.prod(leaf.shape[stacked[place] : -1])
            columns = min(chosen, inputs)
            normal = jax.random.normal(jax.random.fold_in(key, place), (*leaf.shape[:-1], columns), leaf.dtype)
            unit = jnp.asarray((inputs / columns) ** 0.5, leaf.dtype)
            matrices[place] = orthonormal(normal, stacked[place]) * unit
        return Found(matrices, stacked, None)

    return Basis(lambda objective: None, find, evaluations=0)


def orthonormal(columns: Array, stacked: int) -> Array:
    """Orthonormal columns of the same span, for […, inputs, rank] of which `stacked` leading axes number matrices."""
    shape, rank = columns.shape, columns.shape[-1]
    wide = columns.astype(wide_dtype(columns.dtype)).reshape(*shape[:stacked], -1, rank)
    if rank == 1:  # on an accelerator a factorisation of many small matrices takes longer than a forward pass
        length = jnp.sqrt(jnp.sum(wide**2, axis=-2, keepdims=True))
        found = jnp.where(length > 0, wide / jnp.where(length > 0, length, 1), 0)
    else:
        found = jnp.linalg.qr(wide)[0]
    return found.reshape(shape).astype(columns.dtype)
