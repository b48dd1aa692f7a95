"""Finds what layers receive of the program's parameters: whole, or as one step's slice of a stack. Nothing is run."""

import itertools
import math
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nl_jax._core.dependence import Flow, Flows, mark, sources_of_outputs
from nl_jax._core.require import is_key
from nl_jax.base import Array, Batch, Objective, Params
from nl_jax.propagation import Site, interpret, loops_around, plain_loop
from nl_jax.propagation.interpretation import SEPARATOR
from nl_jax.propagation.loops import differentiable

_SLICE, _INDEX = "slice of ", "index of "


class Received(NamedTuple):
    """One array among the parameters that a layer receives.

    Attributes:
      steps: numbers of steps of the loops around the layer, outermost first.
      shape: of the array, in one step.
      sources: numbers of the program's parameters that it depends on, and names of loops: those that slice a parameter
        which it depends on, and those with an index that it depends on.
    """

    steps: tuple[int, ...]
    shape: tuple[int, ...]
    sources: frozenset[Hashable]

    def own_steps(self, name: str, parameters: list[Array]) -> tuple[int, ...]:
        """Returns the places of the loops whose every step has an array of its own, from the outermost.

        The parameters must hold enough values for that: a weight that is only masked or gated at each step is one.
        """
        loops = list(itertools.accumulate(name.split(SEPARATOR)[:-1], lambda outer, own: outer + SEPARATOR + own))
        held = sum(parameters[i].size for i in self.sources if isinstance(i, int))
        values, found = math.prod(self.shape), list[int]()
        for axis in reversed([axis for axis, loop in enumerate(loops) if loop in self.sources]):
            if values * self.steps[axis] <= held:
                values, found = values * self.steps[axis], [axis, *found]
        return tuple(found)


def received(
    objective: Objective, params: Params, batch: Batch, note: Callable[[Site, Array], Any] = lambda site, nu: None
) -> dict[str, list[Received]]:
    """Returns the parameters that each layer receives; `note(site, ν)` is called for each layer as it is traced."""

    def layer(site: Site, given: None) -> tuple[Array, list[Array]]:
        nu = site.preactivation()
        note(site, nu)
        return site.activation(nu), jax.tree.leaves(site.params)

    def loop(name: str, body: Callable, carry: Any, xs: Any, length: int | None) -> tuple[Any, Any]:
        def index(leaf: Any) -> Any:
            return leaf if differentiable(leaf) or is_key(leaf) else mark(_INDEX + name, leaf)

        def marked(carry: Any, x: Any) -> tuple[Any, Any]:
            slices = jax.tree.map(lambda leaf: mark(_SLICE + name, leaf) if differentiable(leaf) else index(leaf), x)
            return body(jax.tree.map(index, carry), slices)

        return plain_loop(name, marked, carry, xs, length)

    def gate(name: str, arriving: Flows) -> Flows:
        """Adds a loop's name to what passes its indices, and its slices of parameters."""
        of_parameters = any(isinstance(flow.source, int) for flow in arriving)
        if name.startswith(_INDEX) or (name.startswith(_SLICE) and of_parameters):
            return arriving | {Flow(name.removeprefix(_INDEX).removeprefix(_SLICE))}
        return arriving

    def run(params: Params, batch: Batch) -> dict[str, list[Array]]:
        return interpret(objective, layer, loop=loop)(params, batch)[1]

    program, shapes = jax.make_jaxpr(run, return_shape=True)(params, batch)
    count = len(jax.tree.leaves(params))
    flows = [frozenset({Flow(i)} if i < count else ()) for i in range(len(program.in_avals))]
    outputs = jax.tree.unflatten(jax.tree.structure(shapes), sources_of_outputs(program, flows, gate))

    def one(loops: int, x: jax.ShapeDtypeStruct, flow: Flows) -> Received:
        return Received(x.shape[:loops], x.shape[loops:], frozenset(each.source for each in flow))

    return {
        name: [one(loops_around(name), x, flow) for x, flow in zip(leaves, outputs[name], strict=True)]
        for name, leaves in shapes.items()
    }


def steps_of_their_own(objective: Objective, params: Params, batch: Batch) -> dict[str, tuple[int, ...]]:
    """Finds, for each layer, the loops around it in which every step has its own parameters, from the outermost on."""
    parameters = [jnp.asarray(leaf) if jnp.ndim(leaf) == 0 else leaf for leaf in jax.tree.leaves(params)]
    found = received(objective, params, batch)
    return {
        name: tuple(sorted({axis for array in arrays for axis in array.own_steps(name, parameters)}))
        for name, arrays in found.items()
    }
