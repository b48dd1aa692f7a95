"""Learners that train one part of the parameters at a time (seed 001 §5)."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nl_jax._core.paths import assign, by_path, replaced
from nl_jax._core.require import estimator_of, typed_key
from nl_jax.base import Array, Batch, GradientEstimator, Info, Key, Learner, LearnerState, Objective, Params
from nl_jax.objectives.parts import restricted
from nl_jax.training.learner import learner


class Stage(NamedTuple):
    """How a step of `nl.alternating` trains one part of the parameters.

    Attributes:
      patterns: one or several, matched (shell style: *, ?, [ab]) against a leaf's path, such as "hidden1/gamma".
      factory: an estimator factory, such as nl.backprop or functools.partial(nl.node_perturbation, num_samples=32),
        called with the part's own objective.
      optimizer: any `optax.GradientTransformation`; it receives this part only.
    """

    patterns: str | Sequence[str]
    factory: Callable[[Objective], GradientEstimator]
    optimizer: optax.GradientTransformation


def alternating(objective: Objective, stages: Sequence[Stage]) -> Learner:
    """Returns a learner that updates the parts of the parameters one after another, using the parts already updated.

    Within a step, each stage in turn estimates the gradient with respect to its own parameters, with all others held at
    their current values, and applies its optimizer. This is one round of block coordinate descent on the step's batch.
    Seed 001 §5 trains batch normalisation this way: first γ and β, at the z of the weights of the previous round, and
    then the weights.

    Args:
      objective: a per-example objective.
      stages: one or more. A parameter belongs to the first stage with a pattern that matches its path.

    Returns:
      A `Learner` as made by `nl.learner`. Its state holds tuples of the stages' estimator and optimizer states. Its
      info has the loss of the first stage (the loss before the step), the sum of evaluations, the tuple of residuals
      and the failures of all stages.

    Raises:
      ValueError: if there is no stage, or a stage's patterns, factory or optimizer are invalid; when run, if a
        parameter matches no pattern or a pattern gets no parameter.

    >>> import jax, jax.numpy as jnp, optax, nl_jax as nl
    >>> hidden = nl.batch_norm(nl.Layer("hidden", 4, nl.connections.dense(bias=False), nl.activations.tanh()))
    >>> net = nl.network(nl.Layer("input", 3), hidden, nl.Layer("output", 2, nl.connections.dense()))
    >>> objective = nl.supervised(net.apply, nl.losses.cross_entropy)
    >>> scales = nl.Stage(["*/gamma", "*/beta"], nl.backprop, optax.sgd(0.1))
    >>> ours = alternating(objective, [scales, nl.Stage("*", nl.backprop, optax.sgd(0.1))])
    >>> state = ours.init(jax.random.key(0), net.init(jax.random.key(1)))
    >>> batch = jax.random.normal(jax.random.key(2), [6, 3]), jnp.arange(6) % 2
    >>> state, info = jax.jit(ours.step)(jax.random.key(3), state, batch)
    >>> int(state.step), int(info.evaluations)
    (1, 6)
    """
    stages = tuple(_checked(stage) for stage in stages)
    if not stages:
        raise ValueError("stages must name at least one nl.Stage(patterns, factory, optimizer), got none")
    for stage in stages:
        _learner(stage, objective)  # raises for bad settings here, not at the first step

    def shares(params: Params) -> list[dict[str, Array]]:
        leaves = by_path(params)
        paths = iter(assign(list(leaves), [p for stage in stages for p in stage.patterns], "stages"))
        return [{path: leaves[path] for _ in stage.patterns for path in next(paths)} for stage in stages]

    def init(key: Key, params: Params) -> LearnerState:
        typed_key(key)
        members = zip(jax.random.split(key, len(stages)), stages, shares(params), strict=True)
        states = [_learner(stage, restricted(objective, params)).init(k, share) for k, stage, share in members]
        return _joined(params, states, jnp.int32(0))

    def step(key: Key, state: LearnerState, batch: Batch) -> tuple[LearnerState, Info]:
        typed_key(key)
        if not isinstance(state.estimator, tuple) or len(state.estimator) != len(stages):
            raise ValueError(f"state must be of {len(stages)} stages; after a change of stages call init again")
        params, states, infos = state.params, [], []
        keys, own = jax.random.split(key, len(stages)), zip(state.estimator, state.optimizer, strict=True)
        for k, stage, share, (estimator, optimizer) in zip(keys, stages, shares(params), own, strict=True):
            now = LearnerState(share, estimator, optimizer, state.step)
            after, info = _learner(stage, restricted(objective, params)).step(k, now, batch)
            params = replaced(params, after.params)
            states.append(after)
            infos.append(info)
        evaluations = jnp.sum(jnp.stack([info.evaluations for info in infos]), dtype=jnp.int32)
        failures = sum((info.failures for info in infos), start=())
        info = Info(infos[0].loss, evaluations, tuple(info.residuals for info in infos), failures)
        return _joined(params, states, state.step + 1), info

    return Learner(init, step)


def _checked(stage: Any) -> Stage:
    """Returns the stage with its patterns as a tuple, because `init` would exhaust an iterator."""
    if isinstance(stage, Stage) and callable(stage.factory) and isinstance(stage.patterns, Iterable):
        patterns = (stage.patterns,) if isinstance(stage.patterns, str) else tuple(stage.patterns)
        if patterns and all(isinstance(pattern, str) and pattern for pattern in patterns):
            return stage._replace(patterns=patterns)
    raise ValueError(
        f"a stage must be nl.Stage(patterns, factory, optimizer), one pattern at least, each a string, factory "
        f"uncalled; got {stage!r}"
    )


def _learner(stage: Stage, objective: Objective) -> Learner:
    return learner(estimator_of("a stage's factory", stage.factory, objective), stage.optimizer)


def _joined(params: Params, states: Sequence[LearnerState], step: Array) -> LearnerState:
    return LearnerState(params, tuple(s.estimator for s in states), tuple(s.optimizer for s in states), step)
