"""Residuals that bound how far an estimate at an equilibrium is from the gradient there."""

import jax
import jax.numpy as jnp

from nl_jax.base import Array, Axons, Batch, Params
from nl_jax.estimators.equilibrium.energy import EnergyNetwork
from nl_jax.estimators.lagrangian.lagrangian import KKT


def certificate(
    network: EnergyNetwork, params: Params, axons: Axons, multipliers: Axons, batch: Batch, grads: Params
) -> KKT:
    """Computes the gradient norms of L = C(x) + Σ_l λ_lᵀ (x_l − f_l(s_l⁻¹ ∂Φ/∂x_l)), averaged over the batch.

    The constraint is the equilibrium. With Q = ∂²Φ/∂x², D = f' and S = diag(s), an equilibrium x_β moves by
    dx/dβ = S⁻¹D (Q dx/dβ − ∂C/∂x), and ∂L/∂x = 0 is λ = Q S⁻¹D λ − ∂C/∂x. So dx/dβ = S⁻¹D λ: the multipliers are the
    derivative of the forces,

        λ = d/dβ [∂(Φ − β C)/∂x] at x_β,

    and `grads`, the estimate, should be ∂L/∂θ = ∂C/∂θ − (dx/dβ)ᵀ ∂²Φ/∂x∂θ: `KKT.gradient` has its norms.
    """

    def lagrangian(axons: Axons, multipliers: Axons) -> Array:
        answers = network.answers(params, axons, batch, network.forces(params, axons, batch))
        losses = network.outputs(params, axons, batch)
        violation = sum(jnp.sum(multipliers[name] * (axons[name] - answers[name])) for name in axons)
        return (jnp.sum(losses) + violation) / losses.size

    dual, primal = jax.grad(lagrangian, argnums=(0, 1))(dict(axons), dict(multipliers))
    return KKT(*jax.tree.map(lambda leaf: jnp.linalg.norm(jnp.ravel(leaf)), (primal, dual, grads)))
