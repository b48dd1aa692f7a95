"""Detects whether a displacement in one example reaches the loss of another."""

from collections.abc import Callable
from typing import Any

from nl_jax._core.dependence import reached
from nl_jax.base import Array, Objective, State
from nl_jax.propagation import Site, interpret

Run = Callable[..., tuple[Any, dict[str, Array]]]


def mixing_layers(objective: Objective) -> Run:
    """Returns `run(params, batch, offsets) -> (losses, {layer: ν})` for the layers that mix examples.

    `nl_jax.base.Connection` defines which these are. Offsets of pre-activations are as in `nl_jax.propagation.inject`;
    ν is without the layer's own offset.
    """

    def layer(site: Site, offset: Array | None) -> tuple[Array, Array | None]:
        nu = site.preactivation()
        axons = site.activation(nu if offset is None else nu + offset)
        return axons, nu if site.mixes_examples else None

    return interpret(objective, layer)


def refuse_coupling(preactivations: Callable[[State], dict[str, Array]], origin: State, remedy: str) -> None:
    """Raises ValueError if displacements of single examples meet in a layer that mixes examples.

    Displacements above such a layer, or beside it, do no harm: only those count on which its pre-activation depends.

    Args:
      preactivations: `preactivations(displaced values) -> {layer: ν}`, for the layers that mix examples.
      origin: a tree like the displaced values.
      remedy: what to do instead.
    """
    for name, sources in reached(preactivations, origin).items():
        if sources:
            raise ValueError(
                f"layer {name!r} mixes examples: through it, as through a batch's mean, an example's noise acts on "
                "every example's loss, so that its own loss alone judges it wrongly and the estimate would be biased; "
                f"{remedy}"
            )
