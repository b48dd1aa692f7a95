"""The search for a rate, the queries until a loss is reached, and their ratio to MeZO's."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.zeroth_order.training import Curve
from nl_jax._core.numerics import mean_and_error

CLAIMED = {
    "FZOO": (18.0, "Dang et al. 2025, RoBERTa-large; 3 on average of all models"),
    "ZO-Muon": (1 / 0.247, "Lang et al. 2026, SST-2: 24.7 % of the queries"),
}
"""Factors by which methods need fewer forward passes than MeZO, as the papers claim."""


class Times(NamedTuple):
    """The factor by which a method takes fewer evaluations than MeZO.

    Attributes:
      found: the ratio of the means.
      error: its standard error over seeds; infinite for one seed.
      bound: "" if all runs reached the loss; "at most" if some of the method's did not; "at least" if some of
        MeZO's did not; "unknown" if both.
    """

    found: float
    error: float
    bound: str

    def __str__(self) -> str:
        if self.bound == "unknown":
            return "not known, some runs of both never reach the loss"
        error = f" ± {self.error:.2g}" if math.isfinite(self.error) else ", one seed"
        return f"{self.bound} {self.found:.3g} ×{error}".strip()


def search(trial: Callable[[float, int], Curve], first: float, most: int) -> dict[float, float]:
    """Searches a rate from `first`, up or down by √10, until the best is not at the edge: mean validation loss by rate.

    Runs that were cut short are compared over the moments that all have. A run that diverged has an infinite loss.

    Args:
      trial: `trial(rate, number)` makes a run; its number counts from 0.
      first: initial rate.
      most: largest number of rates tried.
    """
    curves: dict[float, Curve] = {}
    tried: dict[float, float] = {}
    rate = first
    while len(curves) < most:
        curves[rate] = trial(rate, len(curves))
        finite = {of: own.validation for of, own in curves.items() if np.isfinite(own.validation).all()}
        shortest = min((len(own) for own in finite.values()), default=0)
        tried = {of: float(np.mean(finite[of][:shortest])) if of in finite else math.inf for of in curves}
        best, least, highest = min(tried, key=lambda of: tried[of]), min(tried), max(tried)
        if best == highest and math.isfinite(tried[best]):
            rate = highest * 10**0.5
        elif best == least or not math.isfinite(tried[best]):
            rate = least / 10**0.5
        else:
            break
    return tried


def reached(evaluations: np.ndarray, losses: np.ndarray, target: float) -> float:
    """Evaluations at which a run's loss first falls to the target, linear between moments; infinite if it never does.

    >>> reached(np.array([0.0, 10.0, 20.0]), np.array([3.0, 2.0, 1.0]), 1.5)
    15.0
    """
    below = np.flatnonzero(losses <= target)
    if not len(below):
        return math.inf
    i = below[0]
    if i == 0:
        return float(evaluations[0])
    before, after = losses[i - 1], losses[i]
    part = (before - target) / (before - after)
    return float(evaluations[i - 1] + part * (evaluations[i] - evaluations[i - 1]))


def target_of(losses: Sequence[np.ndarray], fraction: float) -> float:
    """The loss after `fraction` of the mean descent of a method's runs."""
    first = float(np.mean([own[0] for own in losses]))
    last = float(np.mean([own[-1] for own in losses]))
    return first - fraction * (first - last)


def times_fewer(mezo: np.ndarray, other: np.ndarray, budgets: tuple[float, float]) -> Times:
    """MeZO's evaluations over another method's, each [seeds] and infinite where the loss was not reached.

    A run that never reaches the loss counts as one that does at the end of its budget: a one-sided bound on the ratio.
    """
    never = [not np.isfinite(own).all() for own in (mezo, other)]
    bound = {(False, False): "", (True, False): "at least", (False, True): "at most", (True, True): "unknown"}
    ends = [np.where(np.isfinite(own), own, budget) for own, budget in zip((mezo, other), budgets, strict=True)]
    (a, of_a), (b, of_b) = (mean_and_error(own) for own in ends)
    ratio = a / b
    return Times(ratio, ratio * math.hypot(of_a / a, of_b / b), bound[never[0], never[1]])


def sentences(times: Mapping[str, Times]) -> list[str]:
    """The claim and the result, a line for each method."""
    lines = []
    for method, own in times.items():
        claimed = CLAIMED.get(method)
        said = f"claimed {claimed[0]:.3g} × ({claimed[1]})" if claimed else "nothing claimed in passes"
        lines.append(f"{method}: {said}, found {own}")
    return lines
