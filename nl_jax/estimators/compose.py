"""Estimators made from other estimators: averages, mixtures, partitions."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from nl_jax._core.failures import ever, raise_if_known
from nl_jax._core.numerics import wide_dtype
from nl_jax._core.paths import assign, by_path, replaced
from nl_jax._core.require import estimator_of, gradient_estimator, positive_integer, typed_key
from nl_jax.base import Array, Batch, Factory, GradientEstimator, Info, Key, Objective, Params, State
from nl_jax.objectives.parts import restricted


def average(estimator: GradientEstimator, num_estimates: int) -> GradientEstimator:
    """Averages several estimates with independent keys, made one after the other, with the state passed on.

    Args:
      estimator: any estimator.
      num_estimates: at least 1.

    Returns:
      An estimator with the state of `estimator`; its loss and residuals are the means, its evaluations the sum; it
      fails if one of the estimates does.

    Raises:
      ValueError: if `estimator` is not an estimator, or `num_estimates` not a whole number of at least 1.
    """
    gradient_estimator("estimator", estimator)
    num_estimates = positive_integer("num_estimates", num_estimates)

    def estimate(key: Key, state: State, params: Params, batch: Batch) -> tuple[Params, State, Info]:
        typed_key(key)

        def one(carry: tuple[State, Params], index: Array) -> tuple[tuple[State, Params], Info]:
            state, total = carry
            grads, state, info = estimator.estimate(jax.random.fold_in(key, index), state, params, batch)
            return (state, jax.tree.map(lambda s, g: s + g.astype(s.dtype), total, grads)), info

        zeros = jax.tree.map(lambda p: jnp.zeros(jnp.shape(p), wide_dtype(jnp.result_type(p))), params)
        (state, total), infos = jax.lax.scan(one, (state, zeros), jnp.arange(num_estimates))
        grads = jax.tree.map(lambda s, p: (s / num_estimates).astype(jnp.result_type(p)), total, params)
        loss, residuals = jax.tree.map(lambda x: jnp.mean(x, axis=0), (infos.loss, infos.residuals))
        failures = ever(infos.failures)
        raise_if_known(failures)  # the estimates were traced, and cannot have raised
        return grads, state, Info(loss, jnp.sum(infos.evaluations, dtype=jnp.int32), residuals, failures)

    return GradientEstimator(estimator.init, estimate)


def mix(estimators: Sequence[GradientEstimator], weights: Sequence[float]) -> GradientEstimator:
    """Computes a weighted sum of estimates, Σ_i w_i ĝ_i, each with its own key.

    Args:
      estimators: one or more estimators of the same objective.
      weights: one finite number each; they must sum to 1, or the sum would not be calibrated. A weight may be
        negative (control variates).

    Returns:
      An estimator whose state is the tuple of states; its loss is the mean of their losses, its evaluations
      the sum, its residuals the tuple of residuals, its failures those of all.

    Raises:
      ValueError: if one is not an estimator, the numbers of estimators and weights differ, or the weights do not sum to
        1.

    >>> import jax, jax.numpy as jnp, nl_jax as nl
    >>> objective = lambda w, batch: (w * batch) ** 2
    >>> estimator = mix([nl.backprop(objective), nl.forward_gradient(objective)], [0.9, 0.1])
    >>> grads, state, info = estimator.estimate(jax.random.key(0), ((), ()), jnp.array(1.0), jnp.array([1.0]))
    >>> int(info.evaluations)
    6
    """
    estimators, weights = tuple(estimators), tuple(float(w) for w in weights)
    for i, member in enumerate(estimators):
        gradient_estimator(f"estimators[{i}]", member)
    if not estimators or len(estimators) != len(weights):
        raise ValueError(f"weights must be one number per estimator; got {len(weights)} for {len(estimators)}")
    if not abs(sum(weights) - 1) < 1e-6:
        raise ValueError(f"weights must sum to 1, got {weights}, sum {sum(weights)}: scale the learning rate instead")

    def init(key: Key, params: Params) -> State:
        return tuple(e.init(k, params) for k, e in zip(_split(key, len(estimators)), estimators, strict=True))

    def estimate(key: Key, state: State, params: Params, batch: Batch) -> tuple[Params, State, Info]:
        _check_state(state, len(estimators))
        keys = _split(key, len(estimators))
        estimates = [e.estimate(k, s, params, batch) for k, s, e in zip(keys, state, estimators, strict=True)]
        grads, states, infos = zip(*estimates, strict=True)
        total = jax.tree.map(lambda *g: sum(w * x for w, x in zip(weights, g, strict=True)), *grads)
        return total, tuple(states), _joined(infos)

    return GradientEstimator(init, estimate)


def partition(objective: Objective, parts: Mapping[str, Factory]) -> GradientEstimator:
    """Uses a different estimator for each part of the parameters, chosen by path.

    Each part is learned with all others held fixed, so that noise meant for one part never disturbs another.

    Args:
      objective: a per-example objective.
      parts: estimator factories by pattern, `{"output/*": nl.backprop, "*": functools.partial(
        nl.node_perturbation, num_samples=32)}`. A pattern (shell style: *, ?, [ab]) is matched against a
        leaf's path, such as "hidden1/weight"; the first match in order wins. Brackets that are part of a path stand for
        themselves.

    Returns:
      An estimator whose state is the tuple of the parts' states; its loss is the mean of their losses, its
      evaluations the sum, its residuals the tuple of residuals, its failures those of all.

    Raises:
      ValueError: if there is no part, or a factory makes no estimator or refuses the objective; when run, if a leaf
        matches no pattern or a pattern matches no leaf.

    >>> import functools, jax, jax.numpy as jnp, nl_jax as nl
    >>> net = nl.mlp([3, 4, 2], activation=nl.activations.tanh())
    >>> objective = nl.supervised(net.apply, nl.losses.cross_entropy)
    >>> hidden = functools.partial(nl.node_perturbation, num_samples=8)
    >>> estimator = partition(objective, {"output/*": nl.backprop, "*": hidden})
    >>> key, params = jax.random.key(0), net.init(jax.random.key(1))
    >>> state = estimator.init(key, params)
    >>> grads, state, info = jax.jit(estimator.estimate)(key, state, params, (jnp.ones([5, 3]), jnp.zeros(5, int)))
    >>> sorted(grads)
    ['hidden1', 'output']
    """
    if not parts:
        raise ValueError("parts must name at least one pattern and its estimator, got none")
    for pattern, factory in parts.items():
        estimator_of(f"parts[{pattern!r}]", factory, objective)  # bad settings are errors here, not at the first step

    def built(params: Params) -> list[tuple[dict[str, Array], GradientEstimator]]:
        leaves = by_path(params)
        built = []
        for factory, paths in zip(parts.values(), assign(list(leaves), list(parts), "parts"), strict=True):
            built.append(({path: leaves[path] for path in paths}, factory(restricted(objective, params))))
        return built

    def init(key: Key, params: Params) -> State:
        members = built(params)
        return tuple(e.init(k, share) for k, (share, e) in zip(_split(key, len(members)), members, strict=True))

    def estimate(key: Key, state: State, params: Params, batch: Batch) -> tuple[Params, State, Info]:
        members = built(params)
        _check_state(state, len(members))
        keys = _split(key, len(members))
        estimates = [e.estimate(k, s, share, batch) for k, s, (share, e) in zip(keys, state, members, strict=True)]
        grads, states, infos = zip(*estimates, strict=True)
        merged = {path: g for share in grads for path, g in share.items()}
        return replaced(params, merged), tuple(states), _joined(infos)

    return GradientEstimator(init, estimate)


def batch_sum(estimator: GradientEstimator) -> GradientEstimator:
    """Returns the gradient of the batch's summed loss, Σ_{i∈I} ∇f_i, instead of its mean (seed 001 §4).

    Args:
      estimator: any estimator.

    Returns:
      `estimator` with its gradient times the number of examples, the first axis of the batch's leaves; numbers in
      the batch have none. The loss it reports is still the mean.

    Raises:
      ValueError: if `estimator` is not an estimator; when run, if the leaves' first axes differ or none has one.
    """
    gradient_estimator("estimator", estimator)

    def estimate(key: Key, state: State, params: Params, batch: Batch) -> tuple[Params, State, Info]:
        examples = _examples(batch)
        grads, state, info = estimator.estimate(key, state, params, batch)
        return jax.tree.map(lambda g: g * examples, grads), state, info

    return GradientEstimator(estimator.init, estimate)


def _examples(batch: Batch) -> int:
    """Returns the number of examples; ValueError unless all leaves with axes have that many along the first."""
    shapes = jax.tree.map(jnp.shape, batch)
    lengths = {jnp.shape(leaf)[0] for leaf in jax.tree.leaves(batch) if jnp.ndim(leaf)}
    if len(lengths) != 1:
        raise ValueError(
            "batch must be arrays with examples along their first axis, equally many, for their losses to be summed; "
            f"got shapes {shapes}: close the objective over what is not per example"
        )
    return lengths.pop()


def _split(key: Key, parts: int) -> list[Key]:
    typed_key(key)
    return list(jax.random.split(key, parts))


def _check_state(state: State, parts: int) -> None:
    if not isinstance(state, tuple) or len(state) != parts:
        raise ValueError(
            f"state must be the {parts} states that init made; after a change of estimator call init again"
        )


def _joined(infos: Sequence[Info]) -> Info:
    loss = jnp.mean(jnp.stack([info.loss for info in infos]))
    evaluations = jnp.sum(jnp.stack([info.evaluations for info in infos]), dtype=jnp.int32)
    failures = sum((info.failures for info in infos), start=())
    return Info(loss, evaluations, tuple(info.residuals for info in infos), failures)
