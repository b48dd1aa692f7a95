"""Trains and measures networks on digits: without batch normalisation, with it, and with noise on its γ and β."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

import nl_jax as nl
from experiments.harness.sweep import Scores, Sets, scores, sweep
from nl_jax.base import Params
from nl_jax.propagation import Site, interpret

OWN = "gamma", "beta"  # parameters of batch normalisation
ACTIVATIONS = {"sigmoid": nl.activations.sigmoid, "tanh": nl.activations.tanh}


class Scheme(NamedTuple):
    """Whether a network is normalised, and whether its γ and β get noise at every update."""

    normalised: bool
    jolted: bool = False


PLAIN = "no normalisation"
SCHEMES = {
    PLAIN: Scheme(normalised=False),
    "batch norm": Scheme(normalised=True),
    "batch norm, γ and β jolted": Scheme(normalised=True, jolted=True),
}


class Settings(NamedTuple):
    """The settings of `Config` that the parts share.

    Attributes:
      hidden: units of each hidden layer.
      activation: the hidden layers' activation, a name in `ACTIVATIONS`.
      jolt: largest absolute noise on γ and β.
      updates: parameter updates.
      rates, batch_size, seeds: as for `sweep`.
    """

    hidden: Sequence[int]
    activation: str
    jolt: float
    rates: Sequence[float]
    updates: int
    batch_size: int
    seeds: int


class Measured(NamedTuple):
    """Measurements at one moment; arrays from `sweep` are [rates, seeds, moments, …].

    Attributes:
      scores: the scores, normalised with the statistics of each whole set instead of a batch's.
      axons: mean and standard deviation of each unit's axons (activity) over the training images, by hidden layer,
        […, 2, units].
      received: the same statistics of the pre-activations.
      own: γ and β of normalised layers.
    """

    scores: Scores
    axons: dict[str, Any]
    received: dict[str, Any]
    own: dict[str, dict[str, Any]]


def _network(settings: Settings, normalised: bool, inputs: int) -> nl.Network:
    layers = [nl.Layer("input", inputs)]
    for l, units in enumerate(settings.hidden, start=1):
        dense = nl.connections.dense(bias=not normalised)
        layer = nl.Layer(f"hidden{l}", units, dense, ACTIVATIONS[settings.activation]())
        layers.append(nl.batch_norm(layer) if normalised else layer)
    return nl.network(*layers, nl.Layer("output", 10, nl.connections.dense()))


def trained(normalised: bool, sets: Sets, moments: Sequence[int], settings: Settings) -> Iterator[tuple[str, Measured]]:
    """Trains with every scheme that has batch normalisation, or with every scheme without."""
    network = _network(settings, normalised, sets.train[0].shape[1])
    estimator = nl.backprop(nl.supervised(network.apply, nl.losses.cross_entropy))
    score = scores(network.apply)

    def layer(site: Site, given: None) -> tuple[jax.Array, Any]:
        own = {name: value for name, value in site.params.items() if name in OWN}
        return site.axons(), (_moments(site.axons()), _moments(site.preactivation()), own)

    def measure(params: Params, sets: Sets) -> Measured:
        found = interpret(network.apply, layer)(params, sets.train[0])[1]
        del found["output"]
        return Measured(score(params, sets), *({name: of[i] for name, of in found.items()} for i in range(3)))

    for name, scheme in SCHEMES.items():
        if scheme.normalised == normalised:
            disturbance = [jolts(settings.jolt)] if scheme.jolted else []
            learner = functools.partial(_learner, estimator, disturbance)
            yield name, sweep(
                learner, network.init, measure, sets,
                rates=settings.rates, seeds=settings.seeds, batch_size=settings.batch_size, moments=moments,
            )  # fmt: skip


def _learner(estimator: nl.GradientEstimator, further: Sequence[optax.GradientTransformation], rate: Any) -> nl.Learner:
    return nl.learner(estimator, optax.chain(optax.sgd(rate), *further))


def _moments(values: jax.Array) -> jax.Array:
    """Returns means and standard deviations over the batch, [2, units]."""
    return jnp.stack([jnp.mean(values, axis=0), jnp.std(values, axis=0)])


def jolts(size: float) -> optax.GradientTransformation:
    """Adds uniform noise within ± size to γ and β at every update, and removes the noise of the previous update.

    The gradient is taken at the noisy parameters, but learning continues from the parameters without noise. All seeds
    get the same noise.
    """

    def init(params: Params) -> tuple[jax.Array, Params]:
        return jnp.int32(0), jax.tree.map(jnp.zeros_like, _own(params))

    def update(updates: Params, state: Any, params: Params | None = None) -> tuple[Params, Any]:
        del params
        count, before = state
        flat, unravel = ravel_pytree(before)
        key = jax.random.fold_in(jax.random.key(1), count)
        now = unravel(jax.random.uniform(key, flat.shape, flat.dtype, -size, size))
        own = jax.tree.map(lambda change, now, before: change + now - before, _own(updates), now, before)
        return {layer: {**of_layer, **own.get(layer, {})} for layer, of_layer in updates.items()}, (count + 1, now)

    return optax.GradientTransformation(init, update)


def _own(params: Params) -> Params:
    """Returns only γ and β, of the layers that have them."""
    return {layer: {name: of[name] for name in OWN} for layer, of in params.items() if "gamma" in of}
