"""Measures a linear student that sees B examples per step, beside its law."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nl_jax as nl
from nl_jax._core.numerics import mean_and_error
from nl_jax.theory import student_teacher

OUTPUTS = 10  # of the linear student: with more outputs its error varies less between runs
FRACTIONS = 0.25, 0.5, 1.0, 1.5, 1.9  # rates relative to the best one, at which one step of the student is measured
REDUCTION = 1000.0  # of the student's error


class Student(NamedTuple):
    """The linear student with B examples per step.

    Attributes:
      law: of its error.
      errors: ‖Δ‖² after 0, 1, 2 … steps at fractions of the best rate, relative to the initial value,
        [fractions, steps + 1, students].
    """

    law: student_teacher.Recursion
    errors: np.ndarray

    @property
    def at_best_rate(self) -> np.ndarray:
        """Errors at the best rate, [steps + 1, students]."""
        return self.errors[FRACTIONS.index(1.0)]

    @property
    def deviation(self) -> float:
        """Largest deviation of a mean from its law, in standard errors: one step at every rate, all at the best."""
        steps = np.arange(1, len(self.at_best_rate))
        said = np.r_[self.law.factor(tried(self.law)), self.law.curve(1.0, self.law.best_rate, steps)]
        found = [mean_and_error(errors) for errors in (*self.errors[:, 1], *self.at_best_rate[1:])]
        return max(abs(mean - value) / error for (mean, error), value in zip(found, said, strict=True))


def tried(law: student_teacher.Recursion) -> np.ndarray:
    """Rates at which the student is measured, for the mean over its examples."""
    return law.best_rate * np.array(FRACTIONS)


def student_of(B: int, inputs: int, students: int) -> Student:
    """Measures a student of a linear teacher on fresh examples x ~ N(0, I), B per step."""
    law = student_teacher.backprop(inputs, batch=B)
    steps = int(np.ceil(examples_of(law, B) / B))
    rng = np.random.default_rng(B)
    teachers = rng.standard_normal((students, inputs, OUTPUTS))
    teachers /= np.linalg.norm(teachers, axis=(1, 2), keepdims=True)
    x = rng.standard_normal((students, steps, B, inputs))
    network = nl.mlp([inputs, OUTPUTS], activation=nl.activations.identity(), bias=False)
    estimator = nl.batch_sum(nl.backprop(nl.supervised(network.apply, nl.losses.half_squared_error)))

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None, None))
    @functools.partial(jax.vmap, in_axes=(None, 0, 0))
    def errors(rate: jax.Array, teacher: jax.Array, x: jax.Array) -> jax.Array:
        learner = nl.learner(estimator, optax.sgd(rate))
        key = jax.random.key(0)  # unused: backprop draws no random numbers

        def step(state: nl.LearnerState, x: jax.Array) -> tuple[nl.LearnerState, jax.Array]:
            state, _ = learner.step(key, state, (x, x @ teacher))
            return state, jnp.sum((state.params["output"]["weight"] - teacher) ** 2)

        return jax.lax.scan(step, learner.init(key, {"output": {"weight": jnp.zeros_like(teacher)}}), x)[1]

    found = np.asarray(errors(*(jnp.asarray(array, jnp.float32) for array in (tried(law) / B, teachers, x))), float)
    return Student(law, np.insert(np.swapaxes(found, 1, 2), 0, 1.0, axis=1))


def examples_of(law: student_teacher.Recursion, B: float) -> float:
    """Examples until the mean error has fallen to 1/1000, at the best rate."""
    return float(B * np.log(REDUCTION) / -np.log(law.factor(law.best_rate)))


def crossed(student: Student) -> float:
    """Step at which the mean error falls to 1/1000, by log-linear interpolation between steps."""
    fallen = -np.log(student.at_best_rate.mean(axis=1))
    return float(np.interp(np.log(REDUCTION), fallen, np.arange(len(fallen))))
