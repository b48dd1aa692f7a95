"""Runs that record, clamp or displace the layers' axons (activity), or displace their pre-activations."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nl_jax.base import Array, Params, Program
from nl_jax.propagation.interpretation import Given, Site, interpret
from nl_jax.propagation.parallel import parallel_loop


def record(program: Program) -> Callable[[Params, Any], tuple[Any, dict[str, Array]]]:
    """Runs the program and also returns every layer's axons, in the order of propagation.

    Returns:
      `recorded(params, inputs) -> (outputs, {layer: axons})`; in loops, axons are stacked with a leading axis of steps.

    Raises:
      ValueError: when run, if two layers share a name.
    """

    def layer(site: Site, given: None) -> tuple[Array, Array]:
        axons = site.axons()
        return axons, axons

    return interpret(program, layer)


def zero_axons(program: Program, params: Params, inputs: Any) -> dict[str, Array]:
    """Returns zeros in the shapes of all layers' axons; nothing is computed."""
    shapes = jax.eval_shape(lambda params, inputs: record(program)(params, inputs)[1], params, inputs)
    return {name: jnp.zeros(s.shape, s.dtype) for name, s in shapes.items()}


class Clamped(NamedTuple):
    """A layer in a run that clamps axons.

    Attributes:
      axons: x^l, given or computed.
      predicted: f(W^l x^{l−1} + b^l), computed from the values below it.
    """

    axons: Array
    predicted: Array


class PartlyClamped(NamedTuple):
    """Axons for a layer in a loop that is clamped at some steps and computed at the others.

    Attributes:
      axons: x^l, with a leading axis of steps.
      clamped: whether it is clamped, [steps].
    """

    axons: Array
    clamped: Array


def clamp(
    program: Program,
) -> Callable[[Params, Any, Mapping[str, Array | PartlyClamped]], tuple[Any, dict[str, Clamped]]]:
    """Holds some or all layers at *given* axons; all others are computed from their inputs.

    Clamped axons become free variables, and x^l − f(W^l x^{l−1} + b^l) a residual: the constrained view of learning
    (seed 000, LeCun 1988).

    Returns:
      `clamped(params, inputs, given) -> (outputs, {layer: Clamped})`, where `given` maps layer names to their axons,
      or to a `PartlyClamped`.

    Raises:
      ValueError: when run, for duplicate or unknown layers or axons of the wrong shape.
    """

    def layer(site: Site, given: Array | PartlyClamped | None) -> tuple[Array, Clamped]:
        predicted = site.axons()
        axons = predicted if given is None else given.axons if isinstance(given, PartlyClamped) else given
        _same_shape(site.name, "given axons", axons, "the layer's own", predicted)
        if isinstance(given, PartlyClamped):
            axons = jnp.where(given.clamped, axons, predicted)
        return axons, Clamped(axons, predicted)

    return interpret(program, layer, loop=parallel_loop)


def inject(program: Program) -> Callable[[Params, Any, Given], Any]:
    """Adds an offset γ^l to the pre-activations of some layers: x̃^l = f(W^l x̃^{l-1} + b^l + γ^l).

    This is the perturbation of seed 000 (node perturbation).

    Returns:
      `injected(params, inputs, offsets) -> outputs`, where `offsets` maps the names of some or all
      layers to arrays of their pre-activations' shapes, or computes them step by step (`Given`).

    Raises:
      ValueError: when run, for a duplicate layer name, or offsets for an unknown layer or of the wrong shape.
    """

    def layer(site: Site, offset: Array | None) -> tuple[Array, None]:
        preactivation = site.preactivation()
        if offset is not None:
            _same_shape(site.name, "offset", offset, "the pre-activation", preactivation)
            preactivation = preactivation + offset
        return site.activation(preactivation), None

    run = interpret(program, layer)
    return lambda params, inputs, offsets: run(params, inputs, offsets)[0]


def displace(program: Program) -> Callable[[Params, Any, Mapping[str, Array]], tuple[Any, dict[str, Array]]]:
    """Adds an error e^l to the axons of some layers, which is propagated: x^l = f(W^l x^{l-1} + b^l) + e^l.

    `inject` adds to pre-activations; `displace` adds to axons. In terms of `clamp`, e^l is the residual of the axons
    x^l.

    Returns:
      `displaced(params, inputs, errors) -> (outputs, {layer: axons})`, where `errors` maps the names of some or all
      layers to arrays of their axons' shapes; axons are in the order of propagation.

    Raises:
      ValueError: when run, for a duplicate layer name, or errors for an unknown layer or of the wrong shape.
    """

    def layer(site: Site, error: Array | None) -> tuple[Array, Array]:
        axons = site.axons()
        if error is not None:
            _same_shape(site.name, "error", error, "the layer's axons", axons)
            axons = axons + error
        return axons, axons

    return interpret(program, layer)


def _same_shape(name: str, what: str, value: Array, whose: str, expected: Array) -> None:
    if value.shape != expected.shape:
        raise ValueError(
            f"layer {name!r}: the {what} has shape {value.shape}, {whose} {expected.shape}; they must be equal"
        )
