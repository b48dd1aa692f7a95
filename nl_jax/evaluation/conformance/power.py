"""Sequential tests of bias for each leaf, with the smallest bias that they would detect.

Each leaf has two test statistics. m is the mean of n estimates, g the gradient and Σ the estimates' covariance:

- Length, ⟨m, g⟩/‖g‖² against 1, which is normal. It detects estimates that are too long or too short.
- Distance, ‖m − g‖² against tr Σ/n, which without bias is a weighted sum of χ². It detects a bias in any direction. Its
  tail is approximated by one χ² with the same first three moments (Imhof 1961).

The number of draws doubles until a bias of `TARGET` would be detected or the budget is spent. Half of the error
probability is reserved for the last look; the k-th look before it uses 2⁻ᵏ of the other half. Strict early looks cost
the last one little (Haybittle 1971). All looks, leaves and statistics together stay within the error probability,
whatever their dependence (Bonferroni). Only standard errors, never means, decide which look is the last.
"""

from collections.abc import Callable, Mapping
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

ERROR = 1e-4
"""Probability that one check, over all leaves, statistics and looks, calls an unbiased estimator biased."""
MISSED = 0.05
"""Probability of missing a leaf's bias as large as the smallest one called visible."""
TARGET = 0.02
"""The bias to detect, as a fraction of the gradient's length."""


class Moments(NamedTuple):
    """Sums over one leaf's errors e = ĝ − g: their number, Σ e and Σ e eᵀ."""

    number: int
    total: np.ndarray
    products: np.ndarray

    def grown(self, e: np.ndarray) -> "Moments":
        """Adds errors of more estimates, [estimates, parameters]."""
        return Moments(self.number + len(e), self.total + e.sum(axis=0), self.products + e.T @ e)


class LeafBias(NamedTuple):
    """The test results of one leaf. All numbers are fractions of its gradient's length; `biased` and `zero` are bools.

    Attributes:
      length: ⟨m, g⟩/‖g‖², 1 if estimates are as long as the gradient; NaN for a leaf whose gradient is 0.
      length_error: its standard error.
      visible_length: the smallest error of the length that is detected with probability 1 − `MISSED`.
      distance: ‖m − g‖ corrected for chance, (‖m − g‖² − tr Σ/n)^½, or 0 if that square is negative.
      visible_distance: the smallest bias that is detected in any direction, including the noisiest.
      biased: whether one of the two deviates by more than chance allows.
      zero: whether the leaf's gradient is 0; numbers are then fractions of the whole gradient's length.
    """

    length: float
    length_error: float
    visible_length: float
    distance: float
    visible_distance: float
    biased: bool
    zero: bool

    @property
    def visible(self) -> float:
        """The smallest bias that would be detected both along the gradient and in any direction."""
        return float(np.nanmax([self.visible_length, self.visible_distance]))


class Bias(NamedTuple):
    """The test results of all leaves.

    Attributes:
      leaves: results by leaf name.
      estimates: the number of estimates drawn.
      looks: the number of times they were tested.
      target: the bias to detect.
    """

    leaves: dict[str, LeafBias]
    estimates: int
    looks: int
    target: float

    @property
    def biased(self) -> list[str]:
        """The leaves whose mean is not the gradient."""
        return [name for name, leaf in self.leaves.items() if leaf.biased]

    @property
    def unseen(self) -> list[str]:
        """The leaves in which a bias above the target could have been missed."""
        return [name for name, leaf in self.leaves.items() if not leaf.visible <= self.target]


def sequential(
    draw: Callable[[int], Mapping[str, np.ndarray]],
    gradient: Mapping[str, np.ndarray],
    max_estimates: int,
    *,
    tolerance: float = 0.0,
    error: float = ERROR,
    target: float = TARGET,
) -> Bias:
    """Draws until the target bias would be detected in every leaf, a bias is detected, or the budget is spent.

    Args:
      draw: `draw(block)` returns the estimates of block 0, 1, … by leaf, each [estimates, parameters]. All blocks have
        the same size.
      gradient: g by leaf, [parameters].
      max_estimates: the budget; the last doubling stays within it.
      tolerance: a bias to ignore as rounding, as a fraction of the gradient's length.
      error: probability that an unbiased estimator is called biased.
      target: the bias to detect; raised to twice the tolerance if it is smaller.
    """
    target = max(target, 2 * tolerance)
    whole = float(np.sqrt(sum(float(g @ g) for g in gradient.values())))
    moments = {name: Moments(0, np.zeros(g.size), np.zeros((g.size, g.size))) for name, g in gradient.items()}
    blocks, looks = 0, 0
    while True:
        for block in range(blocks, max(1, 2 * blocks)):
            for name, found in draw(block).items():
                moments[name] = moments[name].grown(np.asarray(found, np.float64) - gradient[name])
        blocks, looks = max(1, 2 * blocks), looks + 1

        def judged(share: float, looks: int = looks) -> Bias:
            each = error * share / (2 * len(gradient))
            leaves = {name: leaf(moments[name], g, each, whole, tolerance) for name, g in gradient.items()}
            return Bias(leaves, next(iter(moments.values())).number, looks, target)

        last = judged(1 / 2)
        if not last.unseen or 2 * last.estimates > max_estimates:
            return last
        early = judged(2.0 ** -(looks + 1))
        if early.biased:
            return early


