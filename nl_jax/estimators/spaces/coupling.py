"""Whether what is displaced in one example reaches the loss of another."""

from collections.abc import Callable
from typing import Any

import jax

from nl_jax.base import ActivationFn, Array, Batch, Connection, Objective, Params, Propagate, State
from nl_jax.propagation import feedforward
from nl_jax.tracing import if_mapped


def refuse_coupling(
    objective: Objective,
    params: Params,
    batch: Batch,
    displaced: Callable[[Objective, State], Any],
    origin: State,
    remedy: str,
) -> None:
    """ValueError if examples' own displacements meet in a layer that mixes examples (`nl_jax.base.Connection`).

    Above such a layer, or beside it, they do no harm: what counts is whether its pre-activation depends on them.

    Args:
      objective: a per-example objective that takes `propagate`.
      params, batch: where it is seen from.
      displaced: `displaced(objective, values)`, the objective run at displaced values.
      origin: a tree like those values.
      remedy: what to do instead.
    """
    mixing: list[str] = []
    jax.eval_shape(_watched(objective, lambda name, nu: mixing.append(name)), params, batch)
    if not mixing:
        return
    met: list[str] = []
    watched = _watched(objective, lambda name, nu: if_mapped(nu, lambda: met.append(name)))
    # Mapped over what is displaced and nothing else: what is mapped then depends on it.
    mapped = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), origin)
    jax.eval_shape(jax.vmap(lambda values: displaced(watched, values)), mapped)
    if met:
        raise ValueError(
            f"layer {met[0]!r} mixes examples: through it, as through a batch's mean, an example's noise acts on every "
            f"example's loss, so that its own loss alone judges it wrongly and the estimate would be biased; {remedy}"
        )


def _watched(objective: Objective, see: Callable[[str, Array], None]) -> Objective:
    """The objective, with `see(name, pre-activation)` called for every layer that mixes examples."""

    def watched(params: Params, batch: Batch, propagate: Propagate = feedforward) -> Array:
        def watching(
            name: str, connection: Connection, activation: ActivationFn, params: Params, /, *inputs: Array
        ) -> Array:
            def seen(params: Params, *inputs: Array) -> Array:
                preactivation = connection(params, *inputs)
                see(name, preactivation)
                return preactivation

            mixes = getattr(connection, "mixes_examples", False)
            return propagate(name, seen if mixes else connection, activation, params, *inputs)

        return objective(params, batch, propagate=watching)

    return watched
