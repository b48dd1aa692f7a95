"""Teaches students and measures learning curves and contractions, beside their theory."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nl_jax as nl
from nl_jax.theory import student_teacher as theory


class Rule(NamedTuple):
    """A learning rule and its theory."""

    estimator: Callable[[nl.base.Objective, float], nl.GradientEstimator]
    """`estimator(objective, sigma)`."""
    recursion: Callable[[int, int, float], theory.Recursion]
    """`recursion(M, N, sigma)`."""


RULES = {
    "backprop": Rule(
        lambda objective, sigma: nl.backprop(objective),
        lambda M, N, sigma: theory.backprop(N),
    ),
    "node perturbation": Rule(
        lambda objective, sigma: nl.node_perturbation(objective, sigma=sigma),
        lambda M, N, sigma: theory.node_perturbation(M, N, sigma=sigma),
    ),
    "weight perturbation": Rule(
        lambda objective, sigma: nl.weight_perturbation(objective, sigma=sigma),
        lambda M, N, sigma: theory.weight_perturbation(M, N, sigma=sigma),
    ),
}

POINTS = 12  # per learning curve
FAR = 100.0  # scale of the teacher where the contraction is measured, so that the error stays far above σ's floor


@dataclass(frozen=True)
class Measurement:
    """Measurements of one rule at one M and N, and the theory."""

    rule: str
    M: int
    N: int
    recursion: theory.Recursion
    steps: np.ndarray
    """Steps at which the learning curve is measured, [points]."""
    errors: np.ndarray
    """‖Δ‖²/MN at these steps, at the theory's best rate, [points, runs]."""
    rates: np.ndarray
    """η of the other runs, [runs]."""
    contraction: np.ndarray
    """Mean of ‖Δ′‖²/‖Δ‖² − 1 over the steps of these runs, [runs]."""

    def predicted(self, steps: np.ndarray) -> np.ndarray:
        """E‖Δ_t‖²/MN by theory, with initial value 1."""
        size = self.M * self.N
        return self.recursion.curve(size, self.recursion.best_rate, steps) / size

    @property
    def curve_deviations(self) -> np.ndarray:
        """Mean error minus theory, in standard errors, [points]."""
        standard_error = self.errors.std(axis=1, ddof=1) / self.errors.shape[1] ** 0.5
        return (self.errors.mean(axis=1) - self.predicted(self.steps)) / standard_error

    @functools.cached_property
    def log_best_rate(self) -> tuple[float, float]:
        """Log of the rate with the largest contraction, and its standard error.

        The contraction is −2 a η + C η². Divided by η it is a straight line, whose slope and intercept give a/C.
        """
        scale = self.recursion.best_rate  # makes the numbers about 1; the result does not depend on it
        (slope, intercept), covariance = np.polyfit(
            self.rates / scale, self.contraction / self.rates * scale, 1, cov=True
        )
        gradient = np.array([-1 / slope, 1 / intercept])
        return float(np.log(-intercept / (2 * slope) * scale)), float((gradient @ covariance @ gradient) ** 0.5)

    @property
    def rate_deviation(self) -> float:
        """Log of the measured best rate minus log of the theory's, in standard errors."""
        value, error = self.log_best_rate
        return (value - float(np.log(self.recursion.best_rate))) / error


def measure(name: str, M: int, N: int, *, sigma: float, runs: int, time: float) -> Measurement:
    """Measures one rule at one M and N.

    Args:
      name: of the rule.
      M, N: numbers of outputs and inputs.
      sigma: standard deviation of the noise.
      runs: students on the learning curve, and as many for the contraction.
      time: length of the learning curve, in steps times best rate.
    """
    rule = RULES[name]
    recursion = rule.recursion(M, N, sigma)
    every = max(1, round(time * recursion.contraction / POINTS))
    network = nl.mlp([N, M], activation=lambda nu: nu, bias=False)
    estimator = rule.estimator(nl.supervised(network.apply, nl.losses.half_squared_error), sigma)

    @jax.jit
    @jax.vmap
    def learn(key: jax.Array, rate: jax.Array, teacher: jax.Array) -> tuple[jax.Array, jax.Array]:
        """One student: ‖Δ‖² at every point, and the mean of ‖Δ′‖²/‖Δ‖² − 1."""
        learner = nl.learner(estimator, optax.sgd(rate))

        def error(state: nl.LearnerState) -> jax.Array:
            return jnp.sum((state.params["output"]["weight"] - teacher) ** 2)

        def step(carry: tuple[nl.LearnerState, jax.Array], _: None) -> tuple[Any, None]:
            state, total = carry
            inputs_key, noise_key = jax.random.split(jax.random.fold_in(key, state.step))
            x = jax.random.normal(inputs_key, (1, N))
            after, _info = learner.step(noise_key, state, (x, x @ teacher))
            return (after, total + (error(after) / error(state) - 1)), None

        def stretch(carry: tuple[nl.LearnerState, jax.Array], _: None) -> tuple[Any, jax.Array]:
            carry, _ = jax.lax.scan(step, carry, length=every)
            return carry, error(carry[0])

        state = learner.init(key, {"output": {"weight": jnp.zeros((N, M))}})
        (_, total), errors = jax.lax.scan(stretch, (state, jnp.zeros(())), length=POINTS)
        return errors, total / (POINTS * every)

    best = recursion.best_rate
    rates = 2 * best * (1 + np.arange(runs)) / runs
    teachers = np.random.default_rng((M, N)).choice([-1.0, 1.0], (2 * runs, N, M))
    teachers[runs:] *= FAR
    keys = jax.random.split(jax.random.fold_in(jax.random.key(M), N), 2 * runs)
    at = (jnp.asarray(values, jnp.float32) for values in ([best] * runs + list(rates), teachers))
    errors, contraction = (np.asarray(values, np.float64) for values in learn(keys, *at))
    steps = every * (1 + np.arange(POINTS))
    return Measurement(name, M, N, recursion, steps, errors[:runs].T / (M * N), rates, contraction[runs:])
