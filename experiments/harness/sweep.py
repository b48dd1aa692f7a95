"""Training at several learning rates and from several initialisations at once, measured at several moments.

`nl.sweep` scores runs at their end; here every set is measured along the way too, and all runs have the same batches.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

import nl_jax as nl
from experiments.harness.data import Dataset
from nl_jax.base import Forward, Params


class Sets(NamedTuple):
    """Data to learn from, to choose settings by, and to report on: each is (inputs, labels)."""

    train: tuple[np.ndarray, np.ndarray]
    validation: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


def with_validation(dataset: Dataset) -> Sets:
    """Splits off the first quarter of the training images for validation; the images are in random order."""
    images, labels = dataset.train
    apart = len(labels) // 4
    return Sets(
        (images[apart:], labels[apart:]), (images[:apart], labels[:apart]), (dataset.test.images, dataset.test.labels)
    )


class Scores(NamedTuple):
    """Scores of a classifier; `sweep` returns arrays [rates, seeds, moments].

    Attributes:
      loss: mean cross-entropy in nats, by set: "train", "validation", "test".
      error: fraction of wrong answers, by set.
    """

    loss: dict[str, Any]
    error: dict[str, Any]


def scores(forward: Forward) -> Callable[[Params, Sets], Scores]:
    """A function that scores a classifier on every set, each in one batch."""

    def measure(params: Params, sets: Sets) -> Scores:
        loss, error = {}, {}
        for name, (inputs, labels) in sets._asdict().items():
            outputs = forward(params, inputs)
            loss[name] = jnp.mean(nl.losses.cross_entropy(outputs, labels))
            error[name] = jnp.mean(jnp.argmax(outputs, axis=-1) != labels)
        return Scores(loss, error)

    return measure


def sweep(
    learner: Callable[[Any], nl.Learner],
    init: Callable[[Any], Params],
    measure: Callable[[Params, Any], Any],
    sets: Any,
    *,
    rates: Sequence[float],
    seeds: int,
    batch_size: int,
    moments: Sequence[int],
) -> Any:
    """Trains at every rate from every initialisation on batches drawn with replacement (seed 001 §1 and §4).

    A seed gives the same initialisation and the same batches at every rate, and in every call with equal arguments.

    Args:
      learner: `learner(rate) -> nl.Learner`.
      init: `init(key) -> params`.
      measure: `measure(params, sets) -> tree`.
      sets: a tree with the training examples as `sets.train`.
      rates: learning rates.
      seeds: number of initialisations.
      batch_size: examples per update.
      moments: rising numbers of updates after which to measure, the first 0 or more.

    Returns:
      The measurements, a tree of arrays [rates, seeds, moments, …]; not finite for runs that diverged.

    Raises:
      KeyboardInterrupt: on Ctrl-C, between moments.

    Calls with the very same functions are not compiled again.
    """
    examples = len(jax.tree.leaves(sets.train)[0])
    # Drawn on the host, and runs are initialised one by one: compiling random numbers takes longer than the rest.
    orders = [np.random.default_rng(seed).integers(examples, size=(moments[-1], batch_size)) for seed in range(seeds)]
    begun = [init(jax.random.key(seed)) for seed in range(seeds)]
    of_run = jnp.tile(jnp.arange(seeds, dtype=jnp.int32), len(rates))
    params = jax.tree.map(lambda *of_seed: jnp.stack(of_seed)[of_run], *begun)
    states = jax.vmap(functools.partial(learner(1.0).init, jax.random.key(0)))(params)
    runs = jnp.repeat(jnp.asarray(rates, jnp.float32), seeds), of_run
    data = jax.tree.map(jnp.asarray, sets), jnp.asarray(orders, jnp.int32)
    found, done = [], 0
    for moment in tqdm(moments, unit="moment", leave=False):
        states = _advance(learner, runs, states, data, jnp.int32(done), jnp.int32(moment))
        found.append(jax.device_get(_measure(measure, states.params, data[0])))
        done = moment
    return jax.tree.map(lambda *x: np.stack(x, axis=1).reshape(len(rates), seeds, len(x), *x[0].shape[1:]), *found)


def first_at_most(target: float, values: np.ndarray, moments: Sequence[int] | np.ndarray) -> np.ndarray:
    """The first moment at which values [..., moments] are at most `target`; infinite if they never are."""
    reached = values <= target
    return np.where(reached.any(axis=-1), np.asarray(moments, float)[reached.argmax(axis=-1)], np.inf)


def fastest(validation: np.ndarray, target: float, moments: Sequence[int] | np.ndarray) -> int:
    """Index of the rate with which all seeds soonest reach a validation loss of `target`, [rates, seeds, moments].

    If no rate reaches it for all seeds, the one with the lowest mean final loss.
    """
    taken = first_at_most(target, validation, moments).mean(axis=-1)
    return int(np.argmin(taken)) if np.isfinite(taken).any() else lowest(validation[..., -1])


def lowest(values: np.ndarray) -> int:
    """Index of the rate with the lowest mean over seeds, [rates, seeds]; a rate with a diverged run is not chosen."""
    mean = values.mean(axis=-1)
    return int(np.argmin(np.where(np.isfinite(mean), mean, np.inf)))


@functools.partial(jax.jit, static_argnums=0)
def _advance(learner: Any, runs: Any, states: Any, data: Any, first: Any, last: Any) -> nl.LearnerState:
    """Makes updates `first` to `last` − 1 of all runs."""
    sets, orders = data

    def one(rate: jax.Array, seed: jax.Array, state: nl.LearnerState) -> nl.LearnerState:
        def update(step: jax.Array, state: nl.LearnerState) -> nl.LearnerState:
            batch = jax.tree.map(lambda x: x[orders[seed, step]], sets.train)
            key = jax.random.fold_in(jax.random.key(seed), step)
            return learner(rate).step(key, state, batch)[0]

        return jax.lax.fori_loop(first, last, update, state)

    rates, seeds = runs
    return jax.vmap(one)(rates, seeds, states)


@functools.partial(jax.jit, static_argnums=0)
def _measure(measure: Any, params: Params, sets: Any) -> Any:
    return jax.lax.map(lambda params: measure(params, sets), params)
