"""Finds what layers receive of the program's parameters: whole, or as one step's slice of a stack. Nothing is run."""

import functools
import itertools
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax

from nl_jax._core.dependence import Flow, Flows, mark, sources_of_outputs
from nl_jax.base import Array, Batch, Objective, Params
from nl_jax.estimators.feedback.drawing import continuous
from nl_jax.propagation import Site, interpret, plain_loop
from nl_jax.propagation.interpretation import SEPARATOR, loops_around

_STEP_OF = "a step of "


class Received(NamedTuple):
    """One array among the parameters that a layer receives.

    Attributes:
      shape: of the array, in one step.
      sources: numbers of the program's parameters that it depends on, and names of loops whose steps change it.
    """

    shape: tuple[int, ...]
    sources: frozenset[Hashable]


def received(objective: Objective, params: Params, batch: Batch) -> dict[str, tuple[tuple[int, ...], list[Received]]]:
    """Returns, for each layer, the shape of ν with the axes of loops first, and the parameters that it receives.

    A loop's step changes an array that depends on what the step reads (`xs`), or on a number that it carries, such as
    an index. Parameters that are carried do not count: they are the same at every step, or learn on the way.
    """

    def layer(site: Site, given: None) -> tuple[Array, tuple[Array, list[Array]]]:
        nu = site.preactivation()
        return site.activation(nu), (nu, jax.tree.leaves(site.params))

    def loop(name: str, body: Callable, carry: Any, xs: Any, length: int | None) -> tuple[Any, Any]:
        here = functools.partial(mark, _STEP_OF + name)

        def marked(carry: Any, x: Any) -> tuple[Any, Any]:
            carry = jax.tree.map(lambda leaf: leaf if continuous(leaf) else here(leaf), carry)
            return body(carry, jax.tree.map(here, x))

        return plain_loop(name, marked, carry, xs, length)

    def gate(name: str, arriving: Flows) -> Flows:
        return arriving | {Flow(name)} if name.startswith(_STEP_OF) else arriving

    def run(params: Params, batch: Batch) -> dict[str, tuple[Array, list[Array]]]:
        return interpret(objective, layer, loop=loop)(params, batch)[1]

    program, shapes = jax.make_jaxpr(run, return_shape=True)(params, batch)
    count = len(jax.tree.leaves(params))
    flows = [frozenset({Flow(i)} if i < count else ()) for i in range(len(program.in_avals))]
    outputs = jax.tree.unflatten(jax.tree.structure(shapes), sources_of_outputs(program, flows, gate))
    found = {}
    for name, (nu, leaves) in shapes.items():
        loops, sources = loops_around(name), outputs[name][1]
        pairs = zip(leaves, sources, strict=True)
        found[name] = nu.shape, [Received(x.shape[loops:], frozenset(f.source for f in flow)) for x, flow in pairs]
    return found


def steps_of_their_own(objective: Objective, params: Params, batch: Batch) -> dict[str, tuple[int, ...]]:
    """Finds, for each layer, the loops around it, from the outermost on, that change its parameters at each step."""

    def axes(name: str, leaves: list[Received]) -> tuple[int, ...]:
        loops = itertools.accumulate(name.split(SEPARATOR)[:-1], lambda outer, inner: outer + SEPARATOR + inner)
        sources = frozenset[Hashable]().union(*(leaf.sources for leaf in leaves))
        return tuple(axis for axis, loop in enumerate(loops) if _STEP_OF + loop in sources)

    return {name: axes(name, leaves) for name, (_, leaves) in received(objective, params, batch).items()}


def chosen(of_axes: tuple[Any, ...], axes: tuple[int, ...]) -> tuple[Any, ...]:
    """Returns the entries at some axes, such as their sizes in a shape."""
    return tuple(of_axes[axis] for axis in axes)
