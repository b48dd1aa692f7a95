"""What the adapters of all libraries share: the types they return, the names of layers, and the layers they reach."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nl_jax._core.products import EXAMPLES, LazyWeight, OtherUse
from nl_jax.base import Array, Params
from nl_jax.propagation.interpretation import SEPARATOR

Call = Callable[[Any, Any], Any]
"""`call(model, inputs) -> outputs`: how a model is called."""


class LinenModel(NamedTuple):
    """A Flax linen module as a program of layers.

    Attributes:
      init: `init(key, inputs) -> params`, the module's collection "params", for inputs of any batch size.
      apply: `apply(params, inputs, propagate=feedforward) -> outputs`, batch axis first.
    """

    init: Callable[..., Params]
    apply: Callable[..., Any]


class SplitModel(NamedTuple):
    """A Flax NNX or Equinox model, split into its parameters and a program of layers.

    Attributes:
      params: the parameters that the model holds, a tree of arrays, to be handed to a learner's `init`.
      apply: `apply(params, inputs, propagate=feedforward) -> outputs`, batch axis first.
      merge: `merge(params) -> model`, the model with these parameters; the inverse of the split.
    """

    params: Params
    apply: Callable[..., Any]
    merge: Callable[[Params], Any]


class Names:
    """Gives each call of a layer in one run of a model a name of its own."""

    def __init__(self) -> None:
        self.met: set[str] = set()

    def of(self, path: Sequence[Any], layer: Any) -> str:
        """Returns the path's parts joined by ".", and at the second call of the layer with the suffix "_2".

        The parts are not joined by "/", because that separates loops from the layers in them. A model that is a single
        layer has no path; its class gives the name.
        """
        plain = ".".join(map(str, path)).replace(SEPARATOR, ".") or type(layer).__name__
        name, calls = plain, 1
        while name in self.met:
            calls += 1
            name = f"{plain}_{calls}"
        self.met.add(name)
        return name


def input_first(args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Any, list[Any], dict[str, Any]]:
    """Splits a call's arguments into the layer's input, the first of them, and the others."""
    if args:
        return args[0], list(args[1:]), kwargs
    keyword, *others = kwargs  # such as dense(inputs=x)
    return kwargs[keyword], [], {name: kwargs[name] for name in others}


def many_examples(inputs: Any) -> Any:
    """Returns the shapes of `inputs` for a batch of `EXAMPLES`."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((EXAMPLES, *jnp.shape(x)[1:]), jnp.result_type(x)), inputs)


def has_batch_axis(outputs: Any) -> bool:
    """Whether a layer's outputs, for inputs of `many_examples`, have the batch as their first axis."""
    return isinstance(outputs, Array) and outputs.shape[:1] == (EXAMPLES,)


def kind(inputs: Any) -> Any:
    """Returns what `inputs` have in common at all batch sizes, as a key for dictionaries."""
    leaves, tree = jax.tree.flatten(inputs)
    return tree, tuple((jnp.shape(x)[1:], jnp.result_type(x)) for x in leaves)


def require_arrays(params: Params) -> Params:
    """Returns a layer's parameters; raises OtherUse if one is a lazy weight, which its library cannot multiply."""
    if any(isinstance(leaf, LazyWeight) for leaf in jax.tree.leaves(params)):
        raise OtherUse("its products are computed by Flax or Equinox; write it with nl.network")
    return params


def require_layers(reached: Any, model: Any) -> None:
    """Raises ValueError if no layer of the model was reached."""
    if not reached:
        raise ValueError(
            f"model {type(model).__name__} has no layer that can be reached: none of its dense, convolutional, "
            "embedding or normalisation layers was called with the batch as its first axis. Build it from such "
            "layers, or use an estimator that needs no layers, such as nl.weight_perturbation, with the model as it is"
        )
