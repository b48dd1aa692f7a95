"""The angle between an estimator's credit and a reference, layer by layer, at one point or along training."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from nl_jax.base import Array, Batch, GradientEstimator, Info, Key, LearnerState, Params, State
from nl_jax.checks import path_name, positive_integer, typed_key
from nl_jax.numerics import widened

Split = Callable[[Params], Mapping[str, Params]]
"""`split(params) -> {name: part}`."""


def by_layer(params: Params) -> dict[str, Params]:
    """The top-level entries of a tree that hold parameters, as a rule its layers."""
    parts = _parts(params, lambda part: part is not params)
    return {name: part for name, part in parts.items() if jax.tree.leaves(part)}


def by_leaf(params: Params) -> dict[str, Params]:
    """The leaves of a tree by path, such as "hidden1/weight"."""
    return _parts(params, None)


def angle(a: Params, b: Params) -> Array:
    """The angle between two trees seen as vectors, in degrees from 0 to 180; NaN if either is zero.

    From sum and difference of the unit vectors (Kahan): near 0 and 180 the cosine would lose half the digits. They are
    measured in units of their largest component, so that small ones do not vanish squared.

    >>> import jax.numpy as jnp
    >>> round(float(angle({"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([1.0, 1.0])})), 4)
    45.0
    """
    for ord in (jnp.inf, 2):
        a, b = (optax.tree.scale(1 / optax.tree.norm(x, ord), x) for x in (a, b))
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
    """The angle between an estimate and the reference's gradient, layer by layer, in degrees.

    Below 90 an update goes downhill, at 90 it has nothing to do with the gradient: what the literature on feedback
    alignment draws (Lillicrap et al. 2016). A pure function: jit it to run fast.

    Args:
      estimator: what to measure.
      reference: what to measure against, as a rule `nl.backprop(objective)`; one that keeps no state.
      key: typed key.
      state: the estimator's, such as `estimator.init(key, params)` or in training `learner_state.estimator`.
      params: where to measure.
      batch: on what.
      split: `split(params) -> {name: part}`, `by_layer` or `by_leaf`.

    Returns:
      {name: degrees}; NaN for a part where either is zero, and for all parts if an estimate fails under `jax.jit`.

    Raises:
      ValueError: if the key is not a typed one.

    >>> import jax, jax.numpy as jnp, nl_jax as nl
    >>> net = nl.mlp([3, 4, 2], activation=nl.activations.tanh())
    >>> objective = nl.supervised(net.apply, nl.losses.cross_entropy)
    >>> estimator, params = nl.feedback_alignment(objective), net.init(jax.random.key(0))
    >>> state, batch = estimator.init(jax.random.key(1), params), (jnp.ones([5, 3]), jnp.zeros(5, int))
    >>> degrees = alignment(estimator, nl.backprop(objective), jax.random.key(2), state, params, batch)
    >>> list(degrees), bool(degrees["output"] < 0.01)  # which is given its exact gradient
    (['hidden1', 'output'], True)
    """
    typed_key(key)
    ours_key, reference_key = jax.random.split(key)
    ours = widened(estimator.estimate(ours_key, state, params, batch)[0])
    exact = widened(reference.estimate(reference_key, reference.init(reference_key, params), params, batch)[0])
    theirs = split(exact)
    return {name: angle(part, theirs[name]) for name, part in split(ours).items()}


class Traced(NamedTuple):
    """What `trace_alignment` keeps of a step: its loss and evaluations, and {name: degrees} after it."""

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
    """The alignment all through training, as a `record` of `nl.fit` and `nl.restarts`.

    Args:
      estimator: the learner's own, or any other with the same state.
      reference, split: as in `alignment`.
      key: typed key, folded with the step.
      batch: on what to measure, the same all through: it is the network that changes.
      every: steps between measurements, at least 1; in between `degrees` are NaN and `nl.fit` spends nothing
        (`nl.restarts` does, its runs share one program).

    Returns:
      `record(state, info) -> Traced`, measured at the state after the step, whose number it then is: 1 after the first.

    Raises:
      ValueError: if `every` is not a whole number of at least 1, or the key is not a typed one.

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
