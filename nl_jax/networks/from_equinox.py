"""Equinox models as programs of layers."""

from typing import TYPE_CHECKING, Any

import jax

from nl_jax._core.require import takes
from nl_jax.networks.adapters.model import Call, SplitModel

if TYPE_CHECKING:
    import equinox as eqx


def from_equinox(model: "eqx.Module", *, call: Call | None = None) -> SplitModel:
    """Turns an Equinox model into a program of layers, so that every learning rule can reach them.

    Each dense, convolutional, embedding and normalisation layer calls `propagate`, also inside attention and inside a
    `jax.vmap` of the model's own. Everything else runs unchanged: activation functions, pooling, parameters of modules
    of your own. The model is not changed. On a CPU, plain convolutions are computed as
    `nl.connections.conv_general_dilated` does, equal up to rounding.

    The model takes one example, as is usual in Equinox; `apply` takes a batch. Layers see the whole batch: an input
    that is the same for all examples, such as positions 0, 1, 2, …, is repeated for each.

    Activation functions are applied outside of these layers. A layer's activation here is therefore the identity, its
    axons (activity) are its pre-activation ν, and a nonlinearity belongs to the connection of the layer above.

    A layer's name is its place in the model, such as "layers.0"; a layer that is called again is "layers.0_2".

    Args:
      model: an `equinox.Module`. Its floating-point arrays are the parameters.
      call: `call(model, x) -> outputs` for one example, by default `model(x)`; for other arguments, such as
        `lambda model, x: model(x, state)[0]`.

    Returns:
      A `SplitModel` (params, apply, merge). `params` are the model's floating-point arrays, as
      `eqx.partition(model, eqx.is_inexact_array)` returns them, and `merge` is `eqx.combine`.

    Raises:
      ImportError: without equinox.
      ValueError: if `model` is not an Equinox module, or has dropout or batch normalisation in training mode; when
        run, if no layer is reached.

    >>> import jax, jax.numpy as jnp, nl_jax as nl
    >>> import equinox as eqx
    >>> model = from_equinox(eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0)))
    >>> axons = nl.propagation.record(model.apply)(model.params, jnp.ones([5, 3]))[1]
    >>> {name: layer.shape for name, layer in axons.items()}
    {'layers.0': (5, 4), 'layers.1': (5, 2)}
    """
    try:
        import equinox as eqx
    except ImportError as error:
        raise ImportError("from_equinox needs equinox: pip install equinox") from error
    if not isinstance(model, eqx.Module):
        raise ValueError(
            f"model must be an equinox.Module, got {model!r}: make one by a call, and for Flax use nl.from_flax(module)"
        )
    if call is not None:
        takes("call", call, 2, "it is called as call(model, x), with one example")
    _require_inference(model)
    from nl_jax.networks.adapters.equinox import from_equinox as adapted

    return adapted(model, (lambda model, x: model(x)) if call is None else call)


def _require_inference(model: Any) -> None:
    import equinox as eqx

    modes = (eqx.nn.Dropout, eqx.nn.BatchNorm)
    for path, node in jax.tree_util.tree_leaves_with_path(model, is_leaf=lambda node: isinstance(node, modes)):
        training = isinstance(node, modes) and not node.inference
        if training and not (isinstance(node, eqx.nn.Dropout) and node.p == 0):
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise ValueError(
                f"model has {type(node).__name__} {name!r} in training mode, and a forward function draws no random "
                "numbers and keeps no state: hand over eqx.nn.inference_mode(model), and for batch normalisation also "
                "call=lambda model, x: model(x, state)[0]"
            )
