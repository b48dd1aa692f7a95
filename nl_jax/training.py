"""Training runs: many steps per dispatch, one run or many at once."""

import contextlib
import functools
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nl_jax.base import Array, Batch, Info, Key, Learner, LearnerState, Params, State
from nl_jax.batching import Order, shuffled
from nl_jax.checks import positive_integer, typed_key

Record = Callable[[LearnerState, Info], State]
Monitor = Callable[[LearnerState], Mapping[str, Any]]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a run. `state` and `history` hold all finished dispatches (`history` None if there are none).

    A run of `fit` goes on from there with `state` handed back and the same key.
    """

    def __init__(self, state: LearnerState, history: State) -> None:
        super().__init__("training was interrupted; .state and .history hold the dispatches that were finished")
        self.state, self.history = state, history


class Diverged(FloatingPointError):
    """The loss is no longer finite. `state` is the last one before that was seen, `history` includes it."""

    def __init__(self, message: str, state: LearnerState, history: State) -> None:
        super().__init__(message)
        self.state, self.history = state, history


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
        only `lambda state, info: info` pays for.
      monitor: `monitor(state) -> {name: number}`, called before the first dispatch and after each; what it
        returns is shown beside the bar.
      progress: whether to show a tqdm bar; by default if tqdm is installed.

    Returns:
      (state, history): the final state, and what was recorded with a leading axis of steps, as numpy arrays.

    Raises:
      ValueError: for settings out of range or data of unequal lengths.
      Diverged: if a loss, or in the end a parameter, is not finite.
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
    run = _Run(learner, data, num_steps, batch_size, order, steps_per_dispatch, record)
    typed_key(key)
    if not isinstance(state, LearnerState):
        raise ValueError(f"state must be made by learner.init(key, params), got {type(state).__name__}")

    def stop(state: LearnerState, losses: np.ndarray, history: State, first_step: int) -> None:
        bad = np.flatnonzero(~np.isfinite(losses))
        if bad.size:
            raise Diverged(
                f"the loss is {losses[bad[0]]} at step {first_step + bad[0]}: lower the learning rate, or the "
                "perturbation sigma if the estimator has one",
                state,
                history,
            )

    state, history = _drive(run, _one_run, key, state, int(state.step), stop, monitor, progress)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state.params))):
        message = f"parameters are no longer finite after step {int(state.step) - 1}: lower the learning rate"
        raise Diverged(message, state, history)
    return state, history


class Restarts(NamedTuple):
    """Many runs from different beginnings.

    Attributes:
      best: final state of the run with the lowest score.
      best_index: its number.
      scores: every run's score, [num_restarts]: the distribution over local minima.
      states: all final states, stacked along a leading axis.
      history: what was recorded, [num_restarts, num_steps, …].
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
    monitor: Monitor | None = None,
    progress: bool | None = None,
) -> Restarts:
    """Trains many initialisations at once under `vmap` and keeps the best (seed 001 §3).

    The loss is not convex: a run finds a local minimum, and in practice one tries many beginnings and chooses
    the lowest. Runs differ in their initial parameters, their batches and their noise.

    Args:
      learner: from `nl.learner`.
      key: typed key of all runs; run i uses `jax.random.fold_in(key, i)`.
      init: `init(key) -> params`, such as `network.init`.
      data: as for `fit`.
      score: `score(params) -> scalar`, lower is better, such as `lambda params: objective(params, data).mean()`.
      num_restarts: runs.
      num_steps, batch_size, order, steps_per_dispatch, record, progress: as for `fit`.
      monitor: as for `fit`, given all runs' states stacked along a leading axis.

    Returns:
      A `Restarts`. A run whose score is not finite is never the best.

    Raises:
      ValueError: for settings out of range, data of unequal lengths or a score that is not one number.
      Diverged: if the loss, or the score, of every run is no longer finite.
      Interrupted: on Ctrl-C. Both carry `.state` and `.history` of all runs.

    >>> import jax, jax.numpy as jnp, optax, nl_jax as nl
    >>> objective = lambda w, batch: (w**2 - 1) ** 2 + 0.3 * w + 0 * batch  # two minima, the left one lower
    >>> learner = nl.learner(nl.backprop(objective), optax.sgd(0.05))
    >>> found = nl.restarts(learner, jax.random.key(0), jax.random.normal, jnp.zeros(1),
    ...                     score=lambda w: objective(w, 0.0), num_restarts=16, num_steps=100, progress=False)
    >>> bool(found.best.params < 0), found.scores.shape
    (True, (16,))
    """
    num_restarts = positive_integer("num_restarts", num_restarts)
    run = _Run(learner, data, num_steps, batch_size, order, steps_per_dispatch, record)
    typed_key(key)
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(num_restarts))

    def begin(key: Key) -> tuple[Key, LearnerState]:
        params_key, state_key, run_key = jax.random.split(key, 3)
        return run_key, learner.init(state_key, init(params_key))

    run_keys, states = jax.vmap(begin)(keys)

    def stop(states: LearnerState, losses: np.ndarray, history: State, first_step: int) -> None:
        if not np.isfinite(losses[:, -1]).any():
            message = f"no loss of {num_restarts} restarts is finite after step {first_step + losses.shape[1] - 1}"
            raise Diverged(f"{message}: lower the learning rate", states, history)

    states, history = _drive(run, _many_runs, run_keys, states, 0, stop, monitor, progress)
    try:
        scores = np.asarray(jax.vmap(score)(states.params))
    except KeyboardInterrupt as interrupt:
        raise Interrupted(states, history) from interrupt
    if scores.shape != (num_restarts,):
        raise ValueError(f"score must return one number, got shape {scores.shape[1:]}: average over the examples")
    if not np.isfinite(scores).any():
        raise Diverged(f"no score of {num_restarts} restarts is finite: lower the learning rate", states, history)
    index = int(np.argmin(np.where(np.isfinite(scores), scores, np.inf)))
    return Restarts(jax.tree.map(lambda x: x[index], states), index, scores, states, history)