def leaf(moments: Moments, g: np.ndarray, error: float, whole: float = 0.0, tolerance: float = 0.0) -> LeafBias:
    """Tests both statistics of one leaf, each at the false-alarm probability `error`."""
    n = moments.number
    mean = moments.total / n
    covariance = (moments.products / n - np.outer(mean, mean)) * n / (n - 1)
    if not np.all(np.isfinite(covariance)):
        return LeafBias(np.nan, np.nan, np.inf, np.inf, np.inf, True, False)
    size = float(g @ g) ** 0.5
    zero = not size > 1e-12 * whole  # 0 up to rounding
    length = _Test(np.nan, np.nan, np.nan, False) if zero else _length_test(mean, covariance / n, g, error, tolerance)
    distance = _distance_test(mean, covariance / n, (whole or 1.0) if zero else size, error, tolerance)
    rejected = length.rejected or distance.rejected
    return LeafBias(length.found, length.error, length.visible, distance.found, distance.visible, rejected, zero)


class _Test(NamedTuple):
    """A statistic and its standard error, the smallest bias that it would show, and whether it shows one.

    Numbers are fractions of the gradient's length.
    """

    found: float
    error: float
    visible: float
    rejected: bool


def _length_test(mean: np.ndarray, covariance: np.ndarray, g: np.ndarray, error: float, tolerance: float) -> _Test:
    """Tests ⟨ĝ, g⟩/‖g‖² = 1, a normal statistic; `mean` is that of ĝ − g, with its own covariance."""
    length = 1 + float(mean @ g) / float(g @ g)
    length_error = max(0.0, float(g @ covariance @ g)) ** 0.5 / float(g @ g)
    limit = NormalDist().inv_cdf(1 - error / 2) * length_error + tolerance
    return _Test(length, length_error, limit + _missed() * length_error, not abs(length - 1) <= limit)


def _distance_test(mean: np.ndarray, covariance: np.ndarray, norm: float, error: float, tolerance: float) -> _Test:
    """Tests ‖⟨ĝ⟩ − g‖² = 0, a sum of χ² with the covariance's eigenvalues.

    With a bias b the square has mean ‖b‖² + tr S and variance 2 tr S² + 4 bᵀS b for the covariance S of the mean. bᵀS b
    is at most λ ‖b‖² with S's largest eigenvalue λ, so the smallest visible B = ‖b‖² solves
    B − excess = z (2 tr S² + 4 λ B)^½, where the limit exceeds tr S by `excess`.
    """
    spectrum = np.maximum(np.linalg.eigvalsh(covariance), 0.0)
    trace, square, z = float(spectrum.sum()), float(mean @ mean), _missed()
    limit = (trace + chi_square_limit(spectrum, error)) ** 0.5 + tolerance * norm
    excess, spread, slope = limit**2 - trace, 2 * float(spectrum @ spectrum), 4 * float(spectrum.max())
    visible = excess + (z**2 * slope + (z**4 * slope**2 + 4 * z**2 * (spread + slope * excess)) ** 0.5) / 2
    return _Test(max(0.0, square - trace) ** 0.5 / norm, np.nan, visible**0.5 / norm, not square**0.5 <= limit)


def _missed() -> float:
    """Returns the normal quantile z of the probability with which a visible bias is seen."""
    return NormalDist().inv_cdf(1 - MISSED)


def chi_square_limit(weights: np.ndarray, error: float) -> float:
    """Computes the value that Σ λ_i (χ²₁ − 1), with weights λ, exceeds with probability `error`.

    It uses the χ² with the same first three moments and the quantile of Wilson and Hilferty (1931). At an error of 10⁻⁶
    the result is too large by 2 % for 10 degrees of freedom, 5 % for 5 and 15 % for one: it errs towards no alarm.
    """
    two, three = float(np.sum(weights**2)), float(np.sum(weights**3))
    if not three > 0:
        return 0.0
    freedom = two**3 / three**2
    ninth = 2 / (9 * freedom)
    quantile = freedom * (1 - ninth + NormalDist().inv_cdf(1 - error) * ninth**0.5) ** 3
    return (quantile - freedom) * three / two
