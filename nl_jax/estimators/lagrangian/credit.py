"""Converts credit of axons into credit of pre-activations, layer by layer."""

from collections.abc import Mapping

import jax

from nl_jax.base import Array, Batch, LayerCredit, Objective, Params
from nl_jax.propagation import Site, interpret, parallel_loop


def of_axons(
    objective: Objective,
    params: Params,
    batch: Batch,
    axons: Mapping[str, Array],
    z: Mapping[str, Array],
    preactivations: Mapping[str, Array] | None = None,
) -> dict[str, LayerCredit]:
    """Computes δ = z f'(ν) from given axons (activity) and their credit (seed 003 eq. 8).

    Args:
      objective: a per-example objective that takes `propagate`.
      params: the program's parameters.
      batch: as the objective takes it.
      axons: x by layer.
      z: the axons' credit, for the same layers and in the same shapes.
      preactivations: ν by layer; by default each layer computes it from the given axons below it.
    """

    def layer(site: Site, given: tuple[Array, Array, Array | None]) -> tuple[Array, LayerCredit]:
        x, z, nu = given
        _, to_preactivation = jax.vjp(site.activation, site.preactivation() if nu is None else nu)
        return x, LayerCredit(x, z, to_preactivation(z)[0])

    sent = dict.fromkeys(axons) if preactivations is None else preactivations
    given = {name: (x, z[name], sent[name]) for name, x in axons.items()}
    return interpret(objective, layer, loop=parallel_loop)(params, batch, given)[1]
