"""Trains one learner."""

import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nl_jax._core.numerics import all_finite
from nl_jax._core.require import concrete
from nl_jax.base import Batch, Key, Learner, LearnerState, State
from nl_jax.training.batching import Order, shuffled
from nl_jax.training.dispatch import ONE, ONE_DONATING, Record
from nl_jax.training.loop import Loop
from nl_jax.training.outcome import Diverged, Outcomes
from nl_jax.training.run import Log, Run


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
    log: Log | Sequence[Log] = (),
    progress: bool | None = None,
    donate: bool = False,
    checkpoint: str | os.PathLike | None = None,
    every: int | None = None,
) -> tuple[LearnerState, Any]:
    """Trains one learner for a number of steps.

    Keys and batches depend only on `key` and `state.step`. A run that is stopped and continued with the same key
    therefore equals an uninterrupted one. With `checkpoint`, the same call resumes a run whose process ended at any
    instant, and the result is bitwise the same.

    Args:
      learner: from `nl.learner`.
      key: typed key of the whole run.
      state: from `learner.init` or an earlier run.
      data: tree of arrays with examples along the first axis, such as (images, labels); they stay on the device. Or an
        iterator of batches, such as a grain loader: each batch is sent to the device during the previous step. An
        iterator with `get_state()` and `set_state(state)` can be used with `checkpoint`.
      num_steps: steps to take from `state`.
      batch_size: examples per step; None for all of them (full batch), 1 for single-sample descent. For a
        sum over the batch instead of a mean see `nl.batch_sum`. An iterator chooses its batches itself.
      order: `nl.batching.shuffled` (passes over the data), `nl.batching.uniform` (with replacement), or a function of
        your own, `order(key, first_step, num_steps, num_examples, batch_size) -> indices`, [num_steps, batch_size].
      steps_per_dispatch: steps between two returns to Python; with arrays, one compiled call runs them all. Python
        then calls the logs, saves the state and handles Ctrl-C and SIGTERM, in a few milliseconds at most. Use 1,000 or
        more if a step takes 0.1 ms or less. Use 1 on a CPU for convolutions by `jax.lax`, for whose derivatives in a
        loop XLA's CPU compiler is slow (`nl.connections.conv_general_dilated` computes them otherwise).
      record: `record(state, info)` returns what to keep of each step; by default `info` without its residuals. Only
        `lambda state, info: info` makes the run compute the residuals.
      log: a function, or several, called with an `nl.Report` before the first dispatch and after each. It returns None,
        True to stop training here, or a mapping of figures to show beside the progress bar. `nl.logs` has functions
        that write to files, TensorBoard and Weights & Biases.
      progress: whether to show a tqdm bar; by default if tqdm is installed.
      donate: whether the run may reuse the memory of `state`, whose arrays are then deleted, and of each later state
        when the next dispatch begins. Large networks need this: without it, two states exist at a time, and
        `nl.seeded` cannot change its parameters in place.
      checkpoint: a folder to save the run in (needs orbax: `pip install 'nl_jax[checkpoint]'`). It is created if it
        does not exist. If it exists, the run resumes from its newest state, which replaces `state`, up to `num_steps`
        steps from the first one. It holds the three newest states and all records. A folder of a run with another key,
        first step, batch size or order, or other shapes of state or data, is refused. Functions, their settings, the
        values of the data and the initial parameters cannot be compared: take a new folder when they change.
      every: steps between two saves, by default one dispatch; saves happen at the end of a dispatch. The last step is
        always saved.

    Returns:
      (state, history): the final state, and the records as numpy arrays with a leading axis of steps; by default an
      `nl.Info` with `history.loss` and `history.evaluations`, both [num_steps].

    Raises:
      ValueError: for settings out of range, data of unequal lengths, a `checkpoint` folder of another run, or an
        `order` that chooses examples that do not exist.
      OSError: if a checkpoint cannot be read or written.
      Diverged: if an estimate fails (see `nl.Info`), or if a loss, or a parameter to be saved or returned, is not
        finite.
      Exhausted: if `data` is an iterator that ends before the run.
      Interrupted: on Ctrl-C.
      Terminated: a `SystemExit`, on SIGTERM, if there is a `checkpoint` and `fit` runs in the main thread.

    The last four carry `.state` and `.history`; with a `checkpoint`, the last three have saved them. With `donate`, the
    state before a failed estimate or loss is gone, and `Diverged.state` is None. The parameters that `learner.init` was
    given are part of the state: copy them first if they are needed later.

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
    run = Run(
        learner=learner, key=key, data=data, num_steps=num_steps, batch_size=batch_size, order=order,
        steps_per_dispatch=steps_per_dispatch, record=record, log=log, progress=progress, checkpoint=checkpoint,
        every=every,
    )  # fmt: skip
    if not isinstance(state, LearnerState):
        raise ValueError(f"state must be made by learner.init(key, params), got {type(state).__name__}")
    concrete("state", state)
    begin = int(state.step)

    def stop(
        before: LearnerState | None, after: LearnerState, outcomes: Outcomes, history: State, first_step: int
    ) -> None:
        del after
        bad = np.flatnonzero(outcomes.bad())
        if bad.size:
            step, loss, failed = first_step + bad[0], outcomes.losses[bad[0]], outcomes.failed(bad[0])
            remedy = "lower the learning rate, or the perturbation sigma if the estimator has one"
            if step == begin:  # nothing has been learned in this run
                remedy = f"look for NaN in data and parameters and for labels not in 0 … classes − 1; else {remedy}"
            message = f"at step {step} {failed}" if failed else f"the loss is {loss} at step {step}: {remedy}"
            raise Diverged(message, before, history)

    def fault(state: LearnerState) -> str | None:
        if _finite(state.params):
            return None
        return f"parameters are no longer finite after step {int(state.step) - 1}: lower the learning rate"

    engine = ONE_DONATING if donate else ONE
    return Loop(run, engine, key, jax.tree.map(jnp.asarray, state), begin, stop, fault).finish()


_finite = jax.jit(all_finite)
