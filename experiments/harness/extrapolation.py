"""Extrapolates measurements at several step sizes to step size zero (Richardson), for comparison with a flow."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from experiments.harness.failure import ExperimentError
from experiments.harness.results import Verdict

# Allowed deviation of a limit, in error bars. The error bar is the correction by the last order of extrapolation; it
# exceeds the omitted orders as long as the series decreases.
ALLOWED = 1.0
NOTE = (
    "η → 0: the limit of three step sizes. ±: an upper estimate of its error. off: the largest distance of a curve\n"
    "from theory, in units of ±; theory and measurement agree if it is at most 1."
)


class Limit(NamedTuple):
    """Measurements at steps of η, η/2 and η/4, at the same times, extrapolated to η → 0."""

    values: np.ndarray
    """The limit, with a remaining error of O(η³)."""
    correction: np.ndarray
    """The change of the limit due to the third rate, O(η²): its error bar."""
    raw: np.ndarray
    """The measurement at η/4."""


def limit(coarse: np.ndarray, middle: np.ndarray, fine: np.ndarray) -> Limit:
    """Returns the limit of three measurements at η, η/2 and η/4, whose errors are power series in η."""
    first = 2 * fine - middle
    second = (coarse - 6 * middle + 8 * fine) / 3
    return Limit(second, second - first, fine)


def deviation(found: Limit, law: np.ndarray) -> float:
    """Returns the largest deviation of limits from theory, in error bars; NaN if any value is NaN.

    Curves run along the last axis; a curve's deviation is its largest difference over its largest error bar.
    """
    missed = np.abs(found.values - law).max(axis=-1)
    return float(np.max(missed / np.abs(found.correction).max(axis=-1)))


def verdict(deviations: Mapping[str, float]) -> Verdict:
    """Judges the largest of the deviations, given by name and in error bars."""
    return Verdict(float(np.max(list(deviations.values()))), ALLOWED, "error bars")


def judge(deviations: Mapping[str, float]) -> None:
    """Checks the deviations, given by name and in error bars.

    Raises:
      ExperimentError: if a deviation is too large; names the first.
    """
    for name, off in deviations.items():
        if not off <= ALLOWED:
            raise ExperimentError(
                f"law and measurement disagree: {name} is {off:.1f} error bars off; if not with more --steps, steps "
                "were too large to extrapolate from"
            )
