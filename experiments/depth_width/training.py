"""Trains networks of equal numbers of parameters, each at its best rate."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import optax

import nl_jax as nl
from experiments.harness import data, temporal_tasks
from experiments.harness.failure import ExperimentError
from experiments.harness.sweep import Scores, Sets, lowest, scores, sweep, with_validation

OUTPUTS = 10
MOMENTS = 40  # number of times at which networks are scored, spaced geometrically


class Settings(NamedTuple):
    """The settings of `Config` that training takes."""

    rates: tuple[float, ...]
    updates: int
    batch_size: int
    seeds: int


class Shape(NamedTuple):
    """A network's hidden layers, and the number of its parameters."""

    depth: int
    width: int
    parameters: int


class Stopped(NamedTuple):
    """One network at the rate and at the moment of the least validation loss; arrays are [seeds].

    Attributes:
      task: "digits" or "MNIST-1D".
      budget: the requested number of parameters.
      shape: shape of its hidden layers.
      rate: learning rate.
      updates: number of updates before it was stopped.
      train_loss, test_loss: mean cross entropy in nats.
      test_error: fraction of wrong answers.
    """

    task: str
    budget: int
    shape: Shape
    rate: float
    updates: np.ndarray
    train_loss: np.ndarray
    test_loss: np.ndarray
    test_error: np.ndarray


def digits() -> Sets:
    """Returns the digits, standardised like MNIST-1D: with one mean and deviation for all pixels."""
    sets = with_validation(data.digits())
    mean, deviation = sets.train[0].mean(), sets.train[0].std()
    return Sets(*(((images - mean) / deviation, labels) for images, labels in sets))


def mnist_1d() -> Sets:
    """Returns MNIST-1D as vectors."""
    task = temporal_tasks.mnist_1d(seed=0, num_validation=1000)
    return Sets(*((x[:, :, 0], labels) for x, labels in (task.train, task.validation, task.test)))


def shape(inputs: int, depth: int, budget: int) -> Shape:
    """Returns the width at which a network of the given depth comes nearest to the number of parameters.

    Raises:
      ExperimentError: if even a width of 1 has too many parameters.
    """

    def parameters(width: int) -> int:
        return (inputs + 1) * width + (depth - 1) * (width + 1) * width + (width + 1) * OUTPUTS

    if parameters(1) > budget:
        raise ExperimentError(
            f"--parameters must be at least {parameters(1)} for {depth} hidden layers and {inputs} inputs, got {budget}"
        )
    width = next(width for width in range(1, budget) if parameters(width + 1) > budget)
    nearest = min(width, width + 1, key=lambda width: abs(parameters(width) - budget))
    return Shape(depth, nearest, parameters(nearest))


def taught(task: str, sets: Sets, budget: int, of: Shape, settings: Settings) -> Stopped:
    """Trains a network of this shape at every rate; returns it at the best rate and moment."""
    network = nl.mlp([sets.train[0].shape[1], *[of.width] * of.depth, OUTPUTS], activation=nl.activations.tanh())
    estimator = nl.backprop(nl.supervised(network.apply, nl.losses.cross_entropy))
    moments = np.unique(np.geomspace(1, settings.updates, MOMENTS).round().astype(int))
    found = sweep(
        lambda rate: nl.learner(estimator, optax.sgd(rate)), network.init, scores(network.apply), sets,
        rates=settings.rates, seeds=settings.seeds, batch_size=settings.batch_size, moments=moments.tolist(),
    )  # fmt: skip
    return stopped(task, budget, of, settings.rates, moments, found)


def stopped(task: str, budget: int, of: Shape, rates: Sequence[float], moments: np.ndarray, found: Scores) -> Stopped:
    """Returns each seed's results where its validation loss is least, at the rate that validation chooses."""
    validation = found.loss["validation"]
    best = lowest(validation.min(axis=-1))
    at = validation[best].argmin(axis=-1)
    seeds = np.arange(len(at))
    train_loss, test_loss, test_error = (
        values[best, seeds, at] for values in (found.loss["train"], found.loss["test"], found.error["test"])
    )
    return Stopped(task, budget, of, rates[best], moments[at], train_loss, test_loss, test_error)
