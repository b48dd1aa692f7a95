"""Flax models, linen and NNX, as programs of layers."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, overload

from nl_jax._core.require import takes
from nl_jax.networks.adapters.model import Call, LinenModel, SplitModel

if TYPE_CHECKING:
    from flax import linen, nnx


@overload
def from_flax(
    module: "linen.Module", *, call: Call | None = None, collections: Mapping[str, Any] | None = None
) -> LinenModel: ...


@overload
def from_flax(
    module: "nnx.Module", *, call: Call | None = None, collections: Mapping[str, Any] | None = None
) -> SplitModel: ...


def from_flax(
    module: Any, *, call: Call | None = None, collections: Mapping[str, Any] | None = None
) -> LinenModel | SplitModel:
    """Turns a Flax model, linen or NNX, into a program of layers, so that every learning rule can reach them.

    Each dense, convolutional, embedding and normalisation layer calls `propagate`, also inside attention. Everything
    else runs unchanged: activation functions, pooling, parameters of modules of your own. The model is not changed.
    On a CPU, plain convolutions are computed by `nl.connections.conv_general_dilated`, equal up to rounding, unless a
    module has a function of its own for them.

    Activation functions are applied outside of these layers. A layer's activation here is therefore the identity, its
    axons (activity) are its pre-activation ν, and a nonlinearity belongs to the connection of the layer above.

    A layer's name is its module's path, such as "Dense_0" or "layers.0"; a module that is called again is "Dense_0_2".
    A layer whose outputs do not have the batch as their first axis, such as an embedding of positions 0, 1, 2, …, is
    not propagated. Its parameters still learn, as parameters used between layers.

    Batch normalisation by the batch's own moments works, as with `nl.batch_norm`: its running averages are read but
    not updated. Dropout and other random numbers, caches and other state must be switched off.

    Args:
      module: a linen module, not bound to variables, or an NNX module. Both take whole batches, batch axis first.
      call: `call(module, inputs) -> outputs`, by default `module(inputs)`; for other arguments, such as
        `lambda module, x: module(x, train=False)`.
      collections: for linen, the variables other than parameters, held fixed, such as
        {"batch_stats": variables["batch_stats"]}. An NNX module holds its own.

    Returns:
      For linen a `LinenModel` (init, apply), because a linen module has no parameters yet. For NNX a `SplitModel`
      (params, apply, merge).

    Raises:
      ImportError: without flax.
      ValueError: if an argument is not as described; when run, if no layer is reached, a collection is missing, or the
        module draws random numbers or changes its state.

    >>> import jax, jax.numpy as jnp, nl_jax as nl
    >>> from flax import linen
    >>> model = from_flax(linen.Sequential([linen.Dense(4), jnp.tanh, linen.Dense(2)]))
    >>> params, x = model.init(jax.random.key(0), jnp.ones([5, 3])), jnp.ones([5, 3])
    >>> {name: axons.shape for name, axons in nl.propagation.record(model.apply)(params, x)[1].items()}
    {'layers_0': (5, 4), 'layers_2': (5, 2)}
    """
    try:
        from flax import linen, nnx
    except ImportError as error:
        raise ImportError("from_flax needs flax: pip install flax") from error
    if call is not None:
        takes("call", call, 2, "it is called as call(module, inputs)")
    call = (lambda module, inputs: module(inputs)) if call is None else call
    if isinstance(module, nnx.Module):
        if collections is not None:
            raise ValueError(
                "collections must be left out for an NNX module, which holds its own variables; got "
                f"{', '.join(collections) or 'none'}"
            )
        from nl_jax.networks.adapters.nnx import from_nnx

        return from_nnx(module, call)
    if not isinstance(module, linen.Module):
        shown = f"the class {module.__name__}" if isinstance(module, type) else repr(module)
        raise ValueError(
            f"module must be an instance of flax.linen.Module or flax.nnx.Module, got {shown}: make one by a call, "
            "and for Equinox use nl.from_equinox(model)"
        )
    if module.scope is not None:
        raise ValueError(
            f"module {type(module).__name__} is bound to variables: hand over the module itself, and the variables "
            "other than parameters as collections"
        )
    if "params" in (collections or {}):
        raise ValueError("collections must not hold 'params': parameters are handed to apply(params, inputs)")
    from nl_jax.networks.adapters.linen import from_linen

    return from_linen(module, call, dict(collections or {}))
