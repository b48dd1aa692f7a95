"""Trains with each placement of losses, and measures the noise of its forward gradient."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nl_jax as nl
from experiments.harness import data
from experiments.harness.sweep import Sets, with_validation
from nl_jax._core.numerics import mean_and_error
from nl_jax.base import Objective, Params
from nl_jax.objectives import LocalLosses
from nl_jax.theory import perturbation

TOP = "high"
WAYS: dict[str, dict[str, Any]] = {
    "one loss": {"blocks": [TOP]},
    "blocks": {},
    "blocks, groups": {"groups": 4},
    "blocks, patches": {"patches": True},
    "blocks, patches, groups": {"patches": True, "groups": 4},
}
RULES = ("forward gradient", "backprop")
SIGNS = nl.directions.rademacher()

Factory = Callable[[Objective], nl.GradientEstimator]
Estimate = Callable[..., Params]
"""`estimate(key, params, batch) -> grads`."""


class Settings(NamedTuple):
    """The settings of `Config` that the parts share."""

    convolutions: int
    num_samples: int
    batch_size: int
    updates: int
    rates: tuple[float, ...]
    seeds: int
    estimates: int


class Noise(NamedTuple):
    """Errors of single estimates at the initial parameters, [estimates] each.

    Attributes:
      squares: ‖δ̂ − δ‖²/‖δ‖² of the credit of all units.
      law: their expected value: the number of units that feed a loss minus one, over K.
      cosines: between an estimate of the weights' gradient and the exact gradient of the same losses.
    """

    squares: np.ndarray
    law: float
    cosines: np.ndarray

    @property
    def deviation(self) -> float:
        """Mean of the squares minus their law, in standard errors."""
        mean, error = mean_and_error(self.squares)
        return (mean - self.law) / error


class Result(NamedTuple):
    """One placement of losses: the noise, and by rule test accuracies at the best rate, [seeds]."""

    noise: Noise
    accuracy: dict[str, np.ndarray]
    rate: dict[str, float]


def trunk(side: int, convolutions: int) -> nl.Network:
    """Two or three convolutions of 3 × 3 pixels, for images of `side` × `side`."""
    conv = functools.partial(nl.connections.conv, 3, padding="SAME", weight_init=jax.nn.initializers.he_normal())
    relu = nl.activations.relu()
    return nl.network(
        nl.Layer("image", (side, side, 1)),
        nl.Layer("low", None, conv(channels=16, stride=1 if side < 16 else 2), relu),
        *[nl.Layer("mid", None, conv(channels=32, stride=2), relu)] * (convolutions - 2),
        nl.Layer(TOP, None, conv(channels=32, stride=2), relu),
    )


def units_per_loss(local: LocalLosses, network: nl.Network, outputs: int) -> dict[str, int]:
    """Number of units that feed each loss of a block, including those of its head."""
    counts, units = {}, 0
    for name, shape in network.shapes.items():
        if name != "image":
            units += math.prod(shape)
        if name in local.losses_per_example:
            counts[name], units = units // local.losses_per_example[name] + outputs, 0
    return counts


def learn(way: str, settings: Settings, dataset: data.Dataset) -> Result:
    """Measures one placement of losses, and trains with it by both rules."""
    side = math.isqrt(dataset.train.images.shape[1])
    sets = Sets(*((images.reshape(-1, side, side, 1), labels) for images, labels in with_validation(dataset)))
    network = trunk(side, settings.convolutions)
    local = nl.local_losses(network, nl.losses.cross_entropy, dataset.num_classes, **WAYS[way])
    forward = functools.partial(
        nl.forward_gradient, space=nl.spaces.nodes, num_samples=settings.num_samples, directions=SIGNS
    )
    factories: dict[str, Factory] = dict(zip(RULES, (forward, nl.backprop), strict=True))
    # One compiled program per rule both measures and trains, since compiling takes longer than running.
    rules = {rule: _compiled(nl.by_block(local, factory)) for rule, factory in factories.items()}
    units = units_per_loss(local, network, dataset.num_classes)
    batch = jax.tree.map(lambda x: jnp.asarray(x[: settings.batch_size]), sets.train)
    noise = measure(local, factories, rules, units, batch, settings)
    accuracy, rate = {}, {}
    for rule, estimate in rules.items():
        scores = train(local, estimate, sets, settings)  # [rates, seeds, (validation, test)]
        best = int(np.argmax(scores[..., 0].mean(axis=1)))
        accuracy[rule], rate[rule] = scores[best, :, 1], settings.rates[best]
    return Result(noise, accuracy, rate)


def _compiled(estimator: nl.GradientEstimator) -> Estimate:
    """`estimate(key, params, batch) -> grads` of an estimator without state."""

    @jax.jit
    def estimate(key: jax.Array, params: Params, batch: Any) -> Params:
        return estimator.estimate(key, estimator.init(key, params), params, batch)[0]

    return estimate


def measure(
    local: LocalLosses,
    factories: dict[str, Factory],
    rules: dict[str, Estimate],
    units: dict[str, int],
    batch: Any,
    settings: Settings,
) -> Noise:
    """Error of the credit of all units, its law, and the cosine of the weights' gradient, at the initial parameters."""
    params = local.init(jax.random.key(0))
    received = local.received(params, batch)

    def credit(factory: Factory, key: jax.Array) -> dict[str, Any]:
        """Credit by block, averaged over an example's losses."""
        of = {}
        for index, (name, part) in enumerate(local.parts(params).items()):
            made = factory(part.objective)
            at = jax.random.fold_in(key, index), made.init(key, part.params), part.params, received[name]
            delta = {layer: one.delta for layer, one in made.credit(*at).items() if jax.tree.leaves(part.params[layer])}
            of[name] = jax.tree.map(lambda x, name=name: x / local.losses_per_example[name], delta)
        return of

    exact = rules["backprop"](jax.random.key(0), params, batch)
    true = jax.jit(lambda key: credit(factories["backprop"], key))(jax.random.key(0))
    powers = {name: float(optax.tree.norm(delta, squared=True)) for name, delta in true.items()}

    @jax.jit
    def error(key: jax.Array) -> jax.Array:
        estimate = credit(factories["forward gradient"], key)
        return optax.tree.norm(optax.tree.sub(estimate, true), squared=True) / sum(powers.values())

    cosine = jax.jit(nl.diagnostics.cosine)
    keys = jax.random.split(jax.random.key(2), settings.estimates)
    squares = np.array([float(error(key)) for key in keys])
    cosines = np.array([float(cosine(rules["forward gradient"](key, params, batch), exact)) for key in keys])
    moments = [perturbation.independent(units[name], kurtosis=1) for name in powers]
    s = perturbation.together(moments, list(powers.values()))
    return Noise(squares, perturbation.relative_variance(s, settings.num_samples), cosines)


