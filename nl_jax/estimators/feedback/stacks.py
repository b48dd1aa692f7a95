"""Finds the loops over depth, whose steps have their own, stacked parameters."""

import itertools
from collections.abc import Callable
from typing import Any

import jax

from nl_jax._core.dependence import NOTHING, Flow, Flows, mark, sources_of_outputs
from nl_jax.base import Array, Batch, Objective, Params
from nl_jax.estimators.feedback.drawing import continuous
from nl_jax.propagation import Site, interpret, plain_loop
from nl_jax.propagation.interpretation import SEPARATOR

_STEP_OF = "a step of "


def steps_of_their_own(objective: Objective, params: Params, batch: Batch) -> dict[str, tuple[int, ...]]:
    """Finds, for each layer, the loops around it, counted from the outermost, that change its parameters at each step.

    In these loops a layer's parameters depend on what the step reads (`xs`), or on a number that it carries, such as an
    index. Parameters that are carried do not count: they are the same at every step, or learn on the way. Nothing is
    run.
    """

    def layer(site: Site, given: None) -> tuple[Array, Params]:
        return site.axons(), site.params

    def loop(name: str, body: Callable, carry: Any, xs: Any, length: int | None) -> tuple[Any, Any]:
        def marked(carry: Any, x: Any) -> tuple[Any, Any]:
            here = lambda leaf: mark(_STEP_OF + name, leaf)
            return body(
                jax.tree.map(lambda leaf: leaf if continuous(leaf) else here(leaf), carry), jax.tree.map(here, x)
            )

        return plain_loop(name, marked, carry, xs, length)

    def gate(name: str, arriving: Flows) -> Flows:
        return arriving | {Flow(name)} if name.startswith(_STEP_OF) else arriving

    def received(params: Params, batch: Batch) -> dict[str, Params]:
        return interpret(objective, layer, loop=loop)(params, batch)[1]

    program, shapes = jax.make_jaxpr(received, return_shape=True)(params, batch)
    leaves = iter(sources_of_outputs(program, [NOTHING] * len(program.in_avals), gate))
    found: dict[str, set[Any]] = {}
    for path, _ in jax.tree_util.tree_leaves_with_path(shapes):  # in the order of the outputs
        found.setdefault(path[0].key, set()).update(flow.source for flow in next(leaves))
    return {name: _axes(name, found.get(name, set())) for name in shapes}


def _axes(name: str, sources: set[Any]) -> tuple[int, ...]:
    """Returns the places of the loops around the layer that are among the sources."""
    loops = itertools.accumulate(name.split(SEPARATOR)[:-1], lambda outer, inner: outer + SEPARATOR + inner)
    return tuple(axis for axis, loop in enumerate(loops) if _STEP_OF + loop in sources)


def chosen(of_axes: tuple[Any, ...], axes: tuple[int, ...]) -> tuple[Any, ...]:
    """Returns the entries at some axes, such as their sizes in a shape."""
    return tuple(of_axes[axis] for axis in axes)
