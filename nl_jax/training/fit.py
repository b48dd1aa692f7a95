"""One run of training."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nl_jax.base import Batch, Key, Learner, LearnerState, State
from nl_jax.batching import Order, shuffled
from nl_jax.checks import typed_key
from nl_jax.training.dispatch import Diverged, Monitor, Outcomes, Record, Run, drive, one_run


def fit(
    learner: Learner,
    key: Key,
    state: LearnerState,
    data: Batch,
    *,
    num_steps: int,
    batch_size: int | None = None,
    order: Order = shuffled,
    steps_per_dispatch: int = 200,
    record: Record | None = None,
    monitor: Monitor | None = None,
    progress: bool | None = None,
) -> tuple[LearnerState, Any]:
    """Trains for a number of steps, compiled in one piece per dispatch, the data staying on the device.

    Keys and batches follow from `key` and `state.step` alone: a run cut anywhere and continued with the same
    key equals an uninterrupted one.

    Args:
      learner: from `nl.learner`.
      key: typed key of the whole run.
      state: from `learner.init` or an earlier run.
      data: tree of arrays with examples along the first axis, such as (images, labels).
      num_steps: steps to take from here.
      batch_size: examples per step; None for all of them (full batch), 1 for single-sample descent. For a
        sum over the batch instead of a mean see `nl.batch_sum`.
      order: `nl.batching.shuffled` (passes over the data) or `nl.batching.uniform` (with replacement).
      steps_per_dispatch: steps compiled into one call; progress shows and interrupts act between calls.
      record: `record(state, info)`, what to keep of each step; by default `info` without its residuals, which
        only `lambda state, info: info` pays for, and its failures, which are errors.
      monitor: `monitor(state) -> {name: number}`, called before the first dispatch and after each; what it
        returns is shown beside the bar.
      progress: whether to show a tqdm bar; by default if tqdm is installed.

    Returns:
      (state, history): the final state, and what was recorded with a leading axis of steps, as numpy arrays.

    Raises:
      ValueError: for settings out of range or data of unequal lengths.
      Diverged: if an estimate fails (see `nl.Info`), or a loss, or in the end a parameter, is not finite.
      Interrupted: on Ctrl-C. Both carry `.state` and `.history`.

    >>> import jax, jax.numpy as jnp, optax, nl_jax as nl
    >>> objective = nl.supervised(lambda w, x: x @ w, nl.losses.half_squared_error)
    >>> learner = nl.learner(nl.backprop(objective), optax.sgd(0.1))
    >>> x = jax.random.normal(jax.random.key(0), [64, 3])
    >>> state = learner.init(jax.random.key(1), jnp.zeros([3, 1]))
    >>> state, history = nl.fit(learner, jax.random.key(2), state, (x, x @ jnp.ones([3, 1])), num_steps=300,
    ...                         batch_size=8, progress=False)
    >>> history.loss.shape, bool(history.loss[-1] < 1e-4)
    ((300,), True)
    """
    run = Run(learner, data, num_steps, batch_size, order, steps_per_dispatch, record)
    typed_key(key)
    if not isinstance(state, LearnerState):
        raise ValueError(f"state must be made by learner.init(key, params), got {type(state).__name__}")

    def stop(state: LearnerState, outcomes: Outcomes, history: State, first_step: int) -> None:
        bad = np.flatnonzero(outcomes.bad())
        if bad.size:
            step, loss, failed = first_step + bad[0], outcomes.losses[bad[0]], outcomes.failed(bad[0])
            remedy = "lower the learning rate, or the perturbation sigma if the estimator has one"
            message = f"at step {step} {failed}" if failed else f"the loss is {loss} at step {step}: {remedy}"
            raise Diverged(message, state, history)

    state, history = drive(run, one_run, 0, key, state, int(state.step), stop, monitor, progress)
    if not all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params)):
        message = f"parameters are no longer finite after step {int(state.step) - 1}: lower the learning rate"
        raise Diverged(message, state, history)
    return state, history
