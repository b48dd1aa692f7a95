"""Checks the settings of a run."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from nl_jax._core.require import concrete, positive_integer, typed_key
from nl_jax.base import Key, Learner
from nl_jax.training.batching import Order
from nl_jax.training.dispatch import Record, hashable, without_residuals
from nl_jax.training.outcome import Report
from nl_jax.training.sources import source

Log = Callable[[Report], Mapping[str, Any] | bool | None]
"""A function called with a report between dispatches: see `nl.fit`."""


class Run:
    """Checks and holds the settings that `fit`, `restarts` and `sweep` share; their docstrings explain each setting."""

    def __init__(
        self,
        *,
        learner: Learner,
        key: Key,
        data: Any,
        num_steps: int,
        batch_size: int | None,
        order: Order,
        steps_per_dispatch: int,
        record: Record | None,
        log: Log | Sequence[Log],
        progress: bool | None,
        checkpoint: str | os.PathLike | None,
        every: int | None,
        log_may_stop: bool = True,
    ) -> None:
        if not isinstance(learner, Learner):
            raise ValueError(f"learner must be made by nl.learner(estimator, optimizer), got {type(learner).__name__}")
        typed_key(key)
        concrete("key", key)
        self.learner, self.record, self.progress = learner, hashable(record or without_residuals), progress
        self.num_steps = positive_integer("num_steps", num_steps)
        self.steps_per_dispatch = positive_integer("steps_per_dispatch", steps_per_dispatch)
        self.source = source(data, batch_size, order)
        self.logs, self.log_may_stop = _logs(log), log_may_stop
        if every is not None and checkpoint is None:
            raise ValueError(f"every={every} needs checkpoint=, the folder to save to")
        self.checkpoint, self.every = checkpoint, 1 if every is None else positive_integer("every", every)
        self.identity = {"key": f"{jax.random.key_impl(key)} {np.asarray(jax.random.key_data(key)).tolist()}"}

    def call_logs(self, report: Report) -> tuple[dict[str, Any], bool]:
        """Calls the logs; returns the figures to show, and whether a log asks to stop."""
        figures: dict[str, Any] = {}
        stop = False
        for log in self.logs:
            answer = log(report)
            if isinstance(answer, Mapping):
                figures |= answer
            elif answer is not None:
                if np.shape(answer) or not np.issubdtype(np.result_type(answer), np.bool_):
                    raise ValueError(
                        f"log must return None, figures to show as a mapping, or True to stop; got {answer!r}"
                    )
                stop |= bool(answer)
        if stop and not self.log_may_stop:
            raise ValueError(
                f"log returned True at step {report.step}, but a sweep cannot be stopped early: scores after different "
                "numbers of steps cannot be compared; return None, and choose num_steps"
            )
        return figures, stop


def _logs(log: Any) -> tuple[Log, ...]:
    """Returns the logs; raises a ValueError unless `log` is a function or an iterable of functions."""
    several = isinstance(log, Iterable) and not isinstance(log, str)
    logs = tuple(log) if several and not callable(log) else (log,)
    wrong = [one for one in logs if not callable(one)]
    if wrong:
        raise ValueError(
            f"log must be a function of a report, or a sequence of them, got {wrong[0]!r}: leave it out for none"
        )
    return logs
