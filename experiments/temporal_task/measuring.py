"""Measures students' errors in trials of many steps, beside their expected values."""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nl_jax as nl
from nl_jax.theory import temporal

BLOCKS = 32  # of trials over which errors are averaged, per curve
LAST = 8  # blocks that define the final error
RELAXATIONS = 8  # e-folds of the weights' learning curve per run, which leave less than 1/1000 of the initial error


INPUTS = {"fresh": temporal.fresh, "repeated": temporal.repeated}
RULES: dict[str, tuple[Callable[..., nl.GradientEstimator], Any]] = {
    "node perturbation": (nl.node_perturbation, temporal.node_perturbation),
    "weight perturbation": (nl.weight_perturbation, temporal.weight_perturbation),
}


@dataclass(frozen=True)
class Setting:
    """One task: the kind of inputs, T, N_eff and the noise."""

    inputs: str
    steps: int
    dimension: int
    sigma: float
    irreducible: float

    @property
    def trials(self) -> temporal.Trials:
        """The task in the form that the theory takes."""
        return INPUTS[self.inputs](self.steps, self.dimension)

    def sigma_of(self, rule: str) -> float:
        """σ of a rule, of equal strength at the outputs for both rules."""
        return temporal.equal_sigma(self.sigma, self.trials) if rule == "node perturbation" else self.sigma


@dataclass(frozen=True)
class Curve:
    """Excess errors E − E_opt of one rule in one setting.

    Attributes:
      trials: last trial of each block, [blocks].
      measured: mean over each block, [blocks, students].
      law: its expected value, [blocks].
    """

    trials: np.ndarray
    measured: np.ndarray
    law: np.ndarray

    @property
    def final(self) -> np.ndarray:
        """Mean over the last blocks, [students]."""
        return self.measured[-LAST:].mean(axis=0)

    @property
    def final_law(self) -> float:
        """Expected value of `final`."""
        return float(self.law[-LAST:].mean())

    @property
    def deviations(self) -> np.ndarray:
        """Measured minus law in standard errors, for each block and, last, for the final error, [blocks + 1]."""
        errors = np.concatenate([self.measured, self.final[None]])
        off = errors.mean(axis=1) - np.append(self.law, self.final_law)
        return off / standard_error(errors)


Results = Mapping[tuple[Setting, str], Curve]


def output(weight: jax.Array, x: jax.Array, propagate: nl.base.Propagate = nl.propagation.feedforward) -> jax.Array:
    """y_t = x_t W at every step: [batch, T, N] -> [batch, T, M]."""
    return propagate("output", lambda weight, x: x @ weight, nl.activations.identity(), weight, x)


def measure(setting: Setting, rule: str, *, outputs: int, inputs: int, students: int, relative_rate: float) -> Curve:
    """Students' learning curves, and the expected one.

    Args:
      setting: the task.
      rule: a name in `RULES`.
      outputs, inputs: M and N.
      students: their number.
      relative_rate: learning rate in units of weight perturbation's best rate.
    """
    T, n, M = setting.steps, setting.dimension, outputs
    law, weights = RULES[rule][1](setting.trials, M), temporal.weight_perturbation(setting.trials, M)
    rate, sigma = relative_rate * temporal.best_rate(weights), setting.sigma_of(rule)
    per_block = math.ceil(RELAXATIONS / (rate * (2 - relative_rate)) / BLOCKS)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(list(RULES).index(rule)), T), n)
    measured = _students(rule, T, inputs, M)(
        jax.random.split(key, students), jnp.arange(inputs) < n, setting.inputs == "repeated",
        rate, (2 / (M * n)) ** 0.5 / sigma, (2 * setting.irreducible / M) ** 0.5 / sigma, per_block,
    )  # fmt: skip
    trials = np.arange(1, BLOCKS * per_block + 1)
    curve = temporal.learning_curve(law, trials, 1.0, rate=rate, sigma=sigma, irreducible=setting.irreducible)
    return Curve(
        trials=trials[per_block - 1 :: per_block],
        measured=sigma**2 * np.asarray(measured, float).T,
        law=np.asarray(curve).reshape(BLOCKS, per_block).mean(axis=1),
    )


@functools.cache
def _students(rule: str, T: int, N: int, M: int) -> Callable[..., jax.Array]:
    """Mean excess errors of blocks of trials, [students, blocks]; compiled once for all settings but T.

    Weights and targets are in units of σ and errors in units of σ², which changes nothing in a linear network.
    """
    objective = nl.supervised(output, lambda y, target: nl.losses.half_squared_error(y, target) / T)
    estimator = RULES[rule][0](objective, sigma=1.0)

    def student(
        key: jax.Array, active: jax.Array, repeated: bool, rate: float, start: float, residual: float, per_block: int
    ) -> jax.Array:
        learner = nl.learner(estimator, optax.sgd(rate))
        first, walk = jax.random.split(key)
        # Columns of a rotation, so that Σ_t x_t x_tᵀ/T = I in the active dimensions.
        same = T**0.5 * jnp.linalg.qr(jax.random.normal(first, (T, T)))[0]
        same = jnp.pad(same, ((0, 0), (0, max(0, N - T))))[:, :N]

        def trial(t: jax.Array, at: tuple[nl.LearnerState, jax.Array]) -> tuple[nl.LearnerState, jax.Array]:
            state, total = at
            noise, data = jax.random.split(jax.random.fold_in(walk, t))
            x, d = jnp.split(jax.random.normal(data, (T, N + M)), [N], axis=1)
            x = jnp.where(repeated, same, x) * active
            state, _ = learner.step(noise, state, (x[None], residual * d[None]))
            return state, total + jnp.sum(active[:, None] * state.params**2) / 2

        def block(state: nl.LearnerState, index: jax.Array) -> tuple[nl.LearnerState, jax.Array]:
            begin = index * per_block
            state, total = jax.lax.fori_loop(begin, begin + per_block, trial, (state, jnp.zeros(())))
            return state, total / per_block

        # The teacher is W* = 0: only the distance from it matters.
        weight = start * jnp.broadcast_to(active[:, None], (N, M)).astype(float)
        return jax.lax.scan(block, learner.init(first, weight), jnp.arange(BLOCKS))[1]

    return jax.jit(jax.vmap(student, in_axes=(0, *[None] * 6)))


def standard_error(values: np.ndarray) -> np.ndarray:
    """Standard error of the mean over the last axis."""
    return values.std(axis=-1, ddof=1) / values.shape[-1] ** 0.5
