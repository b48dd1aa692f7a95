"""The biases c of target propagation's decoders: their shapes are those of the layers' inputs, for one example.

A state is made from parameters alone, but inputs have their shapes from a batch. There are two ways to know them:

- from an example, which gives c exactly as the layers need it;
- from the parameters: a weight of shape […, in, out] has inputs of shape [in]. Each parameter gets one c, and a layer
  takes those that fit its inputs when it is traced. Convolutions, whose inputs have positions that no weight shows, and
  transposed weights need the example.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from nl_jax._core.dependence import reached, severed
from nl_jax.base import Array, Batch, Objective, Params
from nl_jax.estimators.feedback.received import steps_of_their_own
from nl_jax.propagation import Site, interpret, learning_layers, loops_around, record
from nl_jax.propagation.loops import differentiable

Biases = tuple[Array, ...]


def biases_by_layer(objective: Objective, params: Params, batch: Batch) -> dict[str, Biases]:
    """Returns c = 0 by layer, one for each input to decode."""
    shapes = _shapes(objective, params, batch)
    return {name: tuple(jnp.zeros(s.shape, s.dtype) for s in inputs) for name, inputs in shapes.items()}


def biases_by_parameter(params: Params) -> Params:
    """Returns c = 0 for each parameter: of shape […, in] for one of shape […, in, out], else of its own shape."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[:-1] if leaf.ndim > 1 else leaf.shape, leaf.dtype), params)


def taken_by_layer(objective: Objective, params: Params, batch: Batch, biases: Params) -> dict[str, Biases]:
    """Gives each input to decode the c of one of the parameters that its layer reads, weights before vectors.

    Args:
      objective, params, batch: as the estimator has them.
      biases: as made by `biases_by_parameter`. Layers that share a parameter share its c.

    Raises:
      ValueError: if no c has the shape of an input; the message names the layer.
    """
    leaves, free = jax.tree.leaves(params), jax.tree.leaves(biases)
    read = _read(objective, params, batch)
    taken: dict[str, Biases] = {}
    for name, inputs in _shapes(objective, params, batch).items():
        left, own = sorted(read[name], key=lambda i: (-leaves[i].ndim, i)), list[Array]()
        for shape in (s.shape for s in inputs):
            fitting = [i for i in left if free[i].shape == shape]
            if not fitting:
                raise ValueError(
                    f"difference_target_propagation: layer {name!r} decodes inputs of shape {shape} for one example, "
                    f"which its parameters of shapes {', '.join(str(leaves[i].shape) for i in sorted(read[name]))} do "
                    "not show, as a weight [in, out] does: give the estimator an example, a batch of which only the "
                    "shapes are read, difference_target_propagation(objective, example=batch, …)"
                )
            left.remove(fitting[0])
            own.append(free[fitting[0]])
        taken[name] = tuple(own)
    return taken


def _shapes(objective: Objective, params: Params, batch: Batch) -> dict[str, tuple[jax.ShapeDtypeStruct, ...]]:
    """Returns the shapes of c by layer: those of one example, after axes of steps with their own parameters."""
    own = steps_of_their_own(objective, params, batch)

    def shape(name: str, x: Array) -> jax.ShapeDtypeStruct:
        steps = (x.shape[axis] for axis in own[name])
        return jax.ShapeDtypeStruct((*steps, *x.shape[loops_around(name) + 1 :]), x.dtype)

    decoded = _decoded(objective, params, batch)
    return {name: tuple(shape(name, x) for x in inputs) for name, inputs in decoded.items()}


def _decoded(objective: Objective, params: Params, batch: Batch) -> dict[str, Biases]:
    """Returns the inputs to decode: floating-point inputs of learning layers that depend on other layers' axons."""

    def layer(site: Site, given: Array | None) -> tuple[Array, Biases]:
        return site.axons() if given is None else given, tuple(filter(differentiable, site.inputs))

    def inputs(params: Params, batch: Batch, axons: Mapping[str, Array]) -> dict[str, Biases]:
        return interpret(objective, layer)(params, batch, axons)[1]

    axons = jax.eval_shape(lambda params, batch: record(objective)(params, batch)[1], params, batch)
    learned, sources = learning_layers(objective, params, batch), reached(inputs, params, batch, axons)
    reading = [name for name in learned if any(2 in found for found in sources[name])]
    shapes = jax.eval_shape(inputs, params, batch, axons)
    return {name: shapes[name] for name in reading}


def _read(objective: Objective, params: Params, batch: Batch) -> dict[str, frozenset[int]]:
    """Returns which leaves of the parameters each layer's ν depends on, with lower axons held."""
    leaves, tree = jax.tree.flatten(params)

    def layer(site: Site, given: None) -> tuple[Array, Array]:
        nu = site.preactivation()
        return site.activation(severed(nu)), nu

    def preactivations(batch: Batch, *leaves: Array) -> dict[str, Array]:
        return interpret(objective, layer)(jax.tree.unflatten(tree, leaves), batch)[1]

    sources = reached(preactivations, batch, *leaves)  # argument 1 + i is the i-th leaf
    return {name: frozenset(i - 1 for i in found if i > 0) for name, found in sources.items()}
