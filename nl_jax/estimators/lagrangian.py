"""Backpropagation as constrained optimisation (seed 000; LeCun 1988)."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nl_jax.base import Array, Batch, GradientEstimator, Info, Key, Objective, Params, State, stateless
from nl_jax.checks import layered, per_example
from nl_jax.propagation import cut, record

Axons = Mapping[str, Array]


class KKT(NamedTuple):
    """Norms of the Lagrangian's three gradients: how far an estimate is from stationarity.

    Attributes:
      primal: ‖∂L/∂λ_l‖ by layer, the violation of x_l = f(W_l x_{l−1} + b_l).
      dual: ‖∂L/∂x_l‖ by layer, the violation of the multipliers' own recursion.
      gradient: ‖∂L/∂W_l‖ by parameter leaf; the third condition, which learning brings to zero.
    """

    primal: dict[str, Array]
    dual: dict[str, Array]
    gradient: Params


def lagrangian(objective: Objective) -> Callable[[Params, Axons, Axons, Batch], Array]:
    """L = C(x_L) + Σ_l λ_lᵀ (x_l − f(W_l x_{l−1} + b_l)), per example (seed 000; LeCun 1988).

    Axons x and multipliers λ are free variables, one of each per layer; the layers' equations are
    constraints. The three stationarity conditions are the three gradients of this one function: ∂L/∂λ = 0
    is the forward pass, ∂L/∂x = 0 the backward pass, ∂L/∂W = 0 a minimum of the loss.

    Args:
      objective: a per-example objective that takes `propagate`.

    Returns:
      `L(params, axons, multipliers, batch) -> [batch]`, where `axons` and `multipliers` map layer names
      to arrays of the layers' shapes, batch axis first.

    Raises:
      ValueError: if the objective takes no `propagate`.
    """
    layered("lagrangian", objective)

    def evaluate(params: Params, axons: Axons, multipliers: Axons, batch: Batch) -> Array:
        losses, predicted = cut(objective)(params, batch, axons)
        total = per_example(losses)
        for name, multiplier in multipliers.items():
            if multiplier.shape[:1] != total.shape:
                raise ValueError(
                    f"layer {name!r} has axons of shape {multiplier.shape}, whose first axis is not the batch of "
                    f"{total.shape[0]}: a Lagrangian is per example; give every layer the whole batch"
                )
            violation = multiplier * (axons[name] - predicted[name])
            total = total + jnp.sum(violation.reshape(total.shape[0], -1), axis=1)
        return total

    return evaluate


def lagrangian_backprop(objective: Objective) -> GradientEstimator:
    """The exact gradient as the stationary point of the Lagrangian (seed 000; LeCun 1988).

    Solved by substitution: x by the forward pass, so that ∂L/∂λ = 0; then each λ_l from those above it,
    from the last layer down, so that ∂L/∂x_l = 0 (the adjoint equations); then ∂L/∂W is the gradient.
    At that point λ_l = −∂C/∂x_l. No derivative reaches across more than one layer.

    Args:
      objective: a per-example objective that takes `propagate`.

    Returns:
      An estimator without state or randomness, equal to `backprop` up to rounding. Its `info.residuals`
      is a `KKT` of the three gradients' norms, measured on the Lagrangian itself; their cost (one more
      sweep) is not counted in `info.evaluations` and is not spent where they are not used.

    Raises:
      ValueError: if the objective takes no `propagate`; when run, for layers that share a name.

    >>> import jax, jax.numpy as jnp, nl_jax as nl
    >>> net = nl.mlp([3, 4, 2], activation=nl.activations.tanh())
    >>> objective = nl.supervised(net.apply, nl.losses.cross_entropy)
    >>> batch = jnp.ones([5, 3]), jnp.zeros(5, int)
    >>> key, params = jax.random.key(0), net.init(jax.random.key(1))
    >>> ours, _, info = lagrangian_backprop(objective).estimate(key, (), params, batch)
    >>> exact, _, _ = nl.backprop(objective).estimate(key, (), params, batch)
    >>> bool(jnp.allclose(ours["hidden1"]["weight"], exact["hidden1"]["weight"], atol=1e-6))
    True
    """
    layered("lagrangian_backprop", objective)
    evaluate = lagrangian(objective)

    def mean_lagrangian(params: Params, axons: Axons, multipliers: Axons, batch: Batch) -> Array:
        return jnp.mean(evaluate(params, axons, multipliers, batch))

    def estimate(key: Key, state: State, params: Params, batch: Batch) -> tuple[Params, State, Info]:
        del key
        losses, axons = record(objective)(params, batch)  # ∂L/∂λ = 0
        multipliers: dict[str, Array] = {}
        for name in reversed(axons):  # ∂L/∂x = 0

            def total(x: Array, name: str = name) -> Array:
                return jnp.sum(evaluate(params, {**axons, name: x}, multipliers, batch))

            # ∂L/∂x_l = λ_l + (terms of the layers above), so its value without λ_l is −λ_l.
            multipliers[name] = -jax.grad(total)(axons[name])
        grads = jax.grad(mean_lagrangian)(params, axons, multipliers, batch)
        primal, dual = jax.grad(mean_lagrangian, argnums=(2, 1))(params, axons, multipliers, batch)
        residuals = KKT(*jax.tree.map(jnp.linalg.norm, jax.tree.map(jnp.ravel, (primal, dual, grads))))
        return grads, state, Info(jnp.mean(losses), jnp.int32(3), residuals)

    return GradientEstimator(stateless, estimate)
