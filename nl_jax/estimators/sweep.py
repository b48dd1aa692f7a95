"""The sweep down the hierarchy of layers that backpropagation and feedback alignment share."""

import functools

import jax
import jax.numpy as jnp

from nl_jax.base import Array, Batch, Objective, Params
from nl_jax.checks import per_example
from nl_jax.propagation import Site, survey


def sweep(objective: Objective, params: Params, batch: Batch, feedback: Params) -> tuple[Array, Params]:
    """Runs forward with `params`, then carries credit down through `feedback`, layer by layer.

    With z_j = ∂L/∂x_j, from the highest layer down:

        δ_j = z_j df_j(x_j)                                       seed 003 eq. 8, df from the value, eq. 10
        ∂L/∂M_ji = δ_j x_i,  ∂L/∂b_j = δ_j                        eq. 9, 12
        z_i ← z_i + δ_j B_ji, starting from z_i = ∂L/∂x_i direct  eq. 12 with B in the place of M

    There is no other autodiff than of single connections and of what the program does between its layers.

    Args:
      objective: a per-example objective that takes `propagate`.
      params: of the program.
      batch: as the objective takes it.
      feedback: a tree like `params`; with `params` themselves this is backpropagation.

    Returns:
      (losses, [batch]; a tree like `params`).
    """
    losses, sites = survey(objective)(params, batch)
    axons = {name: site.axons for name, site in sites.items()}
    _, returns = survey(objective, given=axons)(feedback, batch)

    def mean_loss(params: Params, axons: dict[str, Array]) -> Array:
        return jnp.mean(survey(objective, given=axons)(params, batch)[0])

    # z starts at 0 but for what the loss reads directly: the last layer, as a rule.
    grads, z = jax.grad(mean_loss, argnums=(0, 1))(params, axons)
    for name, site in reversed(sites.items()):
        nu, to_params = jax.vjp(lambda own, site=site: site.connection(own, *site.inputs), site.params)
        delta = _through_activation(site, nu, z[name])
        _, to_inputs = jax.vjp(functools.partial(returns[name].connection, returns[name].params), *site.inputs)
        _, routed = jax.vjp(functools.partial(_given_to, name, site, nu, objective, batch), params, axons)
        more = routed((*to_params(delta), to_inputs(delta), delta, z[name]))
        grads, z = jax.tree.map(jnp.add, (grads, z), more)
    return per_example(losses), grads


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
