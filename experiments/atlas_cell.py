"""A cell of the atlas: one method on one task, tuned as all others are."""

import functools
import math
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nl_jax as nl
from experiments.atlas_methods import Method
from experiments.atlas_tasks import Task
from experiments.sweep import first_at_most

LOOKS = 20
"""Moments at which a run is looked at."""

_TIMED = 30
"""Steps of which the median is taken."""


class Effort(NamedTuple):
    """What is spent on every cell alike."""

    rates: tuple[float, ...]
    seeds: int
    updates: int
    samples: int


def measured(task: Task, method: Method, effort: Effort) -> dict[str, Any]:
    """What the atlas has to say of a method on a task, as plain data.

    `status` is "measured"; "refused" by the method itself, whose words are in `why`; or "diverged" at every rate.
    Adam at each learning rate from each beginning; the rate with the least error on validation examples is the one
    that all else is of, the test error too.
    """
    try:
        estimator = method.make(task.objective, task.example, effort.samples)
        step = _step(estimator, task)
    except ValueError as refusal:
        return {"status": "refused", "why": str(refusal)}
    looks: list[dict[str, np.ndarray]] = []
    look = _looked_at(task, estimator)

    def log(report: nl.Report) -> None:
        error, cosine = jax.device_get(look(report.state, report.step))
        looks.append({"update": np.array(report.step), "error": error, "cosine": cosine})

    began = time.perf_counter()
    try:
        found = nl.sweep(
            lambda rate: nl.learner(estimator, optax.adam(rate)), {"rate": effort.rates}, jax.random.key(0), task.init,
            task.train, score=lambda params: task.error(params, task.validation),
            test=lambda params: task.error(params, task.test), num_steps=effort.updates, seeds=effort.seeds,
            at_once=len(effort.rates), batch_size=task.batch_size, progress=False, log=log,
            steps_per_dispatch=-(-effort.updates // LOOKS),
        )  # fmt: skip
    except nl.Diverged as lost:
        return {"status": "diverged", "why": str(lost), **step}
    assert found.test is not None
    of_best = lambda values: values.reshape(len(effort.rates), effort.seeds)[found.best_index]
    error = np.stack([of_best(one["error"]) for one in looks])
    updates = np.array([one["update"] for one in looks])
    first = float(first_at_most(task.goal, error.mean(axis=1), updates))
    reached = int(first) if math.isfinite(first) else None
    return {
        "status": "measured",
        "rate": found.best["rate"],
        "rate at the end of the range": bool(found.edges),
        "validation errors": found.scores,
        "test errors": found.test,
        "updates": updates,
        "validation error along training": error,
        "cosine along training": np.stack([of_best(one["cosine"]) for one in looks]),
        "updates to the goal": reached,
        "evaluations": effort.updates * step["evaluations per update"],
        "evaluations to the goal": reached and reached * step["evaluations per update"],
        "seconds to the goal": reached and reached * step["seconds per update"],
        "seconds of the whole sweep": time.perf_counter() - began,
        "verdict": _verdict(task, method, effort),
        **step,
    }


def _step(estimator: nl.GradientEstimator, task: Task) -> dict[str, Any]:
    """Cost of one update of one run."""
    learner, key = nl.learner(estimator, optax.adam(1e-3)), jax.random.key(0)
    state = learner.init(key, task.init(jax.random.key(1)))
    compiled = jax.jit(learner.step).lower(key, state, task.example).compile()
    _, info = compiled(key, state, task.example)
    seconds = []
    for _ in range(_TIMED):
        began = time.perf_counter()
        jax.block_until_ready(compiled(key, state, task.example))
        seconds.append(time.perf_counter() - began)
    memory = compiled.memory_analysis()
    return {
        "evaluations per update": int(info.evaluations),
        "seconds per update": float(np.median(seconds)),
        "bytes": None if memory is None else memory.temp_size_in_bytes + memory.argument_size_in_bytes,
    }


def _looked_at(task: Task, estimator: nl.GradientEstimator) -> Any:
    """`look(states, step)`: of every run its validation error, and the cosine of an estimate to the gradient."""
    exact = nl.backprop(task.objective)

    def one(state: nl.LearnerState, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        estimate, _, _ = estimator.estimate(key, state.estimator.own, state.params, task.example)
        gradient, _, _ = exact.estimate(key, (), state.params, task.example)
        return task.error(state.params, task.validation), nl.diagnostics.accuracy.cosine(estimate, gradient)

    @jax.jit
    def look(states: nl.LearnerState, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        key = jax.random.fold_in(jax.random.key(2), step)
        return jax.lax.map(functools.partial(one, key=key), states)

    return lambda states, step: look(states, jnp.int32(step))


def _verdict(task: Task, method: Method, effort: Effort) -> str:
    """What the updates may see, as the audit finds."""
    factory = lambda program: method.make(program, task.example, effort.samples)
    params = jax.eval_shape(task.init, jax.random.key(0))
    return nl.audit(factory, task.objective, params, task.example).verdict
