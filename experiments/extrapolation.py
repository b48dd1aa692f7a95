"""Steps of a size compared with a flow, their limit: Richardson's extrapolation to steps of size zero."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from experiments.failure import ExperimentError
from experiments.results import Verdict

# By how many error bars a limit may miss: the error bar is what the last order of extrapolation still corrected, more
# than the orders left out can be while the series falls.
ALLOWED = 1.0
NOTE = (
    "η → 0: extrapolated from the three; ±: what the third changed of it, more than the error left; off: the largest\n"
    "deviation of a curve from its law, in its own ±, at most 1 where theory and measurement agree."
)


class Limit(NamedTuple):
    """What was measured at steps of η, η/2 and η/4, at the same times, continued to η → 0."""

    values: np.ndarray
    """The limit, an error of O(η³) left."""
    correction: np.ndarray
    """What the third rate changed of it, O(η²): its error bar."""
    raw: np.ndarray
    """The measurement at η/4."""


def limit(coarse: np.ndarray, middle: np.ndarray, fine: np.ndarray) -> Limit:
    """The limit of three measurements at η, η/2 and η/4, whose errors are power series in η."""
    first = 2 * fine - middle
    second = (coarse - 6 * middle + 8 * fine) / 3
    return Limit(second, second - first, fine)


def deviation(found: Limit, law: np.ndarray) -> float:
    """How far limits lie from what a law says, in error bars; of curves along the last axis, both at their largest.

    Of many curves the largest deviation, and NaN if anything is.
    """
    missed = np.abs(found.values - law).max(axis=-1)
    return float(np.max(missed / np.abs(found.correction).max(axis=-1)))


def verdict(deviations: Mapping[str, float]) -> Verdict:
    """The largest of them, by name and in error bars."""
    return Verdict(float(np.max(list(deviations.values()))), ALLOWED, "error bars")


def judge(deviations: Mapping[str, float]) -> None:
    """Fails unless all of them, by name and in error bars, are allowed.

    Raises:
      ExperimentError: naming the first that is not.
    """
    for name, off in deviations.items():
        if not off <= ALLOWED:
            raise ExperimentError(
                f"law and measurement disagree: {name} is {off:.1f} error bars off; if not with more --steps, steps "
                "were too large to extrapolate from"
            )
