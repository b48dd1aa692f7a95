"""What a layer does in the second run of a loop, which carries eligibility traces (`traces.py`)."""

import enum
from typing import Any

import jax
import jax.numpy as jnp

from nl_jax._core.dependence import reached, severed
from nl_jax.base import Array, Params
from nl_jax.estimators.feedback.feedback_path import taught, transposed
from nl_jax.estimators.online.own_units import MIXES
from nl_jax.propagation import Site
from nl_jax.propagation.loops import differentiable
from nl_jax.propagation.trial import Recorded, recorded


class Mode(enum.Enum):
    """How a step of the second run treats its layers.

    Attributes:
      PLAIN: unchanged.
      INPUTS: each layer's inputs are returned.
      ALONE: no input passes credit, so that only a unit's own current and past move its state.
      TAUGHT: inputs from the previous step pass no credit, those from layers of this step do, by `feedback_path`.
    """

    PLAIN = enum.auto()
    INPUTS = enum.auto()
    ALONE = enum.auto()
    TAUGHT = enum.auto()


class Layers:
    """The behaviour of layers in the second run. The same step is traced several times, in another `mode` each.

    `traces.py` sets the mode before it traces a step: the program's layers are reached by one `layer` function only.
    With `own`, an input from the previous step with as many values as the layer has units is taken to be these units'
    own, in their order, and its effect on its own unit passes in both `ALONE` and `TAUGHT`.
    """

    def __init__(self, name: str, own: bool) -> None:
        self.name, self.own, self.mode = name, own, Mode.PLAIN
        self.nus: dict[str, jax.ShapeDtypeStruct] = {}
        self.connections: dict[str, Recorded | None] = {}
        self.changing: dict[str, bool] = {}  # whether a layer's parameters are others at each step
        self.recurrent: dict[str, list[bool]] = {}

    def layer(self, site: Site, given: tuple[Array, Array | None] | None) -> tuple[Array, Any]:
        """Runs a layer; `given` is an offset of ν and the pair for the feedback path (`feedback_path.parted`)."""
        if given is None:
            nu = site.preactivation()
            if site.steps:
                self.nus[site.name] = jax.ShapeDtypeStruct(nu.shape, nu.dtype)
            return site.activation(nu), None
        offset, pair = given
        flags = iter(self.recurrent.get(site.name, []))
        before = [differentiable(x) and next(flags, False) for x in site.inputs]
        if self.own:
            offset = sum((_own_effect(site, i) for i, one in enumerate(before) if one), start=offset)
        own = site._replace(connection=lambda params, *inputs: site.connection(params, *inputs) + offset)
        if self.mode is Mode.INPUTS:
            parameters = [x for x in jax.tree.leaves(site.params) if differentiable(x)]
            return own.axons(), ([x for x in site.inputs if differentiable(x)], parameters)
        cut = before if self.mode is Mode.TAUGHT else map(differentiable, site.inputs)
        own = own._replace(inputs=tuple(severed(x) if one else x for x, one in zip(site.inputs, cut, strict=True)))
        if self.mode is Mode.ALONE:
            return own.axons(), None
        if site.mixes_examples:
            raise ValueError(self.refusal(site.name, MIXES))
        self.connections[site.name] = recorded(site)
        return taught(own, transposed, (), pair), (site.params, _rows(site))

    def refusal(self, layer: str, why: str) -> str:
        """Returns the message about a layer whose parameters can have no traces."""
        return (
            f"{self.name}: layer {layer!r} {why}, and a trace is kept for each example, parameter and the unit that "
            "it acts on: use rtrl or truncated_backprop, or write the connection as x @ weight + bias"
        )


def _own_effect(site: Site, place: int) -> Array:
    """Computes ∂ν_j/∂x_j (x_j − x_j): zero, with the derivative of an input's effect on the unit that it comes from."""
    x = site.inputs[place]
    params, inputs = jax.lax.stop_gradient((site.params, site.inputs))

    def of_example(inputs: tuple[Array, ...]) -> Array:
        def nu(unit: Array) -> Array:
            every = [jnp.expand_dims(unit if i == place else other, 0) for i, other in enumerate(inputs)]
            return site.connection(params, *every)[0]

        return jnp.diagonal(jax.jacfwd(nu)(inputs[place]))

    if jax.eval_shape(lambda: site.preactivation()).shape != x.shape:
        return jnp.zeros((), x.dtype)
    moving = lambda inputs, moves: jax.jvp(lambda *inputs: site.connection(params, *inputs), inputs, moves)[1]
    linear = 0 not in reached(moving, inputs, tuple(jnp.ones_like(x) for x in inputs))
    # If the connection is linear, its weight from a unit to itself is the same for all examples.
    some = tuple(x[:1] for x in inputs) if linear else inputs
    return jax.lax.stop_gradient(jax.vmap(of_example)(some)) * (x - severed(x))


def _rows(site: Site) -> Params:
    """Computes ∂ν_j/∂θ_…j for each example; the last axis of every parameter is that of the units."""
    params, inputs = jax.lax.stop_gradient((site.params, site.inputs))

    def of_example(inputs: tuple[Array, ...]) -> Params:
        one = tuple(jnp.expand_dims(x, 0) for x in inputs)
        nu, pull = jax.vjp(lambda params: site.connection(params, *one), params)
        return pull(jnp.ones_like(nu))[0]

    return jax.lax.stop_gradient(jax.vmap(of_example)(inputs))
