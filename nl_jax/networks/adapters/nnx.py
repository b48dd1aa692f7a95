"""Flax NNX models as programs: in a copy of the model, layers hand their calls to `propagate`."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from nl_jax.activations import identity
from nl_jax.base import Array, Params, Propagate
from nl_jax.networks.adapters.model import (
    Call,
    Names,
    SplitModel,
    has_batch_axis,
    input_first,
    kind,
    many_examples,
    require_arrays,
    require_layers,
)
from nl_jax.networks.connections import conv_general_dilated
from nl_jax.propagation import feedforward

LAYERS = (
    *(nnx.Linear, nnx.LinearGeneral, nnx.Einsum, nnx.Conv, nnx.ConvTranspose, nnx.Embed),
    *(nnx.LayerNorm, nnx.RMSNorm, nnx.GroupNorm, nnx.InstanceNorm, nnx.BatchNorm),
)

METHODS = ("__call__", "attend")
"""The methods that apply a layer: `attend` multiplies by the transposed table of an `nnx.Embed`."""

Visit = Callable[[tuple, nnx.Module, str, tuple, dict[str, Any]], Any]
"""`visit(path, layer, method, args, kwargs) -> outputs`: runs a layer that the model calls."""


def from_nnx(model: nnx.Module, call: Call) -> SplitModel:
    """See `nl.from_flax`."""
    graph, *states = _split(model)
    parameters, others = jax.tree.map(lambda leaf: leaf, states)  # new variables: the model may go on changing its own
    reached: dict[Any, frozenset[str]] = {}

    def merge(params: Params) -> nnx.Module:
        """Returns a copy of the model with these parameters."""
        return nnx.merge(graph, params, others, copy=True)

    def run(params: Params, inputs: Any, visit: Visit) -> tuple[Any, nnx.Module]:
        copy = merge(params)
        for path, layer in list(nnx.iter_modules(copy)):
            if isinstance(layer, LAYERS):
                _hand_over(layer, functools.partial(visit, path))
        return call(copy, inputs), copy

    def layers_with_batch(params: Params, inputs: Any) -> frozenset[str]:
        names, found = Names(), set()

        def visit(path: tuple, layer: nnx.Module, method: str, args: tuple, kwargs: dict[str, Any]) -> Any:
            outputs = getattr(layer, method)(*args, **kwargs)
            name = names.of(_named(path, method), layer)
            if has_batch_axis(outputs):
                found.add(name)
            return outputs

        jax.eval_shape(lambda params, inputs: run(params, inputs, visit)[0], params, many_examples(inputs))
        require_layers(found, model)
        return frozenset(found)

    def apply(params: Params, inputs: Any, propagate: Propagate = feedforward) -> Any:
        """Runs the model with these parameters; its layers go through `propagate`."""
        names = Names()
        if kind(inputs) not in reached:
            reached[kind(inputs)] = layers_with_batch(params, inputs)

        def visit(path: tuple, layer: nnx.Module, method: str, args: tuple, kwargs: dict[str, Any]) -> Any:
            name = names.of(_named(path, method), layer)
            if name not in reached[kind(inputs)]:
                return getattr(layer, method)(*args, **kwargs)
            own, x, connection = _connection(layer, method, args, kwargs)
            return propagate(name, connection, identity(), own, x)

        outputs, after = run(params, inputs, visit)
        _require_unchanged(others, _split(after)[2])
        return outputs

    return SplitModel(parameters, apply, merge)


def _split(module: nnx.Module) -> tuple[Any, nnx.State, nnx.State]:
    """Returns the module's structure, its parameters, and all other variables."""
    graph, *states = nnx.split(module, nnx.Param, ...)
    params, others = states
    return graph, params, others


def _named(path: tuple, method: str) -> tuple:
    return path if method == "__call__" else (*path, method)


def _connection(
    layer: nnx.Module, method: str, args: tuple, kwargs: dict[str, Any]
) -> tuple[Params, Array, Callable[..., Array]]:
    """Returns a layer's parameters, its input and its connection; masks and other arguments are held fixed."""
    graph, own, others = _split(layer)
    x, rest, kwargs = input_first(args, kwargs)

    def connection(own: Params, x: Array) -> Array:
        # Merged anew in each run: the update of a running average is dropped with the copy.
        merged = nnx.merge(graph, require_arrays(own), others, copy=True)
        if isinstance(merged, nnx.Conv) and merged.conv_general_dilated is jax.lax.conv_general_dilated:
            merged.conv_general_dilated = conv_general_dilated  # whose derivatives are fast on a CPU too
        return getattr(merged, method)(x, *rest, **kwargs)

    running = kwargs.get("use_running_average")
    training = isinstance(layer, nnx.BatchNorm) and not (layer.use_running_average if running is None else running)
    connection.mixes_examples = training  # type: ignore[attr-defined]
    connection.keeps_averages = training  # type: ignore[attr-defined]
    return own, x, connection


_VISIT = "_nl_jax_visit"


def _hand_over(layer: nnx.Module, visit: Callable[..., Any]) -> None:
    """Makes the layer's methods call `visit(layer, method, args, kwargs)`; it stays an instance of its class."""
    object.__setattr__(layer, _VISIT, visit)
    object.__setattr__(layer, "__class__", _visited(type(layer)))


@functools.cache  # a class for each class, not for each layer: JAX keeps every class that it registers
def _visited(base: type) -> type:
    def handing_over(method: str) -> Callable[..., Any]:
        def run(self: nnx.Module, *args: Any, **kwargs: Any) -> Any:
            visit, own = vars(self).pop(_VISIT), type(self)
            object.__setattr__(self, "__class__", base)
            try:
                return visit(self, method, args, kwargs)
            finally:
                object.__setattr__(self, "__class__", own)
                object.__setattr__(self, _VISIT, visit)

        return run

    return type(base.__name__, (base,), {name: handing_over(name) for name in METHODS if hasattr(base, name)})


def _require_unchanged(before: nnx.State, after: nnx.State) -> None:
    """Raises ValueError if a run has changed a variable that is no parameter."""
    value_of = lambda variable: variable.get_value() if isinstance(variable, nnx.Variable) else variable  # or an array
    values = dict(nnx.to_flat_state(after))
    for path, variable in nnx.to_flat_state(before):
        if path in values and value_of(values[path]) is not value_of(variable):
            name = ".".join(map(str, path))
            raise ValueError(
                f"model changes its {type(variable).__name__} {name!r} when it is called, and a forward function keeps "
                "no state and draws no random numbers: call model.eval() before nl.from_flax(model), or say "
                "call=lambda model, x: model(x, deterministic=True)"
            )
