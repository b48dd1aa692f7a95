"""Fits a linear neuron to random datasets of one size, by minimum norm and by gradient descent, beside theory."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nl_jax as nl
from nl_jax.theory import linear_neuron


class Settings(NamedTuple):
    """The settings of `Config` that the parts share."""

    inputs: int
    noise: float
    datasets: int
    steps: tuple[int, ...]


@dataclass(frozen=True)
class Point:
    """Measurements at one N: errors are [datasets], those of gradient descent [steps, datasets]."""

    examples: int
    law: float
    test_error: np.ndarray
    training_error: np.ndarray
    descent_test_error: np.ndarray
    descent_training_error: np.ndarray
    off_closed_form: float
    """Largest distance of descent's weights from their closed form, relative to the norm of descent's limit."""

    @property
    def deviation(self) -> float:
        """Mean test error minus the law, in standard errors."""
        standard_error = self.test_error.std(ddof=1) / len(self.test_error) ** 0.5
        return float((self.test_error.mean() - self.law) / standard_error)


def measure(N: int, settings: Settings) -> Point:
    """Measures at N examples, on all datasets at once."""
    D, noise = settings.inputs, settings.noise
    teacher = jnp.full(D, D**-0.5)
    # The Hessian's largest eigenvalue hardly exceeds 2/N (√N + √D)²; twice this rate would still be stable.
    rate = N / (2 * (N**0.5 + D**0.5) ** 2)

    def test_error(w: jax.Array) -> jax.Array:
        return jnp.sum((w - teacher) ** 2)  # E (wᵀx − w*ᵀx)² for x ~ N(0, I): no test set is needed

    @jax.jit
    @jax.vmap
    def on_one(key: jax.Array) -> tuple[jax.Array, ...]:
        inputs_key, noise_key = jax.random.split(key)
        x = jax.random.normal(inputs_key, (N, D))
        y = x @ teacher + noise * jax.random.normal(noise_key, (N,))
        training_error = functools.partial(linear_neuron.training_error, x=x, y=y)
        w = linear_neuron.minimiser(x, y)
        reached = _descend(x, y, rate, settings.steps)
        said = [linear_neuron.gradient_descent(x, y, jnp.zeros(D), rate, steps) for steps in settings.steps]
        off = jnp.max(jnp.linalg.norm(reached - jnp.stack(said), axis=1)) / jnp.linalg.norm(w)
        return test_error(w), training_error(w), jax.vmap(test_error)(reached), jax.vmap(training_error)(reached), off

    law = linear_neuron.expected_excess_error(N, D, noise=noise, signal=1.0)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(0), N), settings.datasets)
    test, training, descent_test, descent_training, off = map(np.asarray, on_one(keys))
    return Point(N, law, test, training, descent_test.T, descent_training.T, float(off.max()))


def _descend(x: jax.Array, y: jax.Array, rate: float, steps: Sequence[int]) -> jax.Array:
    """Weights after each of `steps` gradient descent steps from zero, [steps, D], computed step by step."""
    objective = nl.supervised(lambda w, x: x @ w, lambda output, target: (output - target) ** 2)
    learner = nl.learner(nl.backprop(objective), optax.sgd(rate))
    key = jax.random.key(0)  # unused: backprop draws no random numbers

    def step(state: nl.LearnerState, _: None) -> tuple[nl.LearnerState, None]:
        return learner.step(key, state, (x, y))[0], None

    state, reached = learner.init(key, jnp.zeros(x.shape[1])), []
    for more in np.diff(steps, prepend=0):
        state, _ = jax.lax.scan(step, state, length=int(more))
        reached.append(state.params)
    return jnp.stack(reached)
