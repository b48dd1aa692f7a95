"""Trains all seeds with one estimator and measures them at intervals."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nl_jax as nl
from experiments.harness import data
from experiments.harness.failure import ExperimentError
from experiments.harness.results import Folder
from experiments.harness.users_own import factory_at, is_place

Estimator = Callable[[Any, int], nl.GradientEstimator]

SIGNS = nl.directions.rademacher()  # the distribution of least variance, and the cheapest to draw

ESTIMATORS: dict[str, Estimator] = {
    "backprop": lambda objective, samples: nl.backprop(objective),
    "lagrangian_backprop": lambda objective, samples: nl.lagrangian_backprop(objective),
    "node_perturbation": lambda objective, samples: nl.node_perturbation(
        objective, num_samples=samples, directions=SIGNS
    ),
    "weight_perturbation": lambda objective, samples: nl.weight_perturbation(
        objective, num_samples=samples, directions=SIGNS
    ),
    "forward_gradient_nodes": lambda objective, samples: nl.forward_gradient(
        objective, space=nl.spaces.nodes, num_samples=samples, directions=SIGNS
    ),
    "forward_gradient_weights": lambda objective, samples: nl.forward_gradient(
        objective, space=nl.spaces.weights, num_samples=samples, directions=SIGNS
    ),
}


_TIMED_UPDATES, _ROUNDS = 10, 9
"""At most as many updates in each of the rounds that are timed."""


class Settings(NamedTuple):
    """The settings of `Config` that the parts share."""

    hidden: tuple[int, ...]
    updates: int
    batch_size: int
    num_samples: int
    learning_rate: float
    seeds: int


@dataclass
class Curve:
    """One estimator's training, measured at intervals; arrays are [measurements, seeds] or [measurements]."""

    update: list[int] = dataclasses.field(default_factory=list)
    evaluations: list[int] = dataclasses.field(default_factory=list)
    train_loss: list[np.ndarray] = dataclasses.field(default_factory=list)
    test_accuracy: list[np.ndarray] = dataclasses.field(default_factory=list)
    cosine: list[np.ndarray] = dataclasses.field(default_factory=list)
    seconds_per_update: list[float] = dataclasses.field(default_factory=list)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yields the measurements one by one."""
        names = "update", "evaluations", "train_loss", "test_accuracy", "cosine"
        for values in zip(*(getattr(self, name) for name in names), strict=True):
            yield dict(zip(names, values, strict=True))

    @property
    def seconds(self) -> float:
        """Training time of all seeds without compilation and measurement: the median update's times the updates."""
        return float(np.median(self.seconds_per_update) * self.update[-1]) if self.seconds_per_update else 0.0


def train_with(name: str, settings: Settings, dataset: data.Dataset, folder: Folder, curve: Curve) -> dict[str, Any]:
    """Trains all seeds with one estimator, filling the curve as it goes; returns the curve and the recorded arrays."""
    pixels = dataset.train.images.shape[1]
    network = nl.mlp([pixels, *settings.hidden, dataset.num_classes], activation=nl.activations.tanh())
    objective = nl.supervised(network.apply, nl.losses.cross_entropy)
    if is_place(name):
        estimator = factory_at("--estimators", name)(objective)
    else:
        estimator = ESTIMATORS[name](objective, settings.num_samples)
    train, test = (jax.tree.map(jnp.asarray, (split.images, split.labels)) for split in (dataset.train, dataset.test))
    probe = jax.tree.map(lambda x: x[: settings.batch_size], train)
    key = jax.random.key(0)

    def train_loss(params: Any) -> jax.Array:
        return jnp.mean(objective(params, train))

    @jax.jit
    @jax.vmap
    def measure(params: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        correct = jnp.argmax(network.apply(params, test[0]), axis=-1) == test[1]
        measured = nl.diagnostics.measure(estimator, nl.backprop(objective), key, params, probe, num_estimates=4)
        return train_loss(params), jnp.mean(correct), measured.cosine

    def log(report: nl.Report) -> dict[str, str]:
        update = report.step
        loss, accuracy, cosine = map(np.asarray, measure(report.state.params))
        if not np.isfinite(loss).all():
            lost = ", ".join(map(str, np.flatnonzero(~np.isfinite(loss))))
            raise ExperimentError(
                f"{name}: the loss of seed {lost} is not finite after {update} updates; lower --learning-rate"
            )
        curve.update.append(update)
        curve.evaluations.append(update * cost)
        curve.train_loss.append(loss)
        curve.test_accuracy.append(accuracy)
        curve.cosine.append(cosine)
        folder.metric(
            estimator=name, update=update, evaluations=update * cost,
            train_loss=loss, test_accuracy=accuracy, cosine=cosine,
        )  # fmt: skip
        return {"test": f"{100 * accuracy.mean():.1f} %"}

    learner = nl.learner(estimator, optax.adam(settings.learning_rate))
    cost, curve.seconds_per_update = _cost_of_update(learner, network, probe, settings)
    history = None
    try:
        found = nl.restarts(
            learner, key, network.init, train, score=train_loss, num_restarts=settings.seeds,
            num_steps=settings.updates, batch_size=settings.batch_size,
            steps_per_dispatch=max(1, settings.updates // 25), log=log,
        )  # fmt: skip
        history = found.history
    except nl.Interrupted as stopped:
        history = stopped.history
        raise
    except nl.Diverged as stopped:
        history = stopped.history
        raise ExperimentError(f"{name}: {stopped} (--learning-rate)") from stopped
    finally:
        if history is not None:
            recorded = {"loss": history.loss, "evaluations": history.evaluations}
            folder.arrays(name.replace(":", "."), recorded)
    return {"curve": dataclasses.asdict(curve), "recorded": recorded}


def _cost_of_update(
    learner: nl.Learner, network: nl.Network, batch: Any, settings: Settings
) -> tuple[int, list[float]]:
    """Returns an update's evaluations, and repeated measurements of its seconds for all seeds at once.

    It is timed alone: in training, `fit` starts the next updates while the latest are being measured.
    """
    keys, updates = jax.random.split(jax.random.key(0), settings.seeds), min(_TIMED_UPDATES, settings.updates)

    @jax.jit
    def some(states: nl.LearnerState) -> tuple[nl.LearnerState, nl.Info]:
        def update(states: nl.LearnerState, number: jax.Array) -> tuple[nl.LearnerState, nl.Info]:
            step = lambda key, state: learner.step(jax.random.fold_in(key, number), state, batch)
            return jax.vmap(step)(keys, states)

        return jax.lax.scan(update, states, jnp.arange(updates))

    states = jax.jit(jax.vmap(lambda key: learner.init(key, network.init(key))))(keys)
    seconds = nl.diagnostics.timing.interleaved({"update": lambda: some(states)}, _ROUNDS, progress=False)["update"]
    return int(some(states)[1].evaluations[0, 0]), (seconds / updates).tolist()
