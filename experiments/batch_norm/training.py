"""Trains a deep sigmoid network on digits by one rule, with or without batch normalisation."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nl_jax as nl
from experiments.harness import data


class Scheme(NamedTuple):
    """Whether a network is normalised, and in which order it learns its parameters."""

    normalised: bool
    stages: tuple[tuple[str, ...], ...] = (("*",),)
    """Patterns of the parameters that each stage of a step learns."""
    credit: Callable[[], nl.spaces.Credit] = nl.spaces.per_batch_credit
    """Credit of node perturbation: noise is judged by the loss of the whole batch or of its own example."""


SCHEMES = {
    "no normalisation": Scheme(normalised=False),
    "batch norm, all parameters at once": Scheme(normalised=True),
    "batch norm, first γ and β, then weights": Scheme(normalised=True, stages=(("*/gamma", "*/beta"), ("*",))),
    "no normalisation, credit by example": Scheme(normalised=False, credit=nl.spaces.per_example_credit),
}

RULES: dict[str, tuple[str, ...]] = {"backprop": tuple(SCHEMES)[:3], "node perturbation": tuple(SCHEMES)}


class Settings(NamedTuple):
    """The settings of `Config` that the parts share."""

    hidden: tuple[int, ...]
    updates: int
    batch_size: int
    num_samples: int
    seeds: int


@dataclass
class Curve:
    """One scheme's training at one learning rate; arrays are [measurements, seeds] or [measurements]."""

    rule: str
    scheme: str
    learning_rate: float
    evaluations: int = 0
    update: list[int] = dataclasses.field(default_factory=list)
    train_loss: list[np.ndarray] = dataclasses.field(default_factory=list)
    test_accuracy: list[np.ndarray] = dataclasses.field(default_factory=list)


def _network(settings: Settings, normalised: bool, dataset: data.Dataset) -> nl.Network:
    dense = nl.connections.dense
    layers = [nl.Layer("input", dataset.train.images.shape[1])]
    for l, units in enumerate(settings.hidden, start=1):
        layer = nl.Layer(f"hidden{l}", units, dense(bias=not normalised), nl.activations.sigmoid())
        layers.append(nl.batch_norm(layer) if normalised else layer)
    return nl.network(*layers, nl.Layer("output", dataset.num_classes, dense()))


def train(rule: str, scheme: str, rate: float, settings: Settings, dataset: data.Dataset) -> Curve:
    """Trains all seeds at one learning rate; the curve of a diverged run ends early."""
    normalised, stages, credit = SCHEMES[scheme]
    network = _network(settings, normalised, dataset)
    objective = nl.supervised(network.apply, nl.losses.cross_entropy)

    def estimator(objective: Any) -> nl.GradientEstimator:
        if rule == "backprop":
            return nl.backprop(objective)
        signs = nl.directions.rademacher()
        return nl.node_perturbation(objective, num_samples=settings.num_samples, credit=credit(), directions=signs)

    learner = nl.alternating(objective, [nl.Stage(patterns, estimator, optax.sgd(rate)) for patterns in stages])
    train, test = (jax.tree.map(jnp.asarray, (split.images, split.labels)) for split in (dataset.train, dataset.test))
    whole = len(train[1]) // settings.batch_size
    batches = train[0][: whole * settings.batch_size].reshape(whole, settings.batch_size, -1)

    def inferring(params: Any) -> Any:
        return nl.normalisation.inference(network.apply, nl.normalisation.population(network.apply)(params, batches))

    def train_loss(params: Any) -> jax.Array:
        return jnp.mean(nl.losses.cross_entropy(inferring(params)(params, train[0]), train[1]))

    @jax.jit
    @jax.vmap
    def measure(params: Any) -> tuple[jax.Array, jax.Array]:
        correct = jnp.argmax(inferring(params)(params, test[0]), axis=-1) == test[1]
        return train_loss(params), jnp.mean(correct)

    curve = Curve(rule, scheme, rate)

    def log(report: nl.Report) -> dict[str, str]:
        loss, accuracy = map(np.asarray, measure(report.state.params))
        curve.update.append(report.step)
        curve.train_loss.append(loss)
        curve.test_accuracy.append(accuracy)
        return {"test": f"{100 * accuracy.mean():.1f} %"}

    try:
        history = nl.restarts(
            learner, jax.random.key(0), network.init, train, num_restarts=settings.seeds, num_steps=settings.updates,
            batch_size=settings.batch_size, steps_per_dispatch=max(1, settings.updates // 20), log=log,
            score=lambda params: jnp.mean(objective(params, train)),
        ).history  # fmt: skip
    except nl.Diverged as lost:
        history = lost.history
        curve.train_loss[-1] = np.full(settings.seeds, np.inf)
    curve.evaluations = int(history.evaluations[0].sum())
    return curve
