"""Measures the angle between an estimator's credit and a reference per layer, at one point or during training."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from nl_jax._core.numerics import in_one_dtype, unit_vector, widened
from nl_jax._core.paths import path_name
from nl_jax._core.require import gradient_estimator, positive_integer, typed_key
from nl_jax.base import Array, Batch, GradientEstimator, Info, Key, LearnerState, Params, State

Split = Callable[[Params], Mapping[str, Params]]
"""`split(params) -> {name: part}`."""


def by_layer(params: Params) -> dict[str, Params]:
    """Splits a tree into its top-level entries that hold parameters, usually its layers."""
    parts = _parts(params, lambda part: part is not params)
    return {name: part for name, part in parts.items() if jax.tree.leaves(part)}


def by_leaf(params: Params) -> dict[str, Params]:
    """Splits a tree into its leaves by path, such as "hidden1/weight"."""
    return _parts(params, None)


def angle(a: Params, b: Params) -> Array:
    """Computes the angle between two trees as vectors, in degrees from 0 to 180; NaN if either is zero.

    It uses the sum and difference of the unit vectors (Kahan), because the cosine would lose half the digits near 0 and
    180. Half precision is computed in float32.

    >>> import jax.numpy as jnp
    >>> round(float(angle({"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([1.0, 1.0])})), 4)
    45.0
    """
    a, b = map(unit_vector, in_one_dtype((a, b)))
    difference, total = (optax.tree.norm(f(a, b)) for f in (optax.tree.sub, optax.tree.add))
    return jnp.degrees(2 * jnp.arctan2(difference, total))


def alignment(
    estimator: GradientEstimator,
    reference: GradientEstimator,
    key: Key,
    state: State,
    params: Params,
    batch: Batch,
    *,
    split: Split = by_layer,
) -> dict[str, Array]:
    """Measures the angle between an estimate and the reference's gradient per layer, in degrees.

    Below 90 degrees an update decreases the loss; at 90 it is orthogonal to the gradient. This is the measure plotted
    in the literature on feedback alignment (Lillicrap et al. 2016). It is a pure function: jit it to run fast.

    Args:
      estimator: the estimator to measure.
      reference: the estimator to compare with, usually `nl.backprop(objective)`; it must keep no state.
      key: typed key.
      state: the estimator's state, such as `estimator.init(key, params)` or, in training, `learner_state.estimator`.
      params: the parameters at which to measure.
      batch: the batch on which to measure.
      split: `split(params) -> {name: part}`, `by_layer` or `by_leaf`.

    Returns:
      {name: degrees}; NaN for a part where either is zero, and for all parts if an estimate fails under `jax.jit`.

    Raises:
      ValueError: if an estimator is not one, or the key is not a typed key.

    >>> import jax, jax.numpy as jnp, nl_jax as nl
    >>> net = nl.mlp([3, 4, 2], activation=nl.activations.tanh())
    >>> objective = nl.supervised(net.apply, nl.losses.cross_entropy)
    >>> estimator, params = nl.feedback_alignment(objective), net.init(jax.random.key(0))
    >>> state, batch = estimator.init(jax.random.key(1), params), (jnp.ones([5, 3]), jnp.zeros(5, int))
    >>> degrees = alignment(estimator, nl.backprop(objective), jax.random.key(2), state, params, batch)
    >>> list(degrees), bool(degrees["output"] < 0.01)  # which is given its exact gradient
    (['hidden1', 'output'], True)
    """
    gradient_estimator("estimator", estimator)
    gradient_estimator("reference", reference)
    typed_key(key)
    ours_key, reference_key = jax.random.split(key)
    ours = widened(estimator.estimate(ours_key, state, params, batch)[0])
    exact = widened(reference.estimate(reference_key, reference.init(reference_key, params), params, batch)[0])
    theirs = split(exact)
    return {name: angle(part, theirs[name]) for name, part in split(ours).items()}


class Traced(NamedTuple):
    """The record of a step by `trace_alignment`: its loss and evaluations, and {name: degrees} after it."""

    info: Info
    degrees: dict[str, Array]


def trace_alignment(
    estimator: GradientEstimator,
    reference: GradientEstimator,
    key: Key,
    batch: Batch,
    *,
    every: int = 1,
    split: Split = by_layer,
) -> Callable[[LearnerState, Info], Traced]:
    """Measures the alignment during training, as a `record` of `nl.fit` and `nl.restarts`.

    Args:
      estimator: the learner's estimator, or any other with the same state.
      reference, split: as in `alignment`.
      key: typed key, folded with the step.
      batch: the batch on which to measure, the same throughout training.
      every: steps between measurements, at least 1. In between `degrees` are NaN, at no cost in `nl.fit`; in
        `nl.restarts` every step has the cost, because its runs share one program.

    Returns:
      `record(state, info) -> Traced`, measured at the state after the step. Steps are counted from 1.

    Raises:
      ValueError: if an estimator is not one, `every` is not a whole number of at least 1, or the key is not a
        typed key.

    >>> import jax, jax.numpy as jnp, optax, nl_jax as nl
    >>> net = nl.mlp([3, 4, 2], activation=nl.activations.tanh())
    >>> objective = nl.supervised(net.apply, nl.losses.cross_entropy)
    >>> estimator, data = nl.feedback_alignment(objective), (jnp.ones([5, 3]), jnp.zeros(5, int))
    >>> learner = nl.learner(estimator, optax.sgd(0.1))
    >>> state = learner.init(jax.random.key(0), net.init(jax.random.key(1)))
    >>> record = trace_alignment(estimator, nl.backprop(objective), jax.random.key(2), data, every=5)
    >>> _, history = nl.fit(learner, jax.random.key(3), state, data, num_steps=20, record=record, progress=False)
    >>> history.info.loss.shape, history.degrees["hidden1"][4::5].shape  # steps 5, 10, 15 and 20
    ((20,), (4,))
    """
    gradient_estimator("estimator", estimator)
    gradient_estimator("reference", reference)
    typed_key(key)
    every = positive_integer("every", every)

    def record(state: LearnerState, info: Info) -> Traced:
        def measure() -> dict[str, Array]:
            at = jax.random.fold_in(key, state.step), state.estimator, state.params, batch
            return alignment(estimator, reference, *at, split=split)

        def skip() -> dict[str, Array]:
            return jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan, x.dtype), jax.eval_shape(measure))

        return Traced(Info(info.loss, info.evaluations), jax.lax.cond(state.step % every == 0, measure, skip))

    return record


def _parts(params: Params, is_leaf: Callable[[Params], bool] | None) -> dict[str, Params]:
    return {path_name(path): part for path, part in jax.tree_util.tree_leaves_with_path(params, is_leaf=is_leaf)}
