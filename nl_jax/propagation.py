"""Ways to run a program of layers: the interpretations that learning rules share.

A program, `program(params, inputs, propagate=feedforward)`, is a forward function or an objective.
It never applies a layer itself but asks `propagate` to; each function below takes a program and
returns a way to run it. They are ordinary functions of arrays: jit, grad and vmap apply.

A program must call `propagate` in its own body, not inside a transformation of its own (`jax.vmap`,
`lax.scan`), where its layers cannot be reached: that is a ValueError. Layers see the whole batch.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from nl_jax.base import ActivationFn, Array, Connection, Params, Program


def feedforward(
    name: str, connection: Connection, activation: ActivationFn, params: Params, /, *inputs: Array
) -> Array:
    """x^l = f(W^l x^{l-1} + b^l): the default `propagate` (seed 000, backprop; seed 003 eq. 6).

    Args:
      name: the layer's name, unique within one run of the program.
      connection: `connection(params, *inputs) -> pre-activation`.
      activation: `activation(pre-activation) -> axons`.
      params: this layer's parameters.
      *inputs: axons of lower layers, batch axis first.

    Returns:
      The layer's axons.

    >>> import jax.numpy as jnp
    >>> affine = lambda params, x: x @ params["weight"]
    >>> feedforward("output", affine, jnp.tanh, {"weight": jnp.zeros([3, 2])}, jnp.ones([1, 3]))
    Array([[0., 0.]], dtype=float32)
    """
    del name
    return activation(connection(params, *inputs))


def record(program: Program) -> Callable[[Params, Any], tuple[Any, dict[str, Array]]]:
    """Runs the program and also returns every layer's axons, in the order of propagation.

    Returns:
      `recorded(params, inputs) -> (outputs, {layer: axons})`.

    Raises:
      ValueError: when run, if two layers share a name.
    """

    def recorded(params: Params, inputs: Any) -> tuple[Any, dict[str, Array]]:
        outputs, sites = survey(program)(params, inputs)
        return outputs, {name: site.axons for name, site in sites.items()}

    return recorded


class Site(NamedTuple):
    """One layer as a run of the program met it."""

    connection: Connection
    activation: ActivationFn
    params: Params
    inputs: tuple[Array, ...]
    axons: Array


def survey(
    program: Program, given: Mapping[str, Array] | None = None
) -> Callable[[Params, Any], tuple[Any, dict[str, Site]]]:
    """Runs the program and returns, layer by layer, what was connected to what.

    With `given` axons no layer is computed: each returns its given value, so that a site's `params`
    and `inputs` depend on the program's parameters and on lower axons by nothing but the glue between
    layers. Functions are among what is returned: use it inside jit, not across its boundary.

    Raises:
      ValueError: when run, for a duplicate layer name, a layer without given axons, or given axons
        without a layer.
    """

    def surveyed(params: Params, inputs: Any) -> tuple[Any, dict[str, Site]]:
        sites: dict[str, Site] = {}

        def propagate(
            name: str, connection: Connection, activation: ActivationFn, params: Params, /, *inputs: Array
        ) -> Array:
            require_new(name, sites)
            axons = feedforward(name, connection, activation, params, *inputs) if given is None else _known(name, given)
            sites[name] = Site(connection, activation, params, inputs, axons)
            return axons

        outputs = program(params, inputs, propagate=propagate)
        if given is not None:
            _all_used(given, sites)
        _require_own_body({name: site.axons for name, site in sites.items()})
        return outputs, sites

    return surveyed


def cut(program: Program) -> Callable[[Params, Any, Mapping[str, Array]], tuple[Any, dict[str, Array]]]:
    """Cuts the program at its layers: every layer returns *given* axons, whatever it receives.

    The axons become free variables and x^l − f(W^l x^{l-1} + b^l) a residual: the constrained view of
    learning (seed 000, LeCun 1988).

    Returns:
      `cut_program(params, inputs, axons) -> (outputs, predicted)`, where `axons` and `predicted` map
      layer names to arrays of the same shapes: x^l as given, and f(W^l x^{l-1} + b^l) computed from
      the given lower axons.

    Raises:
      ValueError: when run, for duplicate, missing or unknown layers or axons of another shape.
    """

    def cut_program(params: Params, inputs: Any, axons: Mapping[str, Array]) -> tuple[Any, dict[str, Array]]:
        outputs, run, predicted = hold(program)(params, inputs, axons)
        for name in run:
            _known(name, axons)
        return outputs, predicted

    return cut_program


def hold(
    program: Program,
) -> Callable[[Params, Any, Mapping[str, Array]], tuple[Any, dict[str, Array], dict[str, Array]]]:
    """Holds some layers at *given* axons; all others are computed from what they receive.

    Returns:
      `held(params, inputs, given) -> (outputs, axons, predicted)`, where `given` maps the names of some or all
      layers to their axons, `axons` has all layers' values, held or computed, and `predicted` what each layer
      makes of the values below it, f(W^l x^{l-1} + b^l); the two differ at held layers alone.

    Raises:
      ValueError: when run, for duplicate or unknown layers or axons of another shape.
    """

    def held(params: Params, inputs: Any, given: Mapping[str, Array]) -> tuple[Any, dict[str, Array], dict[str, Array]]:
        axons: dict[str, Array] = {}
        predicted: dict[str, Array] = {}

        def propagate(
            name: str, connection: Connection, activation: ActivationFn, params: Params, /, *inputs: Array
        ) -> Array:
            require_new(name, axons)
            predicted[name] = feedforward(name, connection, activation, params, *inputs)
            axons[name] = given.get(name, predicted[name])
            _same_shape(name, "given axons", axons[name].shape, "the layer's own", predicted[name].shape)
            return axons[name]

        outputs = program(params, inputs, propagate=propagate)
        _all_used(given, axons)
        _require_own_body(predicted)
        return outputs, axons, predicted

    return held


def inject(program: Program) -> Callable[[Params, Any, Mapping[str, Array]], Any]:
    """Adds an offset γ^l to the pre-activation of any layers: x̃^l = f(W^l x̃^{l-1} + b^l + γ^l).

    The perturbation of seed 000 (node perturbation).

    Returns:
      `injected(params, inputs, offsets) -> outputs`, where `offsets` maps the names of some or all
      layers to arrays of their pre-activations' shapes.

    Raises:
      ValueError: when run, for a duplicate layer name, offsets for an unknown layer or of another shape.
    """

    def injected(params: Params, inputs: Any, offsets: Mapping[str, Array]) -> Any:
        met: set[str] = set()

        def propagate(
            name: str, connection: Connection, activation: ActivationFn, params: Params, /, *inputs: Array
        ) -> Array:
            require_new(name, met)
            met.add(name)
            preactivation = connection(params, *inputs)
            if name in offsets:
                _same_shape(name, "offset", offsets[name].shape, "the pre-activation", preactivation.shape)
                preactivation = preactivation + offsets[name]
            return activation(preactivation)

        outputs = program(params, inputs, propagate=propagate)
        _all_used(offsets, met)
        return outputs

    return injected


class Local(NamedTuple):
    """A clean run of a program with the local dependence of its layers on their parameters.

    Attributes:
      outputs: the program's outputs.
      preactivations: ν^l by layer name, of those layers whose ν^l depends on the parameters.
      pull: `pull(output_credit, node_credit) -> parameter gradient` (see `local_gradient`).
    """

    outputs: Any
    preactivations: dict[str, Array]
    pull: Callable[[Any, Mapping[str, Array]], Params]


def local(program: Program) -> Callable[[Params, Any], Local]:
    """Runs the program once and keeps what turns any node credit into a parameter gradient.

    Connections are differentiated by their own parameters alone: activations and losses without a derivative
    are fine, and no information crosses from one layer to another. Parameters that a program uses outside its
    layers (a scale after the last one) are the exception: they get the derivative of what they are used in.

    A result is an estimate, not a function to differentiate again: derivatives stop at every layer.
    """

    def localized(params: Params, inputs: Any) -> Local:
        def layers(params: Params) -> tuple[Any, dict[str, Array]]:
            met: set[str] = set()
            preactivations: dict[str, Array] = {}

            def propagate(
                name: str, connection: Connection, activation: ActivationFn, params: Params, /, *inputs: Array
            ) -> Array:
                require_new(name, met)
                met.add(name)
                preactivation = connection(params, *inputs)
                preactivations[name] = _mark_if_differentiated(name, preactivation, learned)
                return activation(jax.lax.stop_gradient(preactivation))

            outputs = program(params, inputs, propagate=propagate)
            _require_own_body(preactivations)
            return outputs, preactivations

        learned: set[str] = set()
        (outputs, preactivations), transpose = jax.vjp(layers, params)

        def pull(output_credit: Any, node_credit: Mapping[str, Array]) -> Params:
            for name in node_credit:
                _known(name, preactivations)
            # A layer without credit teaches nothing; its zeros cost nothing once compiled.
            everywhere = {name: jnp.zeros_like(value) for name, value in preactivations.items()} | {**node_credit}
            return transpose((output_credit, everywhere))[0]

        return Local(outputs, {name: preactivations[name] for name in preactivations if name in learned}, pull)

    return localized


def local_gradient(program: Program) -> Callable[[Params, Any, Any, Mapping[str, Array]], Params]:
    """Turns node credit into a parameter gradient, layer by layer, without backpropagation.

    Given δ^l = ∂E/∂ν^l for each layer, the parameter gradient is the derivative of
    E(cut outputs) + Σ_l ⟨δ^l, ν^l⟩ with every layer's inputs held fixed; for a dense layer that is
    ∂E/∂W^l = δ^l x^{l-1} (seed 000, node perturbation; seed 003 eq. 9). Tied weights, convolutions and
    parameters used after the last layer come out right. With exact credit this is `jax.grad`.

    Returns:
      `gradient(params, inputs, output_credit, node_credit) -> grads`, where `output_credit` has the
      shape of the program's outputs (how much each output counts, e.g. 1/batch for per-example losses)
      and `node_credit` maps layer names to arrays of their pre-activations' shapes.

    Raises:
      ValueError: when run, for duplicate or unknown layer names.
    """

    def gradient(params: Params, inputs: Any, output_credit: Any, node_credit: Mapping[str, Array]) -> Params:
        return local(program)(params, inputs).pull(output_credit, node_credit)

    return gradient


def _mark_if_differentiated(name: str, value: Array, marked: set[str]) -> Array:
    """The identity; adds `name` to `marked` if the surrounding differentiation reaches `value`."""

    @jax.custom_jvp
    def identity(value: Array) -> Array:
        return value

    def tangent(primals: tuple[Array], tangents: tuple[Any]) -> tuple[Array, Any]:
        if not isinstance(tangents[0], SymbolicZero):
            marked.add(name)
        return primals[0], tangents[0]

    identity.defjvp(tangent, symbolic_zeros=True)
    return identity(value)


def _require_own_body(values: Mapping[str, Array]) -> None:
    """ValueError that names the first layer whose values do not exist outside a transformation of the program's."""
    for name, value in values.items():
        try:
            jnp.negative(value)  # any use will do; compiled, nothing is left of it
        except jax.errors.UnexpectedTracerError as error:
            raise ValueError(
                f"layer {name!r} is propagated inside a jax.vmap, lax.scan or other transformation of the program's "
                "own, where it cannot be reached: call propagate in the forward function's body, on the whole batch"
            ) from error


def require_new(name: str, met: Collection[str]) -> None:
    """ValueError if a layer of this name was met already in this run."""
    if name in met:
        raise ValueError(f"layer {name!r} is propagated twice in one run: give every layer a name of its own")


def _known(name: str, values: Mapping[str, Array]) -> Array:
    if name not in values:
        raise ValueError(f"layer {name!r} is not among those known here: {', '.join(values) or 'none'}")
    return values[name]


def _all_used(values: Mapping[str, Array], met: Collection[str]) -> None:
    unknown = [name for name in values if name not in met]
    if unknown:
        raise ValueError(f"no layer is named {', '.join(map(repr, unknown))}; the layers are {', '.join(met)}")


def _same_shape(name: str, what: str, shape: tuple[int, ...], whose: str, expected: tuple[int, ...]) -> None:
    if shape != expected:
        raise ValueError(f"layer {name!r}: the {what} has shape {shape}, {whose} {expected}; they must be equal")
