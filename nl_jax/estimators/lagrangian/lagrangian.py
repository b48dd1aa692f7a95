"""The Lagrangian of a network and the norms of its gradients (seed 000; LeCun 1988)."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nl_jax._core.numerics import wide_dtype
from nl_jax._core.require import layered, nonnegative_number, per_example
from nl_jax.base import Array, Axons, Batch, Objective, Params
from nl_jax.propagation import Clamped, clamp, loops_around


class KKT(NamedTuple):
    """Norms of the mean Lagrangian's three gradients: how far an estimate is from stationarity.

    Where `primal` and `dual` vanish, the estimate is the gradient that `jax.grad` computes.

    Attributes:
      primal: ‖∂L/∂λ_l‖ by layer, the violation of x_l = f(W_l x_{l−1} + b_l).
      dual: ‖∂L/∂x_l‖ by layer, the violation of the multipliers' own recursion.
      gradient: ‖∂L/∂W_l‖ by parameter leaf; the third stationarity condition, which learning brings to zero.
    """

    primal: dict[str, Array]
    dual: dict[str, Array]
    gradient: Params


def lagrangian(objective: Objective, *, penalty: float | Array = 0.0) -> Callable[[Params, Axons, Axons, Batch], Array]:
    """Computes L = C(x_L) + Σ_l λ_lᵀ r_l + μ/2 Σ_l ‖r_l‖², r_l = x_l − f(W_l x_{l−1} + b_l), per example.

    Axons x (activity) and multipliers λ are free variables, one of each per layer; the layers' equations r = 0 are
    constraints (seed 000; LeCun 1988). The three stationarity conditions are the three gradients of this one function:
    ∂L/∂λ = 0 is the forward pass, ∂L/∂x = 0 the backward pass, ∂L/∂W = 0 a minimum of the loss. With a penalty μ it is
    the augmented Lagrangian (Hestenes 1969; Powell 1969). Its stationary points are the same; its gradients are those
    without penalty at multipliers λ + μ r.

    Args:
      objective: a per-example objective that takes `propagate`.
      penalty: μ, at least 0.

    Returns:
      `L(params, axons, multipliers, batch) -> [batch]`. `axons` maps the names of all layers to arrays in the layers'
      shapes, batch axis first. `multipliers` does so for some or all layers; missing ones are 0.

    Raises:
      ValueError: if the objective takes no `propagate`, or the penalty is negative or not finite; when run, if the
        first axis of a layer's axons is not the batch, or multipliers are of an unknown layer or of another shape.
    """
    layered("lagrangian", objective)
    if not isinstance(penalty, jax.Array):
        nonnegative_number("penalty", penalty)

    def evaluate(params: Params, axons: Axons, multipliers: Axons, batch: Batch) -> Array:
        losses, layers = clamp(objective)(params, batch, axons)
        total = per_example(losses)
        _fit(layers, axons, multipliers)
        for name, layer in layers.items():
            residual = layer.axons - layer.predicted
            if name in multipliers:
                total = total + inner(name, multipliers[name], residual, total)
            if isinstance(penalty, jax.Array) or penalty > 0:
                total = total + 0.5 * jnp.asarray(penalty, total.dtype) * inner(name, residual, residual, total)
        return total

    return evaluate


def gradients(
    objective: Objective, *, penalty: float = 0.0
) -> Callable[[Params, Axons, Axons, Batch], tuple[dict[str, Array], dict[str, Array]]]:
    """Returns `(params, axons, multipliers, batch) -> (∂L/∂x, ∂L/∂λ)`, per example: L is summed, not averaged.

    It costs two evaluations: one forward pass and one reverse pass to the axons, without parameter gradients.
    """
    evaluate = lagrangian(objective, penalty=penalty)

    def total(params: Params, axons: Axons, multipliers: Axons, batch: Batch) -> Array:
        return jnp.sum(evaluate(params, axons, multipliers, batch))

    return jax.grad(total, argnums=(1, 2))


def stationarity(
    objective: Objective,
) -> Callable[[Params, Axons, Axons, Batch], tuple[Params, KKT]]:
    """Returns `report(params, axons, multipliers, batch) -> (∂L/∂W, KKT)`, the Lagrangian's gradients at a point.

    L is averaged over the batch, so that ∂L/∂W has the scale of `jax.grad` of the mean loss. No derivative spans more
    than one layer.
    """
    evaluate = lagrangian(objective)

    def mean(params: Params, axons: Axons, multipliers: Axons, batch: Batch) -> Array:
        return jnp.mean(evaluate(params, axons, multipliers, batch))

    def report(params: Params, axons: Axons, multipliers: Axons, batch: Batch) -> tuple[Params, KKT]:
        grads, dual, primal = jax.grad(mean, argnums=(0, 1, 2))(params, dict(axons), dict(multipliers), batch)
        return grads, KKT(*jax.tree.map(lambda leaf: _norm(leaf), (primal, dual, grads)))

    return report


def inner(name: str, a: Array, b: Array, total: Array) -> Array:
    """Computes aᵀb of one layer, per example, to be added to `total`; ValueError if the first axis is not the batch."""
    steps = loops_around(name)  # their axes come first
    if a.shape[steps : steps + 1] != total.shape:
        raise ValueError(
            f"layer {name!r} has axons of shape {a.shape[steps:]}, whose first axis is not the batch of "
            f"{total.shape[0]}: a Lagrangian is per example; give every layer the whole batch"
        )
    others = tuple(axis for axis in range(a.ndim) if axis != steps)
    return _product(a, b, others, (steps,)).astype(total.dtype)


def _norm(leaf: Array) -> Array:
    return jnp.sqrt(_product(leaf, leaf, tuple(range(leaf.ndim)), ()))


def _product(a: Array, b: Array, summed: tuple[int, ...], kept: tuple[int, ...]) -> Array:
    """Computes Σ a b over some axes as one equation in either direction, where a sum of products has two."""
    exact = jax.lax.Precision.HIGHEST
    wide = wide_dtype(a.dtype)
    return jax.lax.dot_general(a, b, ((summed, summed), (kept, kept)), precision=exact, preferred_element_type=wide)


def _fit(layers: Mapping[str, Clamped], axons: Axons, multipliers: Axons) -> None:
    for name in layers:
        if name not in axons:
            raise ValueError(f"layer {name!r} is not among those known here: {', '.join(axons) or 'none'}")
    for name, multiplier in multipliers.items():
        if name not in layers:
            raise ValueError(f"multipliers: no layer is named {name!r}; the layers are {', '.join(layers)}")
        if multiplier.shape != layers[name].axons.shape:
            raise ValueError(
                f"layer {name!r}: the multipliers have shape {multiplier.shape}, the axons "
                f"{layers[name].axons.shape}; they must be equal"
            )
