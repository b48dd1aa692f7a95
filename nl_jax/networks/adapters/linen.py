"""Flax linen modules as programs: a method interceptor hands every layer to `propagate`."""

from collections.abc import Callable, Mapping
from typing import Any

import flax
import flax.errors
import flax.linen as nn
import jax

from nl_jax._core.require import typed_key
from nl_jax.activations import identity
from nl_jax.base import Array, Key, Params, Propagate
from nl_jax.networks.adapters.model import (
    Call,
    LinenModel,
    Names,
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
    *(nn.Dense, nn.DenseGeneral, nn.Einsum, nn.Conv, nn.ConvLocal, nn.ConvTranspose, nn.Embed),
    *(nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.InstanceNorm, nn.BatchNorm),
)

METHODS = ("__call__", "attend")
"""The methods that apply a layer: `attend` multiplies by the transposed table of an `nn.Embed`."""

Visit = Callable[[str, nn.Module, Callable[..., Any], tuple, dict[str, Any], str], Any]
"""`visit(name, layer, method, args, kwargs, method_name) -> outputs`: runs a layer that the module calls."""


def from_linen(module: nn.Module, call: Call, collections: Mapping[str, Any]) -> LinenModel:
    """See `nl.from_flax`."""
    reached: dict[Any, frozenset[str]] = {}

    def run(params: Params, inputs: Any, visit: Visit, mutable: bool) -> Any:
        with nn.intercept_methods(_interceptor(visit)):
            return module.apply({"params": params, **collections}, inputs, method=call, mutable=mutable)

    def layers_with_batch(params: Params, inputs: Any) -> frozenset[str]:
        found = set()

        def visit(name: str, layer: nn.Module, method: Callable, args: tuple, kwargs: dict, _: str) -> Any:
            outputs = method(*args, **kwargs)
            if has_batch_axis(outputs):
                found.add(name)
            return outputs

        jax.eval_shape(lambda params, inputs: run(params, inputs, visit, True), params, many_examples(inputs))
        require_layers(found, module)
        return frozenset(found)

    def init(key: Key, inputs: Any) -> Params:
        """Returns random parameters for inputs of this shape."""
        typed_key(key)
        with _ValueErrors(module):
            variables = module.init(key, inputs, method=call)
        return flax.core.unfreeze(variables).get("params", {})

    def apply(params: Params, inputs: Any, propagate: Propagate = feedforward) -> Any:
        """Runs the module with these parameters; its layers go through `propagate`."""

        def visit(name: str, layer: nn.Module, method: Callable, args: tuple, kwargs: dict, method_name: str) -> Any:
            if name not in reached[kind(inputs)]:
                return method(*args, **kwargs)
            plain, variables = layer.unbind()
            own = variables.get("params", {})
            others = {collection: values for collection, values in variables.items() if collection != "params"}
            x, connection = _connection(plain, others, args, kwargs, method_name)
            return propagate(name, connection, identity(), own, x)

        with _ValueErrors(module):
            if kind(inputs) not in reached:
                reached[kind(inputs)] = layers_with_batch(params, inputs)
            return run(params, inputs, visit, False)

    return LinenModel(init, apply)


def _interceptor(visit: Visit) -> Callable[..., Any]:
    names, inside = Names(), False

    def intercept(method: Callable[..., Any], args: tuple, kwargs: dict[str, Any], context: Any) -> Any:
        nonlocal inside
        layer, method_name = context.module, context.method_name
        # A layer's connection calls the layer again, and so do methods of a subclass: these calls are its own affair.
        if inside or method_name not in METHODS or not isinstance(layer, LAYERS):
            return method(*args, **kwargs)
        path = (*layer.path, *([] if method_name == "__call__" else [method_name]))
        inside = True
        try:
            return visit(names.of(path, layer), layer, method, args, kwargs, method_name)
        finally:
            inside = False

    return intercept


def _connection(
    layer: nn.Module, others: Mapping[str, Any], args: tuple, kwargs: dict[str, Any], method_name: str
) -> tuple[Array, Callable[..., Array]]:
    """Returns a layer's input and its connection; masks and other arguments are held fixed."""
    x, rest, kwargs = input_first(args, kwargs)
    usual = isinstance(layer, nn.Conv) and layer.conv_general_dilated is None and layer.conv_general_dilated_cls is None
    if usual:
        layer = layer.clone(conv_general_dilated=conv_general_dilated)  # whose derivatives are fast on a CPU too
    running = kwargs.get("use_running_average")
    training = isinstance(layer, nn.BatchNorm) and not (layer.use_running_average if running is None else running)

    def connection(own: Params, x: Array) -> Array:
        variables = {"params": require_arrays(own), **others}
        outputs: Any = layer.apply(
            variables, x, *rest, method=method_name, mutable=["batch_stats"] if training else False, **kwargs
        )
        return outputs[0] if training else outputs  # the running averages' update is not kept

    connection.mixes_examples = training  # type: ignore[attr-defined]
    connection.keeps_averages = training  # type: ignore[attr-defined]
    return x, connection


class _ValueErrors:
    """Turns Flax's errors about state and random numbers into ValueErrors that say what to change."""

    def __init__(self, module: nn.Module) -> None:
        self.name = type(module).__name__

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        missing = flax.errors.ScopeVariableNotFoundError | flax.errors.ScopeCollectionNotFound
        if isinstance(error, missing):
            raise ValueError(
                f"module {self.name} reads variables beside its parameters, which are not among collections: hand "
                "them over, such as nl.from_flax(module, collections={'batch_stats': variables['batch_stats']})"
            ) from error
        if isinstance(error, flax.errors.InvalidRngError):
            raise ValueError(
                f"module {self.name} draws random numbers, as dropout does, and a forward function has no key: call "
                "it without, such as nl.from_flax(module, call=lambda module, x: module(x, deterministic=True))"
            ) from error
        if isinstance(error, flax.errors.ModifyScopeVariableError):
            raise ValueError(
                f"module {self.name} changes variables beside its parameters, and a forward function keeps no state: "
                "call it so that it does not, such as call=lambda module, x: module(x, train=False) or decode=False"
            ) from error
