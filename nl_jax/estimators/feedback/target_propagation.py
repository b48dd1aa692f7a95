"""Difference target propagation: learned decoders send targets down."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.nn import initializers

from nl_jax._core.keys import own_key
from nl_jax._core.require import gradient_transformation, layered, positive_number, takes, typed_key
from nl_jax.base import (
    ActivationFn,
    Array,
    Batch,
    GradientEstimator,
    Info,
    Initializer,
    Key,
    LayerCredit,
    Objective,
    Params,
    State,
)
from nl_jax.estimators.feedback.decoder_biases import Biases, biases_by_layer, biases_by_parameter, taken_by_layer
from nl_jax.estimators.feedback.drawing import drawn, normal_like
from nl_jax.estimators.feedback.example import shapes_of
from nl_jax.estimators.feedback.feedback_path import Back, Find, Run, Seen, beside, feedback_path
from nl_jax.estimators.feedback.received import steps_of_their_own
from nl_jax.estimators.lagrangian.lagrangian import stationarity
from nl_jax.propagation.loops import differentiable

Steps = dict[str, tuple[int, ...]]
"""By layer, the loops over which its parameters, and with them its decoder, are stacked."""


class Decoders(NamedTuple):
    """The parameters of the decoders g(y) = a(Bᵀ y + c).

    Attributes:
      weights: B, a tree like the parameters, as for feedback weights.
      biases: c, a tree like the parameters, of shape [in] for a weight [in, out]. With an example, c by layer, one for
        each of its floating-point inputs, in the shape of one example. Axes of steps with their own parameters come
        first.
    """

    weights: Params
    biases: Params | dict[str, Biases]


def difference_target_propagation(
    objective: Objective,
    example: Batch | None = None,
    *,
    optimizer: optax.GradientTransformation,
    activation: ActivationFn = jnp.tanh,
    eta: float = 0.1,
    sigma: float = 0.1,
    weight_init: Initializer = initializers.lecun_normal(),
) -> GradientEstimator:
    """Gives each layer a target; each layer learns by its own distance to it (Lee et al. 2015).

    The highest target is one step down the example's loss; lower targets are decoded from those above:

        t_L = x_L − η ∂C/∂x_L
        t_{l−1} = x_{l−1} + g_l(t_l) − g_l(x_l),  g_l(y) = a(B_lᵀ y + c_l)
        ∂E/∂W_l ≈ ∂/∂W_l ‖x_l − t_l‖²/2η

    so that (x_l − t_l)/η replaces ∂C/∂x_l, on the same scale. If a layer's axons (activity) enter several layers, the
    displacements add up. What the program does between its layers is differentiated exactly, and so are layers without
    parameters (under `nl.partition`, without parameters of this part). B_lᵀ is the derivative of the layer's own
    connection with B instead of its parameters. As η → 0, a decoder that inverts its layer sends credit through the
    layer's inverse: a step like Gauss-Newton's, not gradient descent's (Meulemans et al. 2020). The two agree for
    orthogonal linear layers.

    Through time, a layer's target is decoded from that of its next step, by one decoder shared by all steps
    (Manchev & Spratling 2020). In a loop over depth, where parameters are stacked, every step has its own decoder.

    After each estimate the decoders learn to reconstruct noisy inputs: the optimizer reduces
    ½‖g_l(f_l(x + σξ)) − (x + σξ)‖² in B and c, where x are the layer's inputs.

    Args:
      objective: a per-example objective that takes `propagate`.
      example: not needed where every decoded layer's connection is dense, as a product of its inputs and a weight
        [in, out]: then the weights show the shapes of c. Otherwise, as for convolutions of convolutions, a batch, of
        arrays or `jax.ShapeDtypeStruct`, of which only the shapes are read. Other batches may have other sizes.
      optimizer: optimizer of the decoders, such as `optax.adam(1e-3)`.
      activation: a, the decoder's activation. The paper's tanh is for layers whose inputs lie between −1 and 1. For
        others use `lambda nu: nu`, with which (x_l − t_l)/η does not depend on η, or a function with the range of the
        layers' inputs.
      eta: η, the step size of the highest target, above 0; in half precision no smaller than the default.
      sigma: σ, standard deviation of the noise on the inputs to be reconstructed, in units of axons, above 0.
      weight_init: initializer of the first B, as in `nl.feedback.kolen_pollack`.

    Returns:
      An estimator whose state is (`Decoders`, the optimizer's state). `info.residuals` is a `nl.KKT` at the feedforward
      axons with multipliers −(x_l − t_l)/η; its `dual` measures how far (x_l − t_l)/η is from ∂C/∂x_l.

    Raises:
      ValueError: if the objective takes no `propagate` or a setting is not as described; when run, if layers share a
        name, if the first axis of a layer's axons is not the batch, if a layer has inputs of another shape than on the
        example, or if without one the shapes of its inputs cannot be told from its parameters.

    >>> import jax, jax.numpy as jnp, nl_jax as nl, optax
    >>> net = nl.mlp([3, 4, 2], activation=nl.activations.tanh())
    >>> objective = nl.supervised(net.apply, nl.losses.cross_entropy)
    >>> params, batch = net.init(jax.random.key(0)), (jnp.ones([5, 3]), jnp.zeros(5, int))
    >>> estimator = difference_target_propagation(objective, optimizer=optax.sgd(0.1))
    >>> state = estimator.init(jax.random.key(1), params)
    >>> grads, state, info = jax.jit(estimator.estimate)(jax.random.key(2), state, params, batch)
    >>> grads["hidden1"]["weight"].shape, list(info.residuals.dual)
    ((3, 4), ['hidden1', 'output'])
    """
    layered("difference_target_propagation", objective)
    positive_number("eta", eta)
    positive_number("sigma", sigma)
    gradient_transformation(optimizer)
    takes("activation", activation, 1, "hand in jnp.tanh, lambda nu: nu or nl.activations.tanh()")
    report = stationarity(objective)

    def init(key: Key, params: Params) -> State:
        if example is None:
            biases = biases_by_parameter(params)
        else:
            biases = biases_by_layer(objective, params, shapes_of(objective, example, params))
        decoders = Decoders(drawn(weight_init, key, params), biases)
        return decoders, optimizer.init(decoders)

    def by_layer(decoders: Decoders, params: Params, batch: Batch) -> dict[str, Biases]:
        """Returns c by layer."""
        return decoders.biases if example is not None else taken_by_layer(objective, params, batch, decoders.biases)

    def by_targets(decoders: Decoders, params: Params, batch: Batch) -> Run:
        back = _by_targets(activation, eta, steps_of_their_own(objective, params, batch))
        biases = by_layer(decoders, params, batch)
        return feedback_path(objective, params, batch, back, companion=decoders.weights, extra=biases, credit=True)

    def estimate(key: Key, state: State, params: Params, batch: Batch) -> tuple[Params, State, Info]:
        typed_key(key)
        decoders, inner = state
        losses, grads, credits = by_targets(decoders, params, batch)
        axons = {name: layer.axons for name, layer in credits.items()}
        multipliers: dict[str, Any] = {name: layer.multipliers for name, layer in credits.items()}
        _, residuals = report(params, axons, multipliers, batch)

        def reconstruction(decoders: Decoders) -> Array:
            errors = beside(objective, _reconstruction(activation, sigma, steps_of_their_own(objective, params, batch)))
            found = errors(params, decoders.weights, batch, (by_layer(decoders, params, batch), key))
            return sum((error.astype(float) for error in found.values()), start=jnp.asarray(0.0))

        updates, inner = optimizer.update(jax.grad(reconstruction)(decoders), inner, decoders)
        state = optax.apply_updates(decoders, updates), inner
        return grads, state, Info(jnp.mean(losses), jnp.int32(7), residuals)

    def credit(key: Key, state: State, params: Params, batch: Batch) -> dict[str, LayerCredit]:
        del key
        return by_targets(state[0], params, batch).credit

    return GradientEstimator(init, estimate, credit)


def _by_targets(activation: ActivationFn, eta: float, steps: Steps) -> Back:
    """Computes (x_{l−1} − t_{l−1})/η from (x_l − t_l)/η."""

    def back(layer: Seen, biases: dict[str, Biases], z: Array, delta: Array) -> tuple[Array, ...]:
        routed = layer.transpose(layer.connection)(delta)
        if layer.name not in biases:
            return routed
        own = _of_step(layer, biases, steps)
        step_size = eta * len(z)  # z is of the mean loss, a target is of the example's own loss
        to_axons, to_target = (_decode(layer, own, activation, y) for y in (layer.axons, layer.axons - step_size * z))
        displaced = ((x - t) / step_size for x, t in zip(to_axons, to_target, strict=True))
        # indices are not decoded
        return tuple(next(displaced) if differentiable(x) else r for x, r in zip(layer.inputs, routed, strict=True))

    return back


def _reconstruction(activation: ActivationFn, sigma: float, steps: Steps) -> Find:
    """Computes ½‖g(f(x + σξ)) − (x + σξ)‖² of a layer's decoder, averaged over examples and summed over steps."""

    def error(layer: Seen, extra: tuple[dict[str, Biases], Key]) -> Array | None:
        biases, key = extra
        if layer.name not in biases:
            return None
        noise = normal_like(own_key(key, layer), layer.inputs)
        noisy = tuple(x + sigma * xi if differentiable(x) else x for x, xi in zip(layer.inputs, noise, strict=True))
        y = layer.activation(layer.connection(*noisy))
        decoded = _decode(layer, _of_step(layer, biases, steps), activation, y)
        pairs = zip(decoded, filter(differentiable, noisy), strict=True)
        errors = [0.5 * jnp.sum((restored - x) ** 2).astype(float) / len(x) for restored, x in pairs]
        return sum(errors, start=jnp.asarray(0.0))

    return error


def _decode(layer: Seen, biases: Biases, activation: ActivationFn, y: Array) -> tuple[Array, ...]:
    """Computes g(y) = a(Bᵀ y + c) for each floating-point input of the layer."""
    returned = layer.transpose(layer.companion)(y)
    continuing = [nu for nu, x in zip(returned, layer.inputs, strict=True) if differentiable(x)]
    return tuple(activation(nu + c[None]) for nu, c in zip(continuing, biases, strict=True))


def _of_step(layer: Seen, biases: dict[str, Biases], steps: Steps) -> Biases:
    """Returns c of the current step; ValueError if its shapes are not those of the layer's inputs."""
    at = tuple(layer.steps[axis] for axis in steps[layer.name])
    ours = [c.shape[len(at) :] for c in biases[layer.name]]
    theirs = [x.shape[1:] for x in layer.inputs if differentiable(x)]
    if ours != theirs:
        raise ValueError(
            f"layer {layer.name!r}: its decoder is for inputs of shapes {ours}, as the example has them, but on this "
            f"batch they have {theirs}: give an example of the shapes of the batches, whatever their size"
        )
    return tuple(c[at] for c in biases[layer.name])
