"""Bases of the subspaces in which weights are perturbed: a few directions of a weight's inputs for all its units."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nl_jax._core.numerics import wide_dtype
from nl_jax._core.products import use
from nl_jax._core.require import layered, positive_integer
from nl_jax.base import Array, Batch, Key, Objective, Params
from nl_jax.estimators.noise.spaces.input_span import inputs_of, sketches


class Found(NamedTuple):
    """The bases of one estimate.

    Attributes:
      matrices: Q of some weights, by their place among the parameters' leaves: […, inputs, rank] for a weight […,
        inputs, units], its leading axes included.
      stacked: how many of the leading axes index weights of a stack, each with its own basis, by place.
      losses: of the run that found them, at the parameters, [batch]; None without such a run.
    """

    matrices: dict[int, Array]
    stacked: dict[int, int]
    losses: Array | None


class Basis(NamedTuple):
    """How bases are found.

    Attributes:
      require: `require(objective)`, raises ValueError if the objective is not suitable.
      find: `find(key, objective, params, batch) -> Found`.
      evaluations: the cost of finding them, including the clean losses if there are any.
    """

    require: Callable[[Objective], None]
    find: Callable[[Key, Objective, Params, Batch], Found]
    evaluations: int


def inputs(rank: int | None = None) -> Basis:
    """The span of the inputs that a weight is multiplied with in this batch (AGZO; Lin et al. 2026).

    The gradient of W in x W is Σ x δᵀ, so that it lies in the span of the inputs x. Noise Q G, with Q an orthonormal
    basis of this span and G [rank, units] random, wastes nothing on directions that no loss can depend on. Q is an
    orthonormal basis of the sketch XᵀX Ω of all inputs X [rows, inputs], Ω random: it takes one pass and its local
    products, no backpropagation.

    If the rank is at least the batch's number of rows, Q covers the span, and an estimate is unbiased. A lower rank
    favours the leading directions of the inputs, and the estimate is **biased**: its mean is the gradient's part in the
    span of Q, averaged over Ω.

    It is for weights that layers multiply by and that nothing else uses, in loops and convolutions (patches) as well.
    If a weight is also transposed, looked up or used outside the layers, its gradient extends beyond the span; it keeps
    isotropic noise, as biases do.

    Args:
      rank: number of columns of Q, at least 1, never more than a weight's inputs; None for the number of rows, which
        covers the span.

    Returns:
      A basis for `nl.subspace_perturbation` and `nl.spaces.subspace`. It costs 2 evaluations, including the clean pass.

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
    """A uniformly random subspace for each weight, drawn anew for every estimate (ZO-Muon; Lang et al. 2026).

    Noise √(m/r) Q G of a weight [m, units], with Q [m, r] of orthonormal columns, has unit covariance, so that an
    estimate is unbiased. It is no better than isotropic noise: the relative variance of K samples is φ + (P + 1 + φ)/K,
    with φ = Σ (m/r − 1) ‖∂E/∂W‖²/‖g‖², for Gaussian coordinates. All samples share one subspace and miss the same part,
    so that φ remains. Its use is that the estimate has low rank.

    It is for weights of two axes or more that the objective only multiplies by or looks up; all others have isotropic
    noise. The inputs of a convolution are its patches. In a stack of weights that a loop slices, each has its own
    basis.

    Args:
      rank: r, the number of columns of Q, at least 1, never more than a weight's inputs.

    Returns:
      A basis for `nl.subspace_perturbation` and `nl.spaces.subspace`. It costs no evaluations.

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
    """Returns orthonormal columns of the same span, for […, inputs, rank] with `stacked` leading axes of matrices.

    Gram–Schmidt, each column twice, which is orthogonal to rounding (Giraud et al. 2005). A column that depends on
    those before it is 0. It is not `jnp.linalg.qr`, whose calls of LAPACK can stand still in long loops on a CPU, and
    which takes longer than a forward pass on an accelerator.
    """
    shape, rank = columns.shape, columns.shape[-1]
    if not columns.size:  # of a loop without steps
        return columns
    wide = columns.astype(wide_dtype(columns.dtype)).reshape(*shape[:stacked], -1, rank)
    rounding = 10 * jnp.finfo(wide.dtype).eps * wide.shape[-2] ** 0.5

    def add(k: Array, found: Array) -> Array:
        column = jax.lax.dynamic_index_in_dim(wide, k, axis=-1)
        rest = column
        for _ in range(2):
            rest = rest - found @ (found.mT @ rest)
        length, whole = (jnp.linalg.norm(x, axis=-2, keepdims=True) for x in (rest, column))
        new = length > rounding * whole
        unit = jnp.where(new, rest / jnp.where(new, length, 1), 0)
        return jax.lax.dynamic_update_index_in_dim(found, unit, k, axis=-1)

    return jax.lax.fori_loop(0, rank, add, jnp.zeros_like(wide)).reshape(shape).astype(columns.dtype)