def train(local: LocalLosses, estimate: Estimate, sets: Sets, settings: Settings) -> np.ndarray:
    """Accuracies on validation and test images by rate and seed, [rates, seeds, 2]; −1 for diverged runs."""
    optimizer = optax.inject_hyperparams(optax.adam)(1.0)
    init, apply = jax.jit(local.init), jax.jit(local.apply)

    @jax.jit
    def moved(params: Params, state: Any, grads: Params) -> tuple[Params, Any]:
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state

    def accuracy(params: Params, images: np.ndarray, labels: np.ndarray) -> float:
        outputs = np.asarray(apply(params, images))
        return float(np.mean(outputs.argmax(axis=1) == labels)) if np.isfinite(outputs).all() else -1.0

    scores = np.empty((len(settings.rates), settings.seeds, 2))
    for (row, rate), seed in itertools.product(enumerate(settings.rates), range(settings.seeds)):
        params, rng = init(jax.random.key(seed)), np.random.default_rng(seed)
        state = optimizer.init(params)
        state.hyperparams["learning_rate"] = jnp.float32(rate)
        for key in jax.random.split(jax.random.key(seed), settings.updates):
            rows = rng.integers(len(sets.train[1]), size=settings.batch_size)
            batch = jax.tree.map(lambda x, rows=rows: x[rows], sets.train)
            params, state = moved(params, state, estimate(key, params, batch))
        scores[row, seed] = accuracy(params, *sets.validation), accuracy(params, *sets.test)
    return scores
