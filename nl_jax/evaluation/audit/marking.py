"""Marks where a program's layers begin and end, for analyses of its jaxpr."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nl_jax._core.dependence import mark, mark_tangent
from nl_jax._core.require import takes_propagate
from nl_jax.base import Array, Params, Program, Propagate
from nl_jax.propagation import Around, Site, feedforward
from nl_jax.propagation.interpretation import require_inputs

LOSS = "loss"

STAGES = ("preactivation", "response", "axons")
"""The stages at which a layer's own values are marked: the connection's output, the activation's output, and the return
value of `propagate`. Each stage has its own mark, so that other values that an estimator's `propagate` returns are not
mistaken for the connection's output."""


def stage(layer: str, which: str) -> str:
    """Returns the mark of one stage of a layer."""
    return f"{which}:{layer}"


def pre(layer: str) -> str:
    """Returns the mark of a layer's inputs."""
    return f"pre:{layer}"


def post(layer: str) -> str:
    """Returns the mark of a layer's own values: its pre-activation and its axons (activity)."""
    return f"post:{layer}"


def marked(program: Program, met: Callable[[str], Any]) -> Program:
    """Marks every layer's inputs, pre-activation and axons (activity) in a program, and its losses.

    Any `propagate` passed to the result sees the marked values. The outputs count as losses if they are one number per
    example, shape [batch].

    Args:
      program: an objective or a forward function; one that takes no `propagate` has no layers to mark.
      met: called with every layer's name, in the order of propagation.
    """
    if not takes_propagate(program):
        return lambda params, batch: _mark_loss(program(params, batch))

    def run(params: Params, batch: Any, propagate: Propagate = feedforward) -> Any:
        def marking(site: Site, given: None, propagate: Propagate) -> Array:
            met(site.name)
            require_inputs(site.name, site.inputs)
            preactivation, response, axons = (functools.partial(mark, stage(site.name, which)) for which in STAGES)
            received = [mark(pre(site.name), jnp.asarray(x)) for x in site.inputs]
            layer = _Marked(site.connection, preactivation), _Marked(site.activation, response)
            return axons(propagate(site.name, *layer, site.params, *received))

        return _mark_loss(program(params, batch, propagate=Around(propagate, marking)))

    return run


class _Marked:
    """A connection or activation whose result is marked; it keeps the attributes of the original."""

    def __init__(self, function: Callable[..., Array], own: Callable[[Array], Array]) -> None:
        self._function, self._own = function, own

    def __call__(self, *arguments: Any) -> Array:
        return self._own(self._function(*arguments))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._function, name)


def _mark_loss(outputs: Any) -> Any:
    return _loss(outputs) if isinstance(outputs, jax.Array) and outputs.ndim == 1 else outputs


@jax.custom_jvp
def _loss(losses: Array) -> Array:
    return mark(LOSS, losses)


@_loss.defjvp
def _rate_of_change(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return _loss(*primals), mark_tangent(LOSS, *tangents)
