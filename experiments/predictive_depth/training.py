"""Transfer of learning rates from shallow to deep networks trained by predictive coding."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm.auto import tqdm

import nl_jax as nl
from experiments.harness.data import digits
from experiments.harness.sweep import sweep
from nl_jax.base import Params

SCALINGS: Mapping[str, Callable[[int, int, int], Any]] = {
    "depth-μP": nl.scalings.depth_mup,
    "standard": nl.scalings.standard,
}


class Task(NamedTuple):
    """The training data: images as rows and labels as one-hot vectors."""

    train: tuple[np.ndarray, np.ndarray]


class Curve(NamedTuple):
    """Losses of one network after a fixed number of updates at every rate.

    Attributes:
      scaling: "depth-μP" or "standard".
      layers: number of layers with weights.
      rates: learning rates of Adam, [rates].
      inference_rate: the tried step size of inference with the lowest loss at its best rate.
      loss: half the squared error, mean over training images, [rates, seeds]; not finite where inference or learning
        diverged.
    """

    scaling: str
    layers: int
    rates: np.ndarray
    inference_rate: float
    loss: np.ndarray

    @property
    def best(self) -> np.ndarray:
        """log₂ of the rate of lowest loss, by seed, interpolated by a parabola through three rates."""
        return np.array([lowest_of_parabola(np.log2(self.rates), losses) for losses in self.loss.T])

    @property
    def least(self) -> np.ndarray:
        """The loss at the best of the rates, by seed."""
        return np.nanmin(np.where(np.isfinite(self.loss), self.loss, np.nan), axis=0)


def lowest_of_parabola(x: np.ndarray, losses: np.ndarray) -> float:
    """Minimum of the parabola through the lowest of the log losses and its two neighbours.

    At an end of x, or beside a loss that is not finite, it is the x of the lowest loss.
    """
    known = np.where(np.isfinite(losses), losses, np.inf)
    i = int(np.argmin(known))
    if i in (0, len(x) - 1) or not np.isfinite(known[i - 1 : i + 2]).all():
        return float(x[i])
    left, low, right = np.log(known[i - 1 : i + 2])
    bend = left - 2 * low + right
    return float(x[i] + (x[i + 1] - x[i]) * 0.5 * (left - right) / bend) if bend > 0 else float(x[i])


def curves(
    depths: Sequence[int],
    rates: Sequence[float],
    inference_rates: Sequence[float],
    *,
    units: int,
    updates: int,
    batch_size: int,
    steps: int,
    seeds: int,
) -> list[Curve]:
    """Trains on digits by ePC and Adam, at every depth and rate, under both scalings."""
    images, labels = digits().train
    task = Task((images, np.eye(10, dtype=np.float32)[labels]))
    found = []
    todo = [(scaling, layers) for scaling in SCALINGS for layers in depths]
    for scaling, layers in tqdm(todo, unit="network"):
        tanh = nl.activations.tanh()
        network = nl.residual(64, units, 10, layers=layers, activation=tanh, scaling=SCALINGS[scaling])
        objective = nl.supervised(network.apply, nl.losses.half_squared_error)

        def measure(params: Params, task: Task, objective: Any = objective) -> jax.Array:
            return jnp.mean(objective(params, task.train))

        init = jax.jit(network.init)
        tried = []
        for eta in inference_rates:
            estimator = nl.error_predictive_coding(objective, optimizer=optax.sgd(eta), num_steps=steps, tolerance=0.0)
            loss = sweep(
                functools.partial(_by_adam, estimator), init, measure, task,
                rates=rates, seeds=seeds, batch_size=batch_size, moments=[updates],
            )[..., 0]  # fmt: skip
            tried.append(Curve(scaling, layers, np.asarray(rates), eta, np.asarray(loss)))
        found.append(min(tried, key=_at_best))
    return found


def _by_adam(estimator: nl.GradientEstimator, rate: Any) -> nl.Learner:
    return nl.learner(estimator, optax.adam(rate))


def _at_best(curve: Curve) -> float:
    """The lowest mean over seeds; infinite if a run diverged at every rate."""
    mean = curve.loss.mean(axis=1)
    return float(np.min(np.where(np.isfinite(mean), mean, np.inf)))
