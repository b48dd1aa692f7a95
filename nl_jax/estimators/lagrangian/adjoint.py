"""Backpropagation as constrained optimisation (seed 000; LeCun 1988)."""

from typing import Any

import jax
import jax.numpy as jnp

from nl_jax._core.require import layered, per_example
from nl_jax.base import Array, Axons, Batch, GradientEstimator, Objective, Params
from nl_jax.estimators.lagrangian.solution import Point, solution
from nl_jax.propagation import displace, zero_axons


def lagrangian_backprop(objective: Objective) -> GradientEstimator:
    """Computes the exact gradient as the stationary point of the Lagrangian (seed 000; LeCun 1988).

    The point is found by substitution. The forward pass gives x, so that ∂L/∂λ = 0. Each λ_l then follows from those
    above it, from the last layer down, so that ∂L/∂x_l = 0 (the adjoint equations). There ∂L/∂W is the gradient, and
    λ_l = −∂C/∂x_l.

    Args:
      objective: a per-example objective that takes `propagate`.

    Returns:
      An estimator without state or randomness, equal to `backprop` up to rounding. Its `info.residuals`
      is a `KKT` of the three gradients' norms.

    Raises:
      ValueError: if the objective takes no `propagate`; when run, if layers share a name.

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

    def solve(params: Params, batch: Batch) -> Point:
        """Finds x by one forward run, and λ with ∂L/∂x = 0 there by one reverse sweep.

        ∂L/∂x_l = λ_l + ∂C/∂x_l − Σ_k J_klᵀ λ_k, with k the layers above: λ_l is the gradient of −C with respect to a
        displacement of x_l alone.
        """

        def total(displacements: Axons) -> tuple[Array, Any]:
            losses, axons = displace(objective)(params, batch, displacements)
            names[:] = axons
            return -jnp.sum(per_example(losses)), (losses, axons)

        names: list[str] = []
        multipliers, (losses, axons) = jax.grad(total, has_aux=True)(zero_axons(objective, params, batch))
        return Point(losses, {name: axons[name] for name in names}, {name: multipliers[name] for name in names}, 1)

    return solution(objective, solve)
