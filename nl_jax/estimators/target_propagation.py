"""Difference target propagation: learned decoders send targets down."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.nn import initializers

from nl_jax.base import ActivationFn, Array, Batch, GradientEstimator, Info, Key, LayerCredit, Objective, Params, State
from nl_jax.checks import layered, positive_number, require_optimizer, takes, typed_key
from nl_jax.dependence import reached
from nl_jax.estimators.constrained.lagrangian import stationarity
from nl_jax.estimators.drawing import Initializer, continuous, drawn, normal_like, own_key
from nl_jax.estimators.example import shapes_of
from nl_jax.estimators.stacks import chosen, steps_of_their_own
from nl_jax.estimators.way_back import Back, Find, Run, Seen, beside, way_back
from nl_jax.propagation import Site, interpret, learning_layers, loops_around, record

Biases = tuple[Array, ...]

Steps = dict[str, tuple[int, ...]]
"""By layer, the loops over which its parameters are stacked, and its decoder with them."""


class Decoders(NamedTuple):
    """What the decoders g(y) = a(Bᵀ y + c) have learned.

    Attributes:
      weights: B, a tree like the parameters, as feedback weights are.
      biases: c by layer, one for each of its floating-point inputs, of the shape of one example; steps with parameters
        of their own first.
    """

    weights: Params
    biases: dict[str, tuple[Array, ...]]


def difference_target_propagation(
    objective: Objective,
    example: Batch,
    *,
    optimizer: optax.GradientTransformation,
    activation: ActivationFn = jnp.tanh,
    eta: float = 0.1,
    sigma: float = 0.1,
    weight_init: Initializer = initializers.lecun_normal(),
) -> GradientEstimator:
    """Each layer is given a target, and learns by its own distance to it (Lee et al. 2015).

    The highest target is a step down the example's loss, lower ones are decoded from those above:

        t_L = x_L − η ∂C/∂x_L
        t_{l−1} = x_{l−1} + g_l(t_l) − g_l(x_l),  g_l(y) = a(B_lᵀ y + c_l)
        ∂E/∂W_l ≈ ∂/∂W_l ‖x_l − t_l‖²/2η

    so that (x_l − t_l)/η takes the place of ∂C/∂x_l, on its scale. Where a layer's axons enter several layers the
    displacements add up; what the program does between its layers, and layers that have no parameters (under
    `nl.partition`, none of this part's), are differentiated as they are. B_lᵀ is the derivative of the layer's own
    connection with B for its parameters. As η → 0, a decoder that inverts its layer sends credit through the layer's
    inverse, a step like Gauss and Newton's and not of gradient descent (Meulemans et al. 2020): the two agree for
    orthogonal linear layers.

    Through time it is a layer's next step that its target is decoded from, by the one decoder of all steps (Manchev &
    Spratling 2020). Over depth, where parameters are stacked, every step has a decoder of its own.

    After each estimate the decoders learn to restore what was disturbed: B and c go down the gradient of
    ½‖g_l(f_l(x + σξ)) − (x + σξ)‖², x the layer's inputs.

    Args:
      objective: a per-example objective that takes `propagate`.
      example: a batch of which only shapes are read, arrays or `jax.ShapeDtypeStruct`, for the shapes of c.
        Other batches may be of other sizes.
      optimizer: what the decoders learn by, such as `optax.adam(1e-3)`.
      activation: a, the unit that decodes: the paper's tanh, for layers whose inputs lie between −1 and 1; for others
        `lambda nu: nu`, with which targets do not depend on η, or one with the range of the layers' inputs.
      eta: η, the length of the first step, above 0; in half precision no smaller than the default.
      sigma: σ, the noise on what is decoded, in units of axons, above 0.
      weight_init: scheme for the first B, of the shape of the forward weight.

    Returns:
      An estimator whose state is (`Decoders`, the optimizer's state). `info.residuals` is a `nl.KKT` of feedforward
      axons with multipliers −(x_l − t_l)/η: its `dual` says how far these are from ∂C/∂x_l.

    Raises:
      ValueError: if the objective takes no `propagate` or a setting is not as described; when run, for layers that
        share a name, whose axons are not examples, or that have inputs of another shape than on the example.

    >>> import jax, jax.numpy as jnp, nl_jax as nl, optax
    >>> net = nl.mlp([3, 4, 2], activation=nl.activations.tanh())
    >>> objective = nl.supervised(net.apply, nl.losses.cross_entropy)
    >>> params, batch = net.init(jax.random.key(0)), (jnp.ones([5, 3]), jnp.zeros(5, int))
    >>> estimator = difference_target_propagation(objective, batch, optimizer=optax.sgd(0.1))
    >>> state = estimator.init(jax.random.key(1), params)
    >>> grads, state, info = jax.jit(estimator.estimate)(jax.random.key(2), state, params, batch)
    >>> grads["hidden1"]["weight"].shape, list(info.residuals.dual)
    ((3, 4), ['hidden1', 'output'])
    """
    layered("difference_target_propagation", objective)
    positive_number("eta", eta)
    positive_number("sigma", sigma)
    require_optimizer(optimizer)
    takes("activation", activation, 1, "hand in jnp.tanh, lambda nu: nu or nl.activations.tanh()")
    report = stationarity(objective)

    def init(key: Key, params: Params) -> State:
        batch = shapes_of(example, params)
        own = steps_of_their_own(objective, params, batch)
        biases = {
            name: tuple(_no_bias(name, own[name], x) for x in shapes)
            for name, shapes in _decoded(objective, params, batch).items()
        }
        decoders = Decoders(drawn(weight_init, key, params), biases)
        return decoders, optimizer.init(decoders)

    def by_targets(decoders: Decoders, params: Params, batch: Batch) -> Run:
        back = _by_targets(activation, eta, steps_of_their_own(objective, params, batch))
        return way_back(objective, params, batch, back, companion=decoders.weights, extra=decoders.biases, credit=True)

    def estimate(key: Key, state: State, params: Params, batch: Batch) -> tuple[Params, State, Info]:
        typed_key(key)
        decoders, inner = state
        losses, grads, credits = by_targets(decoders, params, batch)
        axons = {name: layer.axons for name, layer in credits.items()}
        multipliers: dict[str, Any] = {name: layer.multipliers for name, layer in credits.items()}
        _, residuals = report(params, axons, multipliers, batch)

        def reconstruction(decoders: Decoders) -> Array:
            errors = beside(objective, _reconstruction(activation, sigma, steps_of_their_own(objective, params, batch)))
            found = errors(params, decoders.weights, batch, (decoders.biases, key))
            return sum((error.astype(float) for error in found.values()), start=jnp.asarray(0.0))

        updates, inner = optimizer.update(jax.grad(reconstruction)(decoders), inner, decoders)
        state = optax.apply_updates(decoders, updates), inner
        return grads, state, Info(jnp.mean(losses), jnp.int32(7), residuals)

    def credit(key: Key, state: State, params: Params, batch: Batch) -> dict[str, LayerCredit]:
        del key
        return by_targets(state[0], params, batch).credit

    return GradientEstimator(init, estimate, credit)


def _by_targets(activation: ActivationFn, eta: float, steps: Steps) -> Back:
    """(x_{l−1} − t_{l−1})/η from (x_l − t_l)/η."""

    def back(layer: Seen, biases: dict[str, Biases], z: Array, delta: Array) -> tuple[Array, ...]:
        routed = layer.transpose(layer.connection)(delta)
        if layer.name not in biases:
            return routed
        own = _of_step(layer, biases, steps)
        step_size = eta * len(z)  # z is of the mean loss, a target of the example's own
        to_axons, to_target = (_decode(layer, own, activation, y) for y in (layer.axons, layer.axons - step_size * z))
        displaced = ((x - t) / step_size for x, t in zip(to_axons, to_target, strict=True))
        # nothing is decoded where it goes to indices
        return tuple(next(displaced) if continuous(x) else r for x, r in zip(layer.inputs, routed, strict=True))

    return back


def _reconstruction(activation: ActivationFn, sigma: float, steps: Steps) -> Find:
    """½‖g(f(x + σξ)) − (x + σξ)‖² of a layer's decoder, the mean over examples and the sum over steps."""

    def error(layer: Seen, extra: tuple[dict[str, Biases], Key]) -> Array | None:
        biases, key = extra
        if layer.name not in biases:
            return None
        noise = normal_like(own_key(key, layer), layer.inputs)
        noisy = tuple(x + sigma * xi if continuous(x) else x for x, xi in zip(layer.inputs, noise, strict=True))
        y = layer.activation(layer.connection(*noisy))
        decoded = _decode(layer, _of_step(layer, biases, steps), activation, y)
        pairs = zip(decoded, filter(continuous, noisy), strict=True)
        errors = [0.5 * jnp.sum((restored - x) ** 2).astype(float) / len(x) for restored, x in pairs]
        return sum(errors, start=jnp.asarray(0.0))

    return error


def _decode(layer: Seen, biases: Biases, activation: ActivationFn, y: Array) -> tuple[Array, ...]:
    """g(y) = a(Bᵀ y + c), for each floating-point input of the layer."""
    returned = layer.transpose(layer.companion)(y)
    continuing = [nu for nu, x in zip(returned, layer.inputs, strict=True) if continuous(x)]
    return tuple(activation(nu + c[None]) for nu, c in zip(continuing, biases, strict=True))


def _no_bias(name: str, own: tuple[int, ...], inputs: Array) -> Array:
    return jnp.zeros(chosen(inputs.shape, own) + inputs.shape[loops_around(name) + 1 :], inputs.dtype)


def _of_step(layer: Seen, biases: dict[str, Biases], steps: Steps) -> Biases:
    """c of the step that is run; ValueError if they are not for the layer's inputs."""
    at = chosen(layer.steps, steps[layer.name])
    ours = [c.shape[len(at) :] for c in biases[layer.name]]
    theirs = [x.shape[1:] for x in layer.inputs if continuous(x)]
    if ours != theirs:
        raise ValueError(
            f"layer {layer.name!r}: its decoder is for inputs of shapes {ours}, as the example has them, but on this "
            f"batch they have {theirs}: give an example of the shapes of the batches, whatever their size"
        )
    return tuple(c[at] for c in biases[layer.name])


def _decoded(objective: Objective, params: Params, batch: Batch) -> dict[str, Biases]:
    """The floating-point inputs of layers that learn, where they depend on other layers' axons: what is decoded."""

    def layer(site: Site, given: Array | None) -> tuple[Array, Biases]:
        return site.axons() if given is None else given, tuple(filter(continuous, site.inputs))

    def inputs(params: Params, batch: Batch, axons: Mapping[str, Array]) -> dict[str, Biases]:
        return interpret(objective, layer)(params, batch, axons)[1]

    axons = jax.eval_shape(lambda params, batch: record(objective)(params, batch)[1], params, batch)
    learned, sources = learning_layers(objective, params, batch), reached(inputs, params, batch, axons)
    reading = [name for name in learned if any(2 in found for found in sources[name])]
    shapes = jax.eval_shape(inputs, params, batch, axons)
    return {name: shapes[name] for name in reading}
