"""Reports of a run, and the ways in which it may end early."""

from typing import Any, NamedTuple

import numpy as np

from nl_jax.base import Failure, LearnerState, State


class Report(NamedTuple):
    """What `log` is told between two dispatches.

    Attributes:
      step: number of steps taken so far, those of earlier runs included.
      loss: of the last step, a number; of `restarts` one a run, [num_restarts]. NaN in the first report, which comes
        before the first dispatch, so that `report.loss < 0.1` is false there.
      losses: of each step since the last report, [steps] or [num_restarts, steps].
      records: what `record` kept of these steps, axes of steps as in `losses`; None in the first report.
      state: after them, on the device; of `restarts` all runs' states, stacked along a leading axis.
    """

    step: int
    loss: Any
    losses: np.ndarray
    records: Any
    state: LearnerState


class Outcomes(NamedTuple):
    """What tells whether steps went well, leading axes [steps] or [runs, steps].

    Attributes:
      losses: of each step.
      failures: of each step's estimate.
    """

    losses: Any
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


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a run. `state` and `history` hold all finished dispatches (`history` None if there are none).

    A run of `fit` goes on from there with `state` handed back and the same key; one with a checkpoint folder has
    saved them there, and the same call goes on.
    """

    def __init__(self, message: str, state: LearnerState | None, history: State) -> None:
        super().__init__(message)
        self.state, self.history = state, history


class Terminated(SystemExit):
    """SIGTERM during a run with a checkpoint folder, which holds all finished dispatches: the same call goes on.

    If nobody catches it, Python exits with code 143 (128 + SIGTERM), as for a process that SIGTERM ended.
    """

    def __init__(self, state: LearnerState, history: State) -> None:
        super().__init__(143)
        self.state, self.history = state, history


class Diverged(FloatingPointError):
    """The loss is no longer finite, or an estimate failed (see `nl.Info`).

    `state` is the last one before that was seen, None if it was donated; `history` includes the bad step.
    """

    def __init__(self, message: str, state: LearnerState | None, history: State) -> None:
        super().__init__(message)
        self.state, self.history = state, history


class Exhausted(ValueError):
    """The iterator that `data` is ended before the run. `state` and `history` hold the steps it was enough for."""

    def __init__(self, message: str, state: LearnerState, history: State) -> None:
        super().__init__(message)
        self.state, self.history = state, history
