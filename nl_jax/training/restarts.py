"""Trains many runs at once, from different initial parameters."""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nl_jax._core.numerics import all_finite
from nl_jax._core.require import positive_integer
from nl_jax.base import Array, Batch, Key, Learner, LearnerState, Params, State
from nl_jax.training.batching import Order, shuffled
from nl_jax.training.dispatch import MANY, MANY_DONATING, Record
from nl_jax.training.loop import Loop
from nl_jax.training.outcome import Diverged, Interrupted, Outcomes
from nl_jax.training.run import Log, Run


class Restarts(NamedTuple):
    """The results of many runs from different initial parameters.

    Attributes:
      best: final state of the run with the lowest score.
      best_index: its number.
      scores: every run's score, [num_restarts]: the distribution over local minima.
      states: all final states, stacked along a leading axis.
      history: the records, [num_restarts, num_steps, …].
    """

    best: LearnerState
    best_index: int
    scores: np.ndarray
    states: LearnerState
    history: Any


def restarts(
    learner: Learner,
    key: Key,
    init: Callable[[Key], Params],
    data: Batch,
    *,
    score: Callable[[Params], Array],
    num_restarts: int,
    num_steps: int,
    batch_size: int | None = None,
    order: Order = shuffled,
    steps_per_dispatch: int = 200,
    record: Record | None = None,
    log: Log | Sequence[Log] = (),
    progress: bool | None = None,
    donate: bool = False,
    checkpoint: str | os.PathLike | None = None,
    every: int | None = None,
) -> Restarts:
    """Trains many initialisations at once under `vmap` and keeps the best (seed 001 §3).

    The loss is not convex, so a run finds a local minimum. In practice one tries many initialisations and chooses the
    run with the lowest loss. Runs differ in their initial parameters, their batches and their noise.

    Args:
      learner: from `nl.learner`.
      key: typed key of all runs; run i uses `jax.random.fold_in(key, i)`.
      init: `init(key) -> params`, such as `network.init`.
      data: as for `fit`. With an iterator, all runs see the same batches.
      score: `score(params) -> scalar`, lower is better, such as `lambda params: objective(params, data).mean()`.
      num_restarts: number of runs.
      num_steps, batch_size, order, steps_per_dispatch, record, progress, checkpoint, every: as for `fit`.
      donate: as for `fit`; all the states are then held once instead of twice.
      log: as for `fit`; the report has all runs' losses, records and states along a leading axis.

    Returns:
      A `Restarts`. A run whose score is not finite is never the best.

    Raises:
      ValueError: for settings out of range, data of unequal lengths, a score that is not one number, or a `checkpoint`
        folder of other runs.
      Diverged: if no run has finite parameters, or none has a finite score.
      OSError, Exhausted, Interrupted, Terminated: as for `fit`, with `.state` and `.history` of all runs.

    >>> import jax, jax.numpy as jnp, optax, nl_jax as nl
    >>> objective = lambda w, batch: (w**2 - 1) ** 2 + 0.3 * w + 0 * batch  # two minima, the left one lower
    >>> learner = nl.learner(nl.backprop(objective), optax.sgd(0.05))
    >>> found = nl.restarts(learner, jax.random.key(0), jax.random.normal, jnp.zeros(1),
    ...                     score=lambda w: objective(w, 0.0), num_restarts=16, num_steps=100, progress=False)
    >>> bool(found.best.params < 0), found.scores.shape
    (True, (16,))
    """
    num_restarts = positive_integer("num_restarts", num_restarts)
    run = Run(
        learner=learner, key=key, data=data, num_steps=num_steps, batch_size=batch_size, order=order,
        steps_per_dispatch=steps_per_dispatch, record=record, log=log, progress=progress, checkpoint=checkpoint,
        every=every,
    )  # fmt: skip
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(num_restarts))

    def begin(key: Key) -> tuple[Key, LearnerState]:
        params_key, state_key, run_key = jax.random.split(key, 3)
        return run_key, learner.init(state_key, init(params_key))

    run_keys, states = jax.vmap(begin)(keys)

    def stop(
        before: LearnerState | None, after: LearnerState, outcomes: Outcomes, history: State, first_step: int
    ) -> None:
        # Parameters that are not finite stay so. A loss may be finite again, as with optax.apply_if_finite.
        if (bad := outcomes.bad())[:, -1].all() and not _finite(after).any():
            message = f"all {num_restarts} restarts have diverged by step {first_step + bad.shape[1] - 1}"
            raise Diverged(f"{message}: {outcomes.failed() or 'lower the learning rate'}", before, history)

    engine = MANY_DONATING if donate else MANY
    states, history = Loop(run, engine, run_keys, states, 0, stop, lambda states: None).finish()
    try:
        scores = np.asarray(jax.vmap(score)(states.params))
    except KeyboardInterrupt as interrupt:
        raise Interrupted("scoring was interrupted; .state and .history hold all runs", states, history) from interrupt
    if scores.shape != (num_restarts,):
        raise ValueError(f"score must return one number, got shape {scores.shape[1:]}: average over the examples")
    if not np.isfinite(scores).any():
        raise Diverged(f"no score of {num_restarts} restarts is finite: lower the learning rate", states, history)
    index = int(np.argmin(np.where(np.isfinite(scores), scores, np.inf)))
    return Restarts(jax.tree.map(lambda x: x[index], states), index, scores, states, history)


@jax.jit
@jax.vmap
def _finite(state: LearnerState) -> Array:
    return all_finite(state.params)
