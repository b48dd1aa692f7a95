"""Many steps in one compiled call, one run or many at once; between calls progress, interrupts and checks."""

import contextlib
import functools
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nl_jax.base import Array, Batch, Failure, Info, Key, Learner, LearnerState, State
from nl_jax.batching import Order
from nl_jax.checks import positive_integer

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
    """The loss is no longer finite, or an estimate failed (see `nl.Info`).

    `state` is the last one before that was seen, `history` includes it.
    """

    def __init__(self, message: str, state: LearnerState, history: State) -> None:
        super().__init__(message)
        self.state, self.history = state, history


class Run:
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
        self.learner, self.order, self.record = learner, order, record or _loss_and_evaluations
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


def _loss_and_evaluations(state: LearnerState, info: Info) -> Info:
    del state
    return Info(info.loss, info.evaluations)


class Outcomes(NamedTuple):
    """What tells whether steps went well, leading axes [steps] or [runs, steps].

    Attributes:
      losses: of each step.
      failures: of each step's estimate.
    """

    losses: Array
    failures: tuple[Failure, ...]

    def bad(self) -> np.ndarray:
        """Which steps did not: their loss is not finite, or their estimate failed."""
        bad = ~np.isfinite(self.losses)
        for failure in self.failures:
            bad = bad | np.asarray(failure.occurred)
        return bad

    def failed(self, at: Any = ...) -> str | None:
        """What failed at a step, or at any; None if nothing but the loss."""
        return next((failure.message for failure in self.failures if np.any(failure.occurred[at])), None)


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
) -> tuple[LearnerState, tuple[Outcomes, State]]:
    """Some steps in one scan; returns the state, and outcomes and records with a leading axis of steps."""
    step_key, order_key = jax.random.split(key)
    examples = jax.tree.leaves(data)[0].shape[0]
    chosen = None if batch_size is None else order(order_key, first_step, num_steps, examples, batch_size)

    def one(state: LearnerState, now: tuple[Array, Array | None]) -> tuple[LearnerState, tuple[Outcomes, State]]:
        step, index = now
        batch = data if index is None else jax.tree.map(lambda x: x.at[index].get(mode="promise_in_bounds"), data)
        state, info = learner.step(jax.random.fold_in(step_key, step), state, batch)
        return state, (Outcomes(info.loss, info.failures), record(state, info))

    return jax.lax.scan(one, state, (first_step + jnp.arange(num_steps, dtype=jnp.int32), chosen))


_SETTINGS = (0, 1, 2, 3, 4)
one_run = jax.jit(_steps, static_argnums=_SETTINGS)


@functools.partial(jax.jit, static_argnums=_SETTINGS)
def many_runs(
    learner: Learner,
    order: Order,
    record: Record,
    batch_size: int | None,
    num_steps: int,
    keys: Key,
    states: LearnerState,
    data: Batch,
    first_step: Array,
) -> tuple[LearnerState, tuple[Outcomes, State]]:
    """`_steps` for many runs at once, all at the same step number."""

    def one(key: Key, state: LearnerState) -> tuple[LearnerState, tuple[Outcomes, State]]:
        return _steps(learner, order, record, batch_size, num_steps, key, state, data, first_step)

    return jax.vmap(one)(keys, states)


def drive(
    run: Run,
    dispatch: Callable[..., Any],
    step_axis: int,
    key: Key,
    state: LearnerState,
    first_step: int,
    stop: Callable[[LearnerState, Outcomes, State, int], None],
    monitor: Monitor | None,
    progress: bool | None,
) -> tuple[LearnerState, Any]:
    """Dispatches chunks of steps until all are done, keeping on the host what is recorded, steps along `step_axis`."""
    records: list[Any] = []

    def history() -> Any:
        return jax.tree.map(lambda *parts: np.concatenate(parts, axis=step_axis), *records) if records else None

    with _bar(run.num_steps, progress) as bar:
        done = 0
        try:
            if monitor is not None:
                bar(0, monitor(state))
            while done < run.num_steps:
                steps = min(run.steps_per_dispatch, run.num_steps - done)
                next_state, (outcomes, recorded) = dispatch(
                    run.learner, run.order, run.record, run.batch_size, steps,
                    key, state, run.data, np.int32(first_step + done),
                )  # fmt: skip
                outcomes, recorded = jax.device_get((outcomes, recorded))
                records.append(recorded)
                stop(state, outcomes, history() if outcomes.bad().any() else None, first_step + done)
                state, done = next_state, done + steps
                shown = {"loss": f"{np.mean(outcomes.losses[..., -1]):.4g}"}
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
