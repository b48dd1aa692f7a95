"""Measures estimates along the penalty and over inner iterations, and what networks learn with each member."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nl_jax as nl
from experiments.constrained.family import GROUPS, MEMBERS, SOLVERS, Teaching, predictive_coding
from experiments.constrained.lesson import Images, Lesson, Start, linear
from nl_jax.base import Array, Params
from nl_jax.theory import predictive_coding as theory

INFERENCE = 30  # steps of predictive coding in training
SETTLED = 2000, 1e-12  # steps and tolerance of inference along μ, enough to measure at its equilibrium

Failures = tuple[nl.Failure, ...]


class Along(NamedTuple):
    """Predictive coding at each μ; arrays are [μ, seeds]."""

    cosine: np.ndarray
    error: np.ndarray
    """Relative error of the estimate to the gradient."""
    linear_error: np.ndarray
    """The same error in a linear network."""
    law: np.ndarray
    """The linear network's error according to theory."""
    missed: np.ndarray
    """Relative difference between the linear network's estimate and that of theory."""
    accuracy: np.ndarray
    """Test accuracy of a network trained with the estimate."""


class Descent(NamedTuple):
    """A solver's inner iterations; arrays are [K, seeds], residuals {layer: [K, seeds]}."""

    error: np.ndarray
    evaluations: np.ndarray
    primal: dict[str, np.ndarray]
    dual: dict[str, np.ndarray]


class Course(NamedTuple):
    """A member's training; arrays are [moments, seeds], degrees {layer: [moments, seeds]}."""

    loss: np.ndarray
    accuracy: np.ndarray
    degrees: dict[str, np.ndarray]


def _estimate(estimator: nl.GradientEstimator, params: Params, batch: Any) -> tuple[Params, nl.Info]:
    key = jax.random.key(0)  # solvers draw no random numbers
    grads, _, info = estimator.estimate(key, estimator.init(key, params), params, batch)
    return grads, info


def _relative(a: Params, b: Params) -> Array:
    return optax.tree.norm(optax.tree.sub(a, b)) / optax.tree.norm(b)


def along(lesson: Lesson) -> Along:
    """Measures predictive coding's estimates at every μ, in tanh and linear networks; then trains with them."""
    linear_objective = nl.supervised(linear(lesson.settings).apply, nl.losses.half_squared_error)

    def equilibrium(params: Params, lesson: Lesson, penalty: Array) -> Array:
        weights = [layer["weight"] for layer in params.values()]
        return jnp.mean(jax.vmap(lambda x, y: theory.equilibrium_energy(weights, x, y, penalty))(*lesson.batch))

    def measure(lesson: Lesson, penalty: Array, start: Start) -> tuple[tuple[Array, ...], Failures]:
        (ours, info), (exact, _), (linear_ours, linear_info), (linear_exact, _) = (
            _estimate(estimator, at, lesson.batch)
            for objective, at in ((lesson.objective, start.params), (linear_objective, start.linear))
            for estimator in (predictive_coding(objective, penalty, *SETTLED), nl.backprop(objective))
        )
        law = jax.grad(equilibrium)(start.linear, lesson, penalty)
        return (
            nl.diagnostics.cosine(ours, exact), _relative(ours, exact), _relative(linear_ours, linear_exact),
            _relative(law, linear_exact), _relative(linear_ours, law),
        ), info.failures + linear_info.failures  # fmt: skip

    def learn(lesson: Lesson, penalty: Array, start: Start) -> tuple[Array, Failures]:
        estimator = predictive_coding(lesson.objective, penalty, INFERENCE)
        state = nl.learner(estimator, lesson.optimizer).init(start.key, start.params)
        (_, accuracy, _), failures = _course(lesson, estimator, start, state)
        return accuracy[-1], failures

    @jax.jit
    def all_of_both(data: Images, starts: Start, penalties: Array) -> tuple[tuple[Array, ...], Failures]:
        at = lesson._replace(data=data)

        def both(penalty: Array, start: Start) -> tuple[tuple[Array, ...], Failures]:
            measured, failures = measure(at, penalty, start)
            accuracy, more_failures = learn(at, penalty, start)
            return (*measured, accuracy), failures + more_failures

        return jax.lax.map(lambda penalty: jax.vmap(functools.partial(both, penalty))(starts), penalties)

    return Along(*_run(all_of_both, lesson.data, lesson.starts, jnp.asarray(lesson.settings.penalties)))


