"""Equinox models as programs: in a copy of the model, layers leave `jax.vmap` and hand their calls to `propagate`.

An Equinox model is called on one example and vectorised by `jax.vmap`; `propagate` needs the whole batch. So each layer
is a function with a batching rule of its own (`jax.custom_batching.custom_vmap`). The rule receives the values of the
whole batch outside the vmap, where `propagate` can be called.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from nl_jax.activations import identity
from nl_jax.base import Array, Params, Propagate
from nl_jax.networks.adapters.model import Call, Names, SplitModel, require_arrays, require_layers
from nl_jax.networks.connections.convolution import convolve_general
from nl_jax.propagation import feedforward

LAYERS = (
    *(eqx.nn.Linear, eqx.nn.Conv, eqx.nn.ConvTranspose, eqx.nn.Embedding),
    *(eqx.nn.LayerNorm, eqx.nn.RMSNorm, eqx.nn.GroupNorm),
)

Meet = Callable[[tuple, Any, Array], Array]
"""`meet(path, layer, x) -> outputs`: runs a layer that the model calls, on one example."""


def from_equinox(model: eqx.Module, call: Call) -> SplitModel:
    """See `nl.from_equinox`."""
    arrays, static = eqx.partition(model, eqx.is_inexact_array)

    def merge(params: Params) -> Any:
        """Returns a copy of the model with these parameters."""
        return eqx.combine(params, static)

    def apply(params: Params, inputs: Any, propagate: Propagate = feedforward) -> Any:
        """Runs the model on a batch with these parameters; its layers go through `propagate`."""
        leaves = jax.tree.leaves(inputs)
        if not leaves or any(jnp.ndim(x) == 0 for x in leaves):
            raise ValueError(f"inputs must be arrays with the batch as their first axis, got {inputs!r}")
        names, whole = Names(), merge(params)

        def of_one(x: Any, example: Array) -> Any:
            def meet(path: tuple, layer: Any, x: Array) -> Array:
                name = names.of(path, layer)
                own, rest = eqx.partition(layer, eqx.is_inexact_array)

                def connection(own: Params, x: Array) -> Array:
                    return _run(eqx.combine(own, rest), x)

                return _outside(name, connection, propagate)(require_arrays(own), jnp.asarray(x), example)

            return call(_with_layers(whole, meet), x)

        outputs = jax.vmap(of_one)(inputs, jnp.arange(len(leaves[0])))
        require_layers(names.met, model)
        return outputs

    return SplitModel(arrays, apply, merge)


def _run(layer: Any, x: Array) -> Array:
    """Runs a layer on one example; a convolution's derivatives are fast on a CPU too."""
    plain = type(layer).__call__ is eqx.nn.Conv.__call__ and layer.padding_mode == "ZEROS"
    if not plain or x.ndim != layer.num_spatial_dims + 1:
        return layer(x)
    settings = {
        "window_strides": layer.stride, "padding": layer.padding, "rhs_dilation": layer.dilation,
        "feature_group_count": layer.groups,
    }  # fmt: skip
    nu = convolve_general(x[None], layer.weight, settings, small=0)[0]  # vmap over the batch hides its size
    return nu if layer.bias is None else nu + layer.bias


def _outside(name: str, connection: Callable[..., Array], propagate: Propagate) -> Callable[..., Array]:
    """Returns the layer as a function of one example, whose batching rule calls `propagate` outside the batch's vmap.

    `example` is the example's number. Only the vmap over the batch maps it, so it tells this vmap from those inside
    the model, over a sequence's tokens for one. Under the latter the connection becomes one of all tokens.
    """

    @custom_vmap
    def layer(own: Params, x: Array, example: Array) -> Array:
        del example
        return connection(own, x)

    @layer.def_vmap
    def rule(size: int, mapped: Any, own: Params, x: Array, example: Array) -> tuple[Array, bool]:
        own_mapped, x_mapped, of_batch = mapped
        axes = jax.tree.map(lambda one: 0 if one else None, own_mapped)
        if of_batch and not x_mapped:  # an input that is the same for all examples, such as a table of positions
            x, x_mapped = jnp.broadcast_to(x, (size, *x.shape)), True
        several = jax.vmap(connection, in_axes=(axes, 0 if x_mapped else None), axis_size=size)
        if of_batch:
            return propagate(name, several, identity(), own, x), True
        return _outside(name, several, propagate)(own, x, example), True

    return layer


class _Layer(eqx.Module):
    """Replaces a layer in a model: it has all of the layer's attributes, but passes its calls to `meet`."""

    layer: Any
    path: tuple = eqx.field(static=True)
    meet: Meet = eqx.field(static=True)

    def __call__(self, x: Array, *state: Any, key: Any = None) -> Any:
        del key  # drawn by none of these layers
        outputs = self.meet(self.path, self.layer, x)
        return (outputs, *state) if state else outputs

    def __getattr__(self, name: str) -> Any:
        if name == "layer":  # not there yet, while this object is being made
            raise AttributeError(name)
        return getattr(self.layer, name)


def _with_layers(model: Any, meet: Meet) -> Any:
    def replaced(path: tuple, node: Any) -> Any:
        if not isinstance(node, LAYERS):
            return node
        return _Layer(node, tuple(jax.tree_util.keystr((part,), simple=True) for part in path), meet)

    return jax.tree_util.tree_map_with_path(replaced, model, is_leaf=lambda node: isinstance(node, LAYERS))
