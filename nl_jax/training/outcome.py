"""Reports of a run, and the exceptions that end it early."""

from typing import Any, NamedTuple

import numpy as np

from nl_jax.base import Failure, Key, LearnerState, State


class Report(NamedTuple):
    """The argument of `log`, which is called between two dispatches.

    Attributes:
      step: number of steps taken so far, including those of earlier runs.
      loss: loss of the last step, a number; for `restarts` one per run, [num_restarts]. NaN in the first report, which
        comes before the first dispatch, so that `report.loss < 0.1` is false there.
      losses: loss of each step since the last report, [steps] or [num_restarts, steps].
      records: what `record` returned for these steps, with the axes of `losses` first; None in the first report.
      state: the state after these steps, on the device; for `restarts` all states, stacked along a leading axis.
      key: key of the run; for `restarts` all keys, [num_restarts].
    """

    step: int
    loss: Any
    losses: np.ndarray
    records: Any
    state: LearnerState
    key: Key

    @property
    def is_first(self) -> bool:
        """Whether no step was taken since the run began or was resumed."""
        return self.losses.shape[-1] == 0


class Outcomes(NamedTuple):
    """Losses and failures of steps, with leading axes [steps] or [runs, steps].

    Attributes:
      losses: the loss of each step.
      failures: the failures of each step's estimate.
      indices: the smallest and the largest index of each step's examples, if a user's `order` chose them.
    """

    losses: Any
    failures: tuple[Failure, ...]
    indices: Any = ()

    def bad(self) -> np.ndarray:
        """Returns which steps went wrong: their loss is not finite, or their estimate failed."""
        bad = ~np.isfinite(self.losses)
        for failure in self.failures:
            bad = bad | np.asarray(failure.occurred)
        return bad

    def failed(self, at: Any = ...) -> str | None:
        """Returns the message of what failed at a step, or at any step; None if only the loss is not finite."""
        return next((failure.message for failure in self.failures if np.any(failure.occurred[at])), None)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a run. `state` and `history` hold all finished dispatches (`history` None if there are none).

    To resume a run of `fit`, pass `state` and the same key. With a checkpoint folder, both have been saved there; the
    same call resumes the run.
    """

    def __init__(self, message: str, state: LearnerState | None, history: State) -> None:
        super().__init__(message)
        self.state, self.history = state, history


class Terminated(SystemExit):
    """SIGTERM during a run with a checkpoint folder, which holds all finished dispatches: the same call resumes it.

    If it is not caught, Python exits with code 143 (128 + SIGTERM), as a process ended by SIGTERM does.
    """

    def __init__(self, state: LearnerState, history: State) -> None:
        super().__init__(143)
        self.state, self.history = state, history


class Diverged(FloatingPointError):
    """The loss is no longer finite, or an estimate failed (see `nl.Info`).

    `state` is the last state before the failure was detected, None if it was donated; `history` includes the bad step.
    """

    def __init__(self, message: str, state: LearnerState | None, history: State) -> None:
        super().__init__(message)
        self.state, self.history = state, history


class Exhausted(ValueError):
    """The iterator `data` ended before the run. `state` and `history` hold the steps that were taken."""

    def __init__(self, message: str, state: LearnerState, history: State) -> None:
        super().__init__(message)
        self.state, self.history = state, history
