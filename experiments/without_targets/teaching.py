"""Teaches features by one method and scores what they are good for."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import nl_jax as nl
from experiments.harness import data
from experiments.harness.failure import ExperimentError
from experiments.without_targets.ladder import METHODS
from experiments.without_targets.lesson import Images, Settings, Teaching, seen


class Scores(NamedTuple):
    """Results of one method; test accuracies are [seeds]."""

    readout: np.ndarray
    class_mean: np.ndarray
    answers: np.ndarray | None
    evaluations: int
    weights: np.ndarray
    """Weights of the hidden layer, [seeds, pixels, units]."""
    seen: str
    """What can reach the update of these weights."""


def teach(name: str, dataset: data.Dataset, settings: Settings, *, seeds: int, batch_size: int) -> Scores:
    """Trains all seeds by one method, then scores what they learned.

    Raises:
      ExperimentError: if learning diverges or features are not finite.
    """
    train, test = map(jnp.asarray, _of_one_length(dataset))
    teaching = METHODS[name](settings, Images(train, jnp.asarray(dataset.train.labels), dataset.num_classes))
    params, evaluations = _taught(name, teaching, settings.updates, seeds, batch_size)
    seen_features, new_features = (np.asarray(jax.vmap(teaching.features, (0, None))(params, x)) for x in (train, test))
    if not np.isfinite(new_features).all():
        raise ExperimentError(f"{name}: features are no longer finite; try a larger --batch-size")
    judged = [
        _judged(*features, dataset.train.labels, dataset.test.labels)
        for features in zip(seen_features, new_features, strict=True)
    ]
    readout, class_mean = np.array(judged).T
    answers = None
    if teaching.answers is not None:
        answered = np.asarray(jax.vmap(teaching.answers, (0, None))(params, test))
        answers = np.mean(answered == dataset.test.labels, axis=1)
    weights = np.asarray(params["hidden1"]["weight"])[:, -train.shape[1] :]
    return Scores(readout, class_mean, answers, evaluations, weights, seen(teaching))


def _of_one_length(dataset: data.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Training and test images, centred by the training mean and scaled to the mean norm of the training images."""
    mean = dataset.train.images.mean(axis=0, keepdims=True)
    train, test = dataset.train.images - mean, dataset.test.images - mean
    length = np.linalg.norm(train, axis=1).mean()
    return tuple(length * x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, test))


def _taught(name: str, teaching: Teaching, updates: int, seeds: int, batch_size: int) -> tuple[Any, int]:
    """The params of all seeds, stacked, and the number of objective evaluations per seed."""
    key = jax.random.key(0)
    if teaching.lesson is None:
        return jax.vmap(teaching.init)(jax.random.split(key, seeds)), 0
    factory, program, batch, optimizer, _ = teaching.lesson
    try:
        found = nl.restarts(
            nl.learner(factory(program), optimizer), key, teaching.init, batch, num_restarts=seeds,
            num_steps=updates, batch_size=batch_size, steps_per_dispatch=max(1, updates // 20),
            score=lambda params: jnp.zeros(()),  # all runs count; none is selected
        )  # fmt: skip
    except nl.Diverged as lost:
        raise ExperimentError(f"{name}: {lost}") from lost
    return found.states.params, int(found.history.evaluations[0].sum())


def _judged(features: np.ndarray, new: np.ndarray, labels: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    """Test accuracy of a linear read-out of standardised features, and of the nearest class mean."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import NearestCentroid
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # on so few columns, threads mostly wait for each other, many times longer
        readout = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(features, labels)
    return readout.score(new, true), NearestCentroid().fit(features, labels).score(new, true)
