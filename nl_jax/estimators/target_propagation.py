"""Difference target propagation: on the way down it is targets that are sent, by decoders that are learned."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.nn import initializers

from nl_jax.base import ActivationFn, Array, Batch, GradientEstimator, Info, Key, Objective, Params, State
from nl_jax.checks import layered, positive_number, require_optimizer, takes, typed_key
from nl_jax.estimators.constrained.lagrangian import stationarity
from nl_jax.estimators.drawing import Initializer, continuous, drawn, normal_like
from nl_jax.estimators.example import shapes_of
from nl_jax.estimators.sweep import Layers, WayBack, sweep, transpose
from nl_jax.propagation import Site, local, record, survey
from nl_jax.tracing import if_mapped


class Decoders(NamedTuple):
    """What the decoders g(y) = a(Bᵀ y + c) have learned.

    Attributes:
      weights: B, a tree like the parameters, as feedback weights are.
      biases: c by layer, one for each of its floating-point inputs, of the shape of one example.
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
        shapes = jax.eval_shape(
            lambda params, batch: _decoded(objective, params, batch), params, shapes_of(example, params)
        )
        biases = jax.tree.map(lambda x: jnp.zeros(x.shape[1:], x.dtype), shapes)
        decoders = Decoders(drawn(weight_init, key, params), biases)
        return decoders, optimizer.init(decoders)

    def estimate(key: Key, state: State, params: Params, batch: Batch) -> tuple[Params, State, Info]:
        typed_key(key)
        decoders, inner = state
        losses, grads, credit, layers = sweep(objective, params, batch, _by_targets(decoders, activation, eta))
        axons = {name: site.axons for name, site in layers(params).items()}
        multipliers = {name: -z * len(z) for name, z in credit.items()}  # of each example's own loss
        _, residuals = report(params, axons, multipliers, batch)

        errors = jax.grad(_reconstruction)(decoders, layers, params, key, activation, sigma)
        updates, inner = optimizer.update(errors, inner, decoders)
        state = optax.apply_updates(decoders, updates), inner
        return grads, state, Info(jnp.mean(losses), jnp.int32(7), residuals)

    return GradientEstimator(init, estimate)


def _by_targets(decoders: Decoders, activation: ActivationFn, eta: float) -> Callable[[Layers], WayBack]:
    """(x_{l−1} − t_{l−1})/η from (x_l − t_l)/η."""

    def way_back(layers: Layers) -> WayBack:
        backward = layers(decoders.weights)

        def back(name: str, site: Site, z: Array, delta: Array) -> tuple[Array, ...]:
            if name not in decoders.biases:
                return transpose(site, site.inputs)(delta)
            _fit(name, decoders.biases[name], site.inputs)

            def decode(y: Array) -> tuple[Array, ...]:
                return _decode(backward[name], decoders.biases[name], activation, site.inputs, y)

            step = eta * len(z)  # z is of the mean loss, a target of the example's own
            decoded = zip(decode(site.axons), decode(site.axons - step * z), strict=True)
            displaced = ((from_axons - from_target) / step for from_axons, from_target in decoded)
            routed = transpose(site, site.inputs)(delta)  # nothing, where it goes to indices
            return tuple(next(displaced) if continuous(x) else r for x, r in zip(site.inputs, routed, strict=True))

        return back

    return way_back


def _reconstruction(
    decoders: Decoders, layers: Layers, params: Params, key: Key, activation: ActivationFn, sigma: float
) -> Array:
    """½‖g(f(x + σξ)) − (x + σξ)‖² of all decoders, the mean over examples."""
    forward, backward = layers(params), layers(decoders.weights)
    total = jnp.asarray(0.0)
    for k, (name, biases) in zip(jax.random.split(key, len(decoders.biases)), decoders.biases.items(), strict=True):
        site = forward[name]
        noise = normal_like(k, site.inputs)
        noisy = tuple(x + sigma * xi if continuous(x) else x for x, xi in zip(site.inputs, noise, strict=True))
        y = site.activation(site.connection(site.params, *noisy))
        decoded = _decode(backward[name], biases, activation, site.inputs, y)
        for restored, x in zip(decoded, filter(continuous, noisy), strict=True):
            total = total + (0.5 * jnp.sum((restored - x) ** 2) / len(x)).astype(total.dtype)
    return total


def _decode(
    site: Site, biases: tuple[Array, ...], activation: ActivationFn, inputs: tuple[Array, ...], y: Array
) -> tuple[Array, ...]:
    """g(y) = a(Bᵀ y + c), for each floating-point input of the layer."""
    returned = [nu for nu, x in zip(transpose(site, inputs)(y), inputs, strict=True) if continuous(x)]
    return tuple(activation(nu + c[None]) for nu, c in zip(returned, biases, strict=True))


def _fit(name: str, biases: tuple[Array, ...], inputs: tuple[Array, ...]) -> None:
    ours, theirs = [c.shape for c in biases], [x.shape[1:] for x in inputs if continuous(x)]
    if ours != theirs:
        raise ValueError(
            f"layer {name!r}: its decoder is for inputs of shapes {ours}, as the example has them, but on this batch "
            f"they have {theirs}: give an example of the shapes of the batches, whatever their size"
        )


def _decoded(objective: Objective, params: Params, batch: Batch) -> dict[str, tuple[Array, ...]]:
    """The floating-point inputs of layers that learn, where they depend on other layers' axons: what is decoded."""
    learned = local(objective)(params, batch).preactivations
    axons = record(objective)(params, batch)[1]
    reading: set[str] = set()

    def run(axons: dict[str, Array]) -> dict[str, tuple[Array, ...]]:
        sites = survey(objective, given=axons)(params, batch)[1]
        for name, site in sites.items():
            for x in site.inputs:
                if_mapped(x, functools.partial(reading.add, name))
        return {name: tuple(filter(continuous, site.inputs)) for name, site in sites.items()}

    jax.vmap(run, axis_size=1)(jax.tree.map(lambda x: x[None], axons))
    return {name: inputs for name, inputs in run(axons).items() if name in learned and name in reading}