class _Run:
    """The settings of a run, checked."""

    def __init__(
        self,
        learner: Learner,
        data: Batch,
        num_steps: int,
        batch_size: int | None,
        order: Order,
        steps_per_dispatch: int,
        record: Record | None,
    ) -> None:
        if not isinstance(learner, Learner):
            raise ValueError(f"learner must be made by nl.learner(estimator, optimizer), got {type(learner).__name__}")
        self.learner, self.order, self.record = learner, order, record or _without_residuals
        self.data = jax.tree.map(jnp.asarray, data)
        self.num_steps = positive_integer("num_steps", num_steps)
        self.steps_per_dispatch = positive_integer("steps_per_dispatch", steps_per_dispatch)
        lengths = {leaf.shape[0] if leaf.ndim else 0 for leaf in jax.tree.leaves(self.data)}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(f"data must be arrays with equally many examples, at least 1; their numbers are {lengths}")
        self.batch_size = None if batch_size is None else positive_integer("batch_size", batch_size)
        (examples,) = lengths
        if self.batch_size is not None and self.batch_size > examples:
            raise ValueError(f"batch_size must be at most the {examples} examples there are, got {batch_size}")


def _without_residuals(state: LearnerState, info: Info) -> Info:
    del state
    return info._replace(residuals=())


def _steps(
    learner: Learner,
    order: Order,
    record: Record,
    batch_size: int | None,
    num_steps: int,
    key: Key,
    state: LearnerState,
    data: Batch,
    first_step: Array,
) -> tuple[LearnerState, tuple[Array, State]]:
    """Some steps in one scan; returns the state, and losses and records with a leading axis of steps."""
    step_key, order_key = jax.random.split(key)
    examples = jax.tree.leaves(data)[0].shape[0]
    chosen = None if batch_size is None else order(order_key, first_step, num_steps, examples, batch_size)

    def one(state: LearnerState, now: tuple[Array, Array | None]) -> tuple[LearnerState, tuple[Array, State]]:
        step, index = now
        batch = data if index is None else jax.tree.map(lambda x: x.at[index].get(mode="promise_in_bounds"), data)
        state, info = learner.step(jax.random.fold_in(step_key, step), state, batch)
        return state, (info.loss, record(state, info))

    return jax.lax.scan(one, state, (first_step + jnp.arange(num_steps), chosen))


_SETTINGS = (0, 1, 2, 3, 4)
_one_run = jax.jit(_steps, static_argnums=_SETTINGS)


@functools.partial(jax.jit, static_argnums=_SETTINGS)
def _many_runs(
    learner: Learner,
    order: Order,
    record: Record,
    batch_size: int | None,
    num_steps: int,
    keys: Key,
    states: LearnerState,
    data: Batch,
    first_step: Array,
) -> tuple[LearnerState, tuple[Array, State]]:
    """`_steps` for many runs at once, all at the same step number."""

    def one_run(key: Key, state: LearnerState) -> tuple[LearnerState, tuple[Array, State]]:
        return _steps(learner, order, record, batch_size, num_steps, key, state, data, first_step)

    return jax.vmap(one_run)(keys, states)


def _drive(
    run: _Run,
    dispatch: Callable[..., Any],
    key: Key,
    state: LearnerState,
    first_step: int,
    stop: Callable[[LearnerState, np.ndarray, State, int], None],
    monitor: Monitor | None,
    progress: bool | None,
) -> tuple[LearnerState, Any]:
    """Dispatches chunks of steps until all are done, keeping what is recorded on the host."""
    records: list[Any] = []

    def history() -> Any:
        axis = 0 if dispatch is _one_run else 1
        return jax.tree.map(lambda *parts: np.concatenate(parts, axis=axis), *records) if records else None

    with _bar(run.num_steps, progress) as bar:
        done = 0
        try:
            if monitor is not None:
                bar(0, monitor(state))
            while done < run.num_steps:
                steps = min(run.steps_per_dispatch, run.num_steps - done)
                next_state, (losses, recorded) = dispatch(
                    run.learner, run.order, run.record, run.batch_size, steps,
                    key, state, run.data, jnp.int32(first_step + done),
                )  # fmt: skip
                losses, recorded = jax.device_get((losses, recorded))
                records.append(recorded)
                stop(state, losses, history() if not np.isfinite(losses).all() else None, first_step + done)
                state, done = next_state, done + steps
                shown = {"loss": f"{np.mean(losses[..., -1]):.4g}"}
                bar(steps, shown | dict(monitor(state) if monitor is not None else {}))
        except KeyboardInterrupt as interrupt:
            raise Interrupted(state, history()) from interrupt
    return state, history()


@contextlib.contextmanager
def _bar(total: int, progress: bool | None) -> Iterator[Callable[[int, Mapping[str, Any]], None]]:
    """A tqdm bar as a function `show(steps done, figures to show)`."""
    wanted = importlib.util.find_spec("tqdm") is not None if progress is None else progress
    if not wanted:
        yield lambda steps, figures: None
        return
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError("progress=True needs tqdm: pip install tqdm, or pass progress=False") from error
    with tqdm(total=total, unit="step") as bar:

        def show(steps: int, figures: Mapping[str, Any]) -> None:
            bar.set_postfix(figures, refresh=False)
            bar.update(steps)

        yield show
