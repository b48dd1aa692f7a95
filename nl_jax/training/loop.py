"""The host loop between dispatches: measures, logs, saves, and stops."""

import contextlib
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from nl_jax.base import Key, LearnerState, State
from nl_jax.training.bar import bar
from nl_jax.training.checkpoints import Checkpoints
from nl_jax.training.dispatch import Call, Engine
from nl_jax.training.outcome import Diverged, Exhausted, Interrupted, Outcomes, Report, Terminated
from nl_jax.training.placement import beside
from nl_jax.training.preemption import ctrl_c_waits, noticed
from nl_jax.training.run import Run

_SHORT = 0.1
"""Seconds. After a dispatch that took less, the next dispatch and the one after it are enqueued together."""


class _Progress(NamedTuple):
    """The progress of a run; replaced as a whole, so that it is consistent on Ctrl-C."""

    step: int
    state: LearnerState
    position: str | None
    """The position of the data."""
    parts: int
    """How many parts of the records belong to it."""
    finished: bool
    """Whether a log has asked to stop."""


class Loop:
    """A run in progress.

    Args:
      run: its settings.
      engine: compiled calls, for one run or for many.
      key: key of the run, or of each run.
      state: state of the run, or of all runs, stacked.
      first_step: number of the first step.
      stop: `stop(state before, state after, outcomes, history, first step)` raises if a dispatch went wrong; the state
        before is None if it was donated.
      fault: `fault(state)` returns why a state should not be kept, or None.
    """

    def __init__(
        self,
        run: Run,
        engine: Engine,
        key: Key,
        state: LearnerState,
        first_step: int,
        stop: Callable[[LearnerState | None, LearnerState, Outcomes, State, int], None],
        fault: Callable[[LearnerState], str | None],
    ) -> None:
        self._run, self._stop, self._fault = run, stop, fault
        example = run.source.begin(run.num_steps, with_position=run.checkpoint is not None)
        key, state = beside(example, (key, state))
        self._call = Call(engine, run.learner, run.record, key)
        self._first_step, self._last_step = first_step, first_step + run.num_steps
        self._here = _Progress(first_step, state, None, 0, False)
        self._records: list[Any] = []
        self._ahead: tuple[LearnerState, Any] | None = None  # the dispatch after the current one, if already started
        self._short = False  # whether the last dispatch was; starting a long one ahead would delay a stop
        self._saves: Checkpoints | None = None
        self._saved_parts = 0

    def finish(self) -> tuple[LearnerState, Any]:
        """Takes all remaining steps; returns the state and the records, as NumPy arrays."""
        run = self._run
        with contextlib.ExitStack() as stack:
            terminated: Callable[[], bool] = lambda: False
            if run.checkpoint is not None:
                about = {**run.identity, "number of runs": str(self._here.state.step.size), "data": str(run.source)}
                saves = Checkpoints(run.checkpoint, about, self._first_step, self._here.state)
                self._saves = stack.enter_context(contextlib.closing(saves))
                self._resume(saves)
                terminated = stack.enter_context(noticed())
            show = stack.enter_context(bar(run.num_steps, self._here.step - self._first_step, run.progress))
            try:
                if not self._done():
                    show(0, self._call_logs(np.full(self._here.state.step.shape, np.nan)[()], np.zeros(0), None))
                while not self._done():
                    self._run_dispatch(show, terminated)
            except KeyboardInterrupt as interrupt:
                self._save()
                message = f"training was interrupted{self._how_to_resume()}"
                raise Interrupted(message, self._kept(), self._history()) from interrupt
        self._require_sound()
        return self._here.state, self._history()

    def _resume(self, saves: Checkpoints) -> None:
        """Loads the newest saved step, if there is one."""
        run, here = self._run, self._here
        recorded = lambda: run.source.recorded(self._call, here.state)
        saved = saves.newest(here.state, recorded, self._call.engine.step_axis)
        if saved is None:
            return
        if saved.step > self._last_step:
            raise ValueError(
                f"checkpoint folder {run.checkpoint} has {saved.step - self._first_step} steps, more than num_steps="
                f"{run.num_steps}: ask for at least as many"
            )
        self._records, self._saved_parts = saved.records, len(saved.records)
        self._here = _Progress(saved.step, saved.state, saved.position, len(saved.records), saved.finished)
        run.source.resume(saved.position, self._last_step - saved.step)

    def _done(self) -> bool:
        return self._here.finished or self._here.step >= self._last_step

    def _due(self, before: int) -> bool:
        """Whether a multiple of `every` was reached since step `before`."""
        return (self._here.step - self._first_step) // self._run.every > (before - self._first_step) // self._run.every

    def _run_dispatch(self, show: Callable[[int, Mapping[str, Any]], None], terminated: Callable[[], bool]) -> None:
        """Runs one dispatch, then updates the bar, saves, and stops if required."""
        before, wanted = self._here.step, min(self._run.steps_per_dispatch, self._last_step - self._here.step)
        figures = self._steps_and_logs(wanted)
        taken = self._here.step - before
        show(taken, figures)
        sigterm = terminated()
        if sigterm or taken < wanted or self._done() or self._due(before):
            self._save()
        if sigterm:
            print(f"SIGTERM: training stopped{self._how_to_resume()}", file=sys.stderr)
            raise Terminated(self._here.state, self._history())
        if taken < wanted:
            steps = f"{self._here.step - self._first_step} of {self._run.num_steps} steps"
            message = f"data ended after {steps}: repeat it, or ask for fewer steps"
            raise Exhausted(message, self._here.state, self._history())

    def _steps_and_logs(self, wanted: int) -> dict[str, Any]:
        """Takes some steps, checks them and calls the logs; returns figures to show."""
        # Ctrl-C must wait: a donated state is gone until the next one is there.
        with ctrl_c_waits() if self._call.engine.donates else contextlib.nullcontext():
            losses, recorded = self._take_steps(wanted)
        if not losses.shape[-1]:  # the data has ended
            return {}
        return {"loss": f"{np.mean(losses[..., -1]):.4g}", **self._call_logs(losses[..., -1][()], losses, recorded)}

    def _take_steps(self, wanted: int) -> tuple[np.ndarray, Any]:
        """Takes some steps and checks them; returns their losses and records."""
        here, began = self._here, time.perf_counter()
        state, outcome = self._enqueue(here.state, here.step, wanted) if self._ahead is None else self._ahead
        self._ahead = None
        # Processes must start the same programs in the same order, but may measure different times.
        if self._short and self._run.source.repeatable and not self._call.engine.donates and jax.process_count() == 1:
            step = here.step + wanted
            following = min(self._run.steps_per_dispatch, self._last_step - step)
            self._ahead = self._enqueue(state, step, following) if following else None
        outcomes, recorded = jax.device_get(outcome)
        self._run.source.check(outcomes)
        taken = outcomes.losses.shape[-1]
        self._short = time.perf_counter() - began < _SHORT
        if taken:
            del self._records[here.parts :]
            self._records.append(recorded)
            lost = outcomes.bad().any()
            self._stop(self._kept(), state, outcomes, self._history(here.parts + 1) if lost else None, here.step)
            self._here = _Progress(here.step + taken, state, self._run.source.position, here.parts + 1, False)
        return outcomes.losses, recorded

    def _enqueue(self, state: LearnerState, step: int, wanted: int) -> tuple[LearnerState, Any]:
        """Starts a dispatch without waiting for it; returns the state after it, and its outcomes and records."""
        return self._run.source.advance(self._call, state, step, wanted)

    def _kept(self) -> LearnerState | None:
        """Returns the newest checked state; None if it was donated to steps that failed."""
        state = self._here.state
        return None if any(leaf.is_deleted() for leaf in jax.tree.leaves(state)) else state

    def _call_logs(self, loss: Any, losses: np.ndarray, recorded: Any) -> dict[str, Any]:
        """Calls the logs; returns the figures to show."""
        here = self._here
        report = Report(here.step, loss, losses, recorded, here.state, self._call.key)
        figures, finished = self._run.call_logs(report)
        self._here = self._here._replace(finished=finished)
        return figures

    def _require_sound(self) -> None:
        if fault := self._fault(self._here.state):
            raise Diverged(fault, self._here.state, self._history())

    def _save(self) -> None:
        """Saves the run's progress, if it has a checkpoint folder that does not contain it yet."""
        here = self._here
        if self._saves is None or here.step == self._saves.step or self._kept() is None:
            return
        self._require_sound()
        unsaved = self._joined(self._records[self._saved_parts : here.parts])
        self._saves.save(here.step, here.state, unsaved, here.position, here.finished)
        self._saved_parts = here.parts

    def _how_to_resume(self) -> str:
        if self._saves is None:
            return "; .state and .history hold the dispatches that were finished"
        folder = self._run.checkpoint
        return f" after step {self._here.step}, which is saved in {folder}: repeat the same call to resume"

    def _history(self, parts: int | None = None) -> Any:
        return self._joined(self._records[: self._here.parts if parts is None else parts])

    def _joined(self, parts: list[Any]) -> Any:
        if not parts:
            return None
        return jax.tree.map(lambda *x: np.concatenate(x, axis=self._call.engine.step_axis), *parts)
