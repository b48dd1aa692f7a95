"""Chooses trials, and says whether decorrelation brings a method nearer to backprop."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.decorrelation.training import Task, Trained, Trial
from experiments.harness.results import with_error
from experiments.harness.sweep import lowest
from nl_jax._core.numerics import mean_and_error

BACK = 1.5  # a run whose loss rises above this multiple of the target has not settled
CLEAR = 2.0  # least difference that counts, in standard errors


class Lesson(NamedTuple):
    """One method on one task, with or without decorrelation."""

    task: str
    method: str
    decorrelated: bool

    def __str__(self) -> str:
        return f"{self.task} / {self.method}{' / decorrelated' * self.decorrelated}"


class Chosen(NamedTuple):
    """Results of the chosen trials, by seed.

    Attributes:
      trial: the rates of the trial that first reaches the target loss.
      updates: its updates until the test loss has settled at the target; infinite if it never does.
      evaluations: objective evaluations in these updates.
      loss: its test loss, [seeds, moments].
      correlation: its final root mean square correlation between a layer's inputs.
      last: the rates of the trial with the lowest final validation loss.
      error: that trial's final test error.
    """

    trial: Trial
    updates: np.ndarray
    evaluations: np.ndarray
    loss: np.ndarray
    correlation: np.ndarray
    last: Trial
    error: np.ndarray


Results = Mapping[Lesson, Chosen]


def choose(found: Trained, tried: Sequence[Trial], task: Task, at: Sequence[int]) -> Chosen:
    """Chooses trials on validation data and reports them on test data."""
    soonest = _soonest(settled(task.target, found.validation, at), found.validation)
    best = lowest(found.validation[..., -1])
    updates = settled(task.target, found.test[soonest], at)
    of_soonest = updates, updates * found.evaluations, found.test[soonest], found.correlation[soonest, :, -1]
    return Chosen(tried[soonest], *of_soonest, tried[best], found.error[best, :, -1])


def _soonest(updates: np.ndarray, validation: np.ndarray) -> int:
    """Returns the trial with the fewest mean updates, [trials, seeds].

    If every trial has a seed that never settles, the trial with the lowest final validation loss is chosen.
    """
    mean = updates.mean(axis=1)
    return int(np.argmin(mean)) if np.isfinite(mean).any() else lowest(validation[..., -1])


def settled(target: float, loss: np.ndarray, at: Sequence[int]) -> np.ndarray:
    """Returns the updates after which losses [..., moments] have settled at `target`; infinite if they never do.

    A loss has settled if it has fallen to the target and never rises above 1.5 times the target again. The logarithm
    of the loss is interpolated linearly between moments.
    """
    moments = np.asarray(at, float)

    def one(values: np.ndarray) -> float:
        high = np.flatnonzero(~(values <= BACK * target))  # NaN counts as high
        begin = int(high[-1]) + 1 if len(high) else 0
        low = np.flatnonzero(values[begin:] <= target)
        if not len(low):
            return np.inf
        first = begin + int(low[0])
        if first == 0:
            return float(moments[0])
        before, after = values[first - 1], values[first]
        part = np.log(before / target) / np.log(before / after) if np.isfinite(before) else 1.0
        return float(moments[first - 1] + part * (moments[first] - moments[first - 1]))

    return np.apply_along_axis(one, -1, loss)


def findings(results: Results) -> list[dict[str, Any]]:
    """Returns the effect of decorrelation on every method, by itself and relative to backprop.

    Each finding says "yes" or "no" if the difference exceeds two standard errors over seeds, else "undecided".
    """
    said: list[dict[str, Any]] = []
    for lesson, with_it in results.items():
        plain = results.get(lesson._replace(decorrelated=False))
        if not lesson.decorrelated or plain is None:
            continue
        own = plain.updates, with_it.updates
        said.append(_compared(f"{lesson.task}: {lesson.method} takes fewer updates with decorrelation", *own))
        backprop = [results.get(Lesson(lesson.task, "backprop", flag)) for flag in (False, True)]
        if lesson.method == "backprop" or None in backprop:
            continue
        base, decorrelated = (of.updates for of in backprop if of is not None)
        for what, other in (("without it", base), ("with it", decorrelated)):
            relative = [_relative(plain.updates, base), _relative(with_it.updates, other)]
            statement = f"{lesson.task}: decorrelation brings {lesson.method} nearer to backprop {what}"
            said.append(_compared(statement, *relative))
    return said


def _relative(updates: np.ndarray, to: np.ndarray) -> np.ndarray:
    """Returns the ratio by seed; infinite where backprop itself does not reach the target."""
    there = np.isfinite(to)
    return np.where(there, updates / np.where(there, to, 1), np.inf)


def _compared(statement: str, without: np.ndarray, with_it: np.ndarray) -> dict[str, Any]:
    """Judges whether values by seed got smaller; a side that is infinite in any seed counts as the larger one."""
    digits = 0 if with_it.min() > 20 else 2
    figure = f"{with_error(without, digits)} without, {with_error(with_it, digits)} with"
    lost = [not np.isfinite(values).all() for values in (without, with_it)]
    if any(lost):
        says = "undecided" if all(lost) else "yes" if lost[0] else "no"
    else:
        mean, error = mean_and_error(without - with_it)
        says = "undecided" if abs(mean) <= CLEAR * error else "yes" if mean > 0 else "no"
    return {"statement": statement, "says": says, "figure": figure, "without": without, "with": with_it}
