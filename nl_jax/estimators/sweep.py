"""The sweep down the hierarchy of layers that backpropagation, feedback alignment and target propagation share."""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nl_jax.base import Array, Batch, Objective, Params
from nl_jax.checks import per_example
from nl_jax.propagation import Site, survey

Layers = Callable[[Params], dict[str, Site]]
"""`layers(params) -> sites`: the layers as any parameters make them, at the axons of one run."""

WayBack = Callable[[str, Site, Array, Array], tuple[Array, ...]]
"""`back(name, site, z, δ) -> credit of the layer's inputs`, of the layer's own credit by axons and by ν."""


class Sweep(NamedTuple):
    """A run up and down.

    Attributes:
      losses: [batch].
      grads: a tree like the parameters.
      credit: z by layer, what stands for ∂L/∂x, L the mean loss.
      layers: the layers at the run's axons.
    """

    losses: Array
    grads: Params
    credit: dict[str, Array]
    layers: Layers


def sweep(objective: Objective, params: Params, batch: Batch, way_back: Callable[[Layers], WayBack]) -> Sweep:
    """Runs forward with `params`, then carries credit down the way back, layer by layer.

    With z_j = ∂L/∂x_j, from the highest layer down:

        δ_j = z_j df_j(x_j)                                    seed 003 eq. 8, df from the value, eq. 10
        ∂L/∂M_ji = δ_j x_i,  ∂L/∂b_j = δ_j                     eq. 9, 12
        z_i ← z_i + back_j, starting from z_i = ∂L/∂x_i direct  eq. 12, where back_j = δ_j M_ji

    There is no other autodiff than of single connections and of what the program does between its layers.

    Args:
      objective: a per-example objective that takes `propagate`.
      params: of the program.
      batch: as the objective takes it.
      way_back: makes the way back, of the layers; `transposed(params)` for backpropagation.
    """
    losses, sites = survey(objective)(params, batch)
    axons = {name: site.axons for name, site in sites.items()}

    def layers(params: Params) -> dict[str, Site]:
        return survey(objective, given=axons)(params, batch)[1]

    def mean_loss(params: Params, axons: dict[str, Array]) -> Array:
        return jnp.mean(survey(objective, given=axons)(params, batch)[0])

    back = way_back(layers)
    # z starts at 0 but for what the loss reads directly: the last layer, as a rule.
    grads, z = jax.grad(mean_loss, argnums=(0, 1))(params, axons)
    for name, site in reversed(sites.items()):
        nu, to_params = jax.vjp(lambda own, site=site: site.connection(own, *site.inputs), site.params)
        delta = through_activation(site, nu, z[name])
        _, routed = jax.vjp(functools.partial(_given_to, name, site, nu, objective, batch), params, axons)
        more = routed((*to_params(delta), back(name, site, z[name], delta), delta, z[name]))
        grads, z = jax.tree.map(jnp.add, (grads, z), more)
    return Sweep(per_example(losses), grads, z, layers)


def transposed(weights: Params) -> Callable[[Layers], WayBack]:
    """The way back through `weights`, δ_j B_ji: the derivative of every connection with B for its parameters."""

    def way_back(layers: Layers) -> WayBack:
        sites = layers(weights)

        def back(name: str, site: Site, z: Array, delta: Array) -> tuple[Array, ...]:
            del z
            return transpose(sites[name], site.inputs)(delta)

        return back

    return way_back


def transpose(site: Site, inputs: tuple[Array, ...]) -> Callable[[Array], tuple[Array, ...]]:
    """The layer's connection from ν to its inputs, for ordinary ones Bᵀ; `inputs` is where it is differentiated."""
    return jax.vjp(functools.partial(site.connection, site.params), *inputs)[1]


def through_activation(site: Site, nu: Array, z: Array) -> Array:
    """δ = z f'(ν), by the value where the activation knows how (seed 003 eq. 10)."""
    derivative = getattr(site.activation, "derivative", None)
    if derivative is not None:
        return (z * derivative(site.axons)).astype(nu.dtype)
    return jax.vjp(site.activation, nu)[1](z)[0]


def _given_to(
    name: str, site: Site, nu: Array, objective: Objective, batch: Batch, params: Params, axons: Mapping[str, Array]
) -> tuple[Params, tuple[Array, ...], Array, Array]:
    """What the program gives a layer, by its parameters and the lower axons.

    That is the layer's own parameters and inputs, and what its connection and activation make of fixed ones:
    functions may hold parameters too, such as a learned gain.
    """
    now = survey(objective, given=axons)(params, batch)[1][name]
    return now.params, now.inputs, now.connection(site.params, *site.inputs), now.activation(nu)
