"""Measures one cell of the atlas: one method on one task, tuned like all others."""

import datetime
import functools
import math
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nl_jax as nl
from experiments.atlas.methods import Method
from experiments.atlas.tasks import Task
from nl_jax.base import Batch, Objective

LOOKS = 20
"""Number of times a run is evaluated."""

_TIMED, _SECONDS = (3, 30), 20.0
"""Least and greatest number of timed steps for the median, and when to stop between them; each is followed by a step of
backprop."""

_LONG = 0.01
"""Seconds of an update above which a CPU trains one rate at a time: what that works on stays in the cache."""

TOO_LONG = "too long"
"""The status of a cell that was not measured because of its time."""


class Effort(NamedTuple):
    """The training budget of a cell."""

    rates: tuple[float, ...]
    seeds: int
    updates: int
    samples: int


def measured(task: Task, method: Method, effort: Effort, hours: float = math.inf) -> dict[str, Any]:
    """Measures one method on one task; returns plain data.

    `status` is "measured"; "not for it"; "refused" by the method itself; "diverged" at every rate; or `TOO_LONG`, if
    all updates, one after the other, would take more than `hours`. All but the first have their reason in `why`. Adam
    trains from each initialisation at each learning rate, which decays to zero as a cosine. All other results,
    including the test error, are those of the rate with the least validation error.
    """
    made = {
        "task": {"title": task.title, "unit": task.unit, "goal": task.goal},
        "family": method.family,
        **provenance(),
    }
    if method.in_time and not task.recurrent:
        return {"status": "not for it", "why": "it is made for networks with a loop over time", **made}
    try:
        lesson = method.lesson(task)
        estimator = method.make(lesson, effort.samples)
        step = _step(estimator, lesson, task)
    except ValueError as refusal:
        return {"status": "refused", "why": str(refusal), **made}
    runs = len(effort.rates) * effort.seeds
    needed = runs * effort.updates * step["seconds per update"] / 3600
    if needed > hours:
        why = f"{runs} runs of {effort.updates:,} updates would take about {needed:.2g} hours, one after the other"
        return {"status": TOO_LONG, "why": why, "hours": needed, **step, **made}
    looks: dict[int, list[np.ndarray]] = {}
    look = _looked_at(estimator, lesson, task)

    def log(report: nl.Report) -> None:
        error_and_cosine = np.stack(jax.device_get(look(report.state, report.step)))
        looks.setdefault(report.step, []).append(error_and_cosine)

    def learner_of(rate: Any) -> nl.Learner:
        return nl.learner(estimator, optax.adam(optax.cosine_decay_schedule(rate, effort.updates)))

    began = time.perf_counter()
    try:
        found = nl.sweep(
            learner_of, {"rate": effort.rates}, jax.random.key(0), lesson.init, lesson.train,
            score=lambda params: lesson.error(params, task.validation),
            test=lambda params: lesson.error(params, task.test), num_steps=effort.updates, seeds=effort.seeds,
            at_once=_at_once(effort, step), batch_size=task.batch_size, progress=False, log=log,
            steps_per_dispatch=-(-effort.updates // LOOKS),
        )  # fmt: skip
    except nl.Diverged as lost:
        return {"status": "diverged", "why": str(lost), **step, **made}
    assert found.test is not None
    updates = np.array(sorted(looks))
    every = np.stack([np.concatenate(looks[update], axis=1) for update in updates])  # [looks, 2, rates · seeds]
    error, cosine = np.moveaxis(every.reshape(*every.shape[:2], -1, effort.seeds)[:, :, found.best_index], 1, 0)
    reached = stays_at_most(task.goal, error.mean(axis=1), updates)
    return {
        "status": "measured",
        "rate": found.best["rate"],
        "rate at the end of the range": bool(found.edges),
        "validation errors": found.scores,
        "test errors": found.test,
        "updates": updates,
        "validation error along training": error,
        "cosine along training": cosine,
        "updates to the goal": reached,
        "evaluations": effort.updates * step["evaluations per update"],
        "evaluations to the goal": reached and reached * step["evaluations per update"],
        "seconds to the goal": reached and reached * step["seconds per update"],
        "seconds of the whole sweep": time.perf_counter() - began,
        "verdict": _verdict(method, lesson, effort),
        **step,
        **made,
    }


def _at_once(effort: Effort, step: dict[str, Any]) -> int:
    """Returns the number of rates that are trained at once."""
    return 1 if jax.default_backend() == "cpu" and step["seconds per update"] > _LONG else len(effort.rates)


def provenance() -> dict[str, str]:
    """Returns date, versions and device."""
    versions = f"jax {jax.__version__}, nl_jax {nl.__version__}"
    return {"date": datetime.date.today().isoformat(), "versions": versions, "device": jax.devices()[0].device_kind}


def stays_at_most(goal: float, values: np.ndarray, moments: np.ndarray) -> int | None:
    """Returns the first moment from which on all values are at most `goal`; None if the last value is not."""
    missed = np.flatnonzero(~(values <= goal))
    first = 0 if len(missed) == 0 else int(missed[-1]) + 1
    return int(moments[first]) if first < len(moments) else None


def _step(estimator: nl.GradientEstimator, lesson: Task, task: Task) -> dict[str, Any]:
    """Returns the cost of one update of one run, and its time relative to a backprop update, timed alternately."""
    compiled, arguments, info = _compiled(estimator, lesson.init, lesson.example)
    reference, beside, _ = _backprop(task)
    times: list[list[float]] = []
    least, most = _TIMED
    while len(times) < least or (len(times) < most and np.sum(times) < _SECONDS):
        times.append([])
        for run, of in ((compiled, arguments), (reference, beside)):
            began = time.perf_counter()
            jax.block_until_ready(run(*of))
            times[-1].append(time.perf_counter() - began)
    seconds = np.array(times)
    memory = compiled.memory_analysis()
    return {
        "evaluations per update": int(info.evaluations),
        "seconds per update": float(np.median(seconds[:, 0])),
        "times backprop's seconds": float(np.median(seconds[:, 0] / seconds[:, 1])),
        "bytes": None if memory is None else memory.temp_size_in_bytes + memory.argument_size_in_bytes,
    }


def _compiled(estimator: nl.GradientEstimator, init: Any, example: Batch) -> tuple[Any, tuple[Any, ...], Any]:
    """Returns a compiled update, its arguments, and the info it returns for them."""
    learner, key = nl.learner(estimator, optax.adam(1e-3)), jax.random.key(0)
    arguments = key, learner.init(key, init(jax.random.key(1))), example
    compiled = jax.jit(learner.step).lower(*arguments).compile()
    return compiled, arguments, compiled(*arguments)[1]


_BACKPROP: dict[Objective, tuple[Any, tuple[Any, ...], Any]] = {}
"""Backprop's compiled update by objective, for the latest task only: compiled once for all methods."""


def _backprop(task: Task) -> tuple[Any, tuple[Any, ...], Any]:
    if task.objective not in _BACKPROP:
        _BACKPROP.clear()
        _BACKPROP[task.objective] = _compiled(nl.backprop(task.objective), task.init, task.example)
    return _BACKPROP[task.objective]


def _looked_at(estimator: nl.GradientEstimator, lesson: Task, task: Task) -> Any:
    """Returns `look(states, step)`: each run's validation error and the cosine of one estimate to the gradient.

    The gradient is that of the task's objective. The cosine is NaN if the method trains a network with other
    parameter shapes.
    """
    exact = nl.backprop(task.objective)
    shapes = lambda init: jax.tree.map(jnp.shape, jax.eval_shape(init, jax.random.key(0)))
    comparable = shapes(task.init) == shapes(lesson.init)

    def one(state: nl.LearnerState, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        error = lesson.error(state.params, task.validation)
        if not comparable:
            return error, jnp.float32(jnp.nan)
        estimate, _, _ = estimator.estimate(key, state.estimator.own, state.params, lesson.example)
        gradient, _, _ = exact.estimate(key, (), state.params, task.example)
        return error, nl.diagnostics.accuracy.cosine(estimate, gradient)

    @jax.jit
    def look(states: nl.LearnerState, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        key = jax.random.fold_in(jax.random.key(2), step)
        return jax.lax.map(functools.partial(one, key=key), states)

    return lambda states, step: look(states, jnp.int32(step))


def _verdict(method: Method, lesson: Task, effort: Effort) -> str:
    """Returns the audit's verdict on what the updates may see."""
    factory = lambda program: method.make(lesson._replace(objective=program), effort.samples)
    params = jax.eval_shape(lesson.init, jax.random.key(0))
    return nl.audit(factory, lesson.objective, params, lesson.example, inputs=lesson.audited).verdict
