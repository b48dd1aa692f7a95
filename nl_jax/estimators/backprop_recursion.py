"""Backpropagation as the seeds derive it: an explicit sweep down the hierarchy of layers."""

import functools

import jax
import jax.numpy as jnp

from nl_jax.base import Array, Batch, GradientEstimator, Info, Key, Objective, Params, State, stateless
from nl_jax.checks import layered, per_example
from nl_jax.propagation import Site, survey


def backprop_recursion(objective: Objective) -> GradientEstimator:
    """The exact gradient by the seed's own recursion, layer by layer (seed 003 eq. 5–12; seed 001 §1–3).

    With z_j = ∂L/∂x_j, from the highest layer down:

        δ_j = z_j df_j(x_j)                                       eq. 8, df from the value, eq. 10
        ∂L/∂M_ji = δ_j x_i,  ∂L/∂b_j = δ_j                        eq. 9, 12
        z_i ← z_i + δ_j M_ji, starting from z_i = ∂L/∂x_i direct  eq. 12

    For one layer this is the delta rule, for two seed 001's δ and γ. An activation that does not know
    its derivative from its value is differentiated where it stands; there is no other autodiff than of
    single connections and of what the program does between its layers.

    Args:
      objective: a per-example objective that takes `propagate`.

    Returns:
      An estimator without state or randomness; equal to `backprop` up to rounding.

    Raises:
      ValueError: if the objective takes no `propagate`; when run, for layers that share a name.
    """
    layered("backprop_recursion", objective)

    def estimate(key: Key, state: State, params: Params, batch: Batch) -> tuple[Params, State, Info]:
        del key
        losses, sites = survey(objective)(params, batch)
        axons = {name: site.axons for name, site in sites.items()}

        def mean_loss(params: Params, axons: dict[str, Array]) -> Array:
            return jnp.mean(survey(objective, given=axons)(params, batch)[0])

        # z starts at 0 but for what the loss reads directly: the last layer, as a rule.
        grads, z = jax.grad(mean_loss, argnums=(0, 1))(params, axons)
        for name, site in reversed(sites.items()):
            nu = site.connection(site.params, *site.inputs)
            delta = _through_activation(site, nu, z[name])
            _, transposed = jax.vjp(site.connection, site.params, *site.inputs)
            by_params, *by_inputs = transposed(delta)
            _, routed = jax.vjp(functools.partial(_given_to, name, site, nu, objective, batch), params, axons)
            more = routed((by_params, tuple(by_inputs), delta, z[name]))
            grads, z = jax.tree.map(jnp.add, (grads, z), more)
        return grads, state, Info(jnp.mean(per_example(losses)), jnp.int32(3))

    return GradientEstimator(stateless, estimate)


def _through_activation(site: Site, nu: Array, z: Array) -> Array:
    """δ = z f'(ν), by the value where the activation knows how (seed 003 eq. 10)."""
    derivative = getattr(site.activation, "derivative", None)
    if derivative is not None:
        return (z * derivative(site.axons)).astype(nu.dtype)
    _, transposed = jax.vjp(site.activation, nu)
    return transposed(z)[0]


def _given_to(
    name: str, site: Site, nu: Array, objective: Objective, batch: Batch, params: Params, axons: dict[str, Array]
) -> tuple[Params, tuple[Array, ...], Array, Array]:
    """What the program gives a layer, by its parameters and the lower axons.

    That is the layer's own parameters and inputs, and what its connection and activation make of fixed ones:
    functions may hold parameters too, such as a learned gain.
    """
    now = survey(objective, given=axons)(params, batch)[1][name]
    return now.params, now.inputs, now.connection(site.params, *site.inputs), now.activation(nu)