def descend(name: str, lesson: Lesson) -> Descent:
    """Measures a solver's estimate after each number of iterations, in one compiled program."""
    solver = SOLVERS[name]

    @jax.jit
    def follow(data: Images, params: Params, iterations: Array) -> tuple[Any, Failures]:
        batch = lesson._replace(data=data).batch

        def after(k: Array, params: Params, exact: Params) -> tuple[Any, Failures]:
            grads, info = _estimate(solver.make(lesson.objective, k), params, batch)
            primal, dual, _ = info.residuals
            return (_relative(grads, exact), info.evaluations, primal, dual), info.failures

        gradient = nl.backprop(solver.gradient_of(lesson.objective))
        exact = jax.vmap(lambda params: _estimate(gradient, params, batch)[0])(params)
        return jax.lax.map(lambda k: jax.vmap(functools.partial(after, k))(params, exact), iterations)

    return Descent(*_run(follow, lesson.data, lesson.starts.params, jnp.asarray(lesson.settings.iterations)))


def teach(name: str, lesson: Lesson) -> Course:
    """Trains all seeds at once with one member."""
    member = MEMBERS[name]
    estimator = member.make(Teaching(lesson.objective, lesson.optimizer))
    aligned = name in GROUPS["feedback"]

    learner = nl.learner(estimator, lesson.optimizer)

    @jax.jit
    def courses(data: Images, starts: Start, states: nl.LearnerState) -> tuple[Any, Failures]:
        course = functools.partial(_course, answers=member.answers, aligned=aligned)
        return jax.vmap(functools.partial(course, lesson._replace(data=data), estimator))(starts, states)

    # Outside the compiled function: initialising random feedback is slow to compile again for each member.
    begun = jax.vmap(learner.init)(lesson.starts.key, lesson.starts.params)
    found = _run(courses, lesson.data, lesson.starts, begun)
    return Course(*jax.tree.map(lambda x: np.moveaxis(x, 0, -1), found))


def _course(
    lesson: Lesson,
    estimator: nl.GradientEstimator,
    start: Start,
    state: nl.LearnerState,
    *,
    answers: Callable[..., Any] = lambda forward: forward,
    aligned: bool = False,
) -> tuple[tuple[Array, Array, dict[str, Array]], Failures]:
    """Trains one seed; returns training loss, test accuracy and angles, [moments], and the failures."""
    learner = nl.learner(estimator, lesson.optimizer)
    forward, exact = answers(lesson.network.apply), nl.backprop(lesson.objective)

    def update(state: nl.LearnerState, drawn: Array) -> tuple[nl.LearnerState, Failures]:
        key = jax.random.fold_in(start.key, state.step)
        state, info = learner.step(key, state, jax.tree.map(lambda x: x[drawn], lesson.data.train))
        return state, info.failures

    def look(state: nl.LearnerState, drawn: Array) -> tuple[nl.LearnerState, tuple[Any, Failures]]:
        state, failures = jax.lax.scan(update, state, drawn)
        images, targets = lesson.data.test
        correct = jnp.argmax(forward(state.params, images), axis=1) == jnp.argmax(targets, axis=1)
        degrees = {}
        if aligned:
            at = start.key, state.estimator, state.params, lesson.batch
            degrees = nl.diagnostics.alignment(estimator, exact, *at)
        loss = jnp.mean(lesson.objective(state.params, lesson.data.train))
        return state, ((loss, jnp.mean(correct), degrees), failures)

    return jax.lax.scan(look, state, start.drawn)[1]


def _run(compiled: Callable[..., tuple[Any, Failures]], *arguments: Any) -> Any:
    """Runs a compiled function; returns numpy arrays, or raises FloatingPointError for the first failure."""
    found, failures = compiled(*arguments)
    nl.raise_if_failed(failures)
    return jax.tree.map(np.asarray, found)
