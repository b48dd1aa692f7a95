"""Fits exponents to the best rates, and judges and tabulates them with the curves."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.harness.results import Verdict, by_chance
from experiments.student_teacher.measuring import Measurement


class Exponents(NamedTuple):
    """Exponents of η* ∝ M^a N^b, fitted over the grid; pairs are (a, b)."""

    measured: np.ndarray
    error: np.ndarray
    predicted: np.ndarray
    """The same fit to the theory's best rates at the same M and N."""

    @property
    def deviations(self) -> np.ndarray:
        """Measured minus predicted, in standard errors."""
        return (self.measured - self.predicted) / self.error


def scaling(found: Sequence[Measurement]) -> dict[str, Exponents]:
    """The exponents of each rule's best rate in M and N, by weighted least squares over the grid."""
    exponents = {}
    for rule in dict.fromkeys(one.rule for one in found):
        grid = [one for one in found if one.rule == rule]
        values, errors = np.array([one.log_best_rate for one in grid]).T
        predicted = np.log([one.recursion.best_rate for one in grid])
        design = np.array([[np.log(one.M), np.log(one.N), 1] for one in grid])
        solve = np.linalg.pinv(design / errors[:, None]) / errors
        exponents[rule] = Exponents(
            measured=(solve @ values)[:2],
            error=((solve * errors) ** 2).sum(axis=1)[:2] ** 0.5,
            predicted=(solve @ predicted)[:2],
        )
    return exponents


def deviations(found: Sequence[Measurement]) -> np.ndarray:
    """Deviations from theory, in standard errors: every point of every curve, every best rate and every exponent."""
    return np.concatenate([
        *(one.curve_deviations for one in found),
        [one.rate_deviation for one in found],
        *(law.deviations for law in scaling(found).values()),
    ])  # fmt: skip


def judge(found: Sequence[Measurement]) -> Verdict:
    """The largest deviation, and the largest that chance allows."""
    return by_chance(deviations(found))


def table(found: Sequence[Measurement]) -> str:
    """The exponents as text, a row for each rule, and the deviations of measurement from theory."""
    lines = [
        f"{'':20}{'best rate falls as':^44}{'off, at most':>21}",
        f"{'rule':20}{'M to the':>15}{'theory':>7}{'N to the':>15}{'theory':>7}{'curve':>12}{'rate':>9}",
    ]
    for rule, law in scaling(found).items():
        cells = "".join(
            f"{value:>7.3f} ±{error:6.3f}{predicted:>7.3f}"
            for value, error, predicted in zip(law.measured, law.error, law.predicted, strict=True)
        )
        mine = [one for one in found if one.rule == rule]
        curve = max(np.abs(one.curve_deviations).max() for one in mine)
        lines.append(f"{rule:20}{cells}{curve:>12.1f}{max(abs(one.rate_deviation) for one in mine):>9.1f}")
    largest, allowed, unit = judge(found)
    lines += [
        "off: measured minus theory, in standard errors over runs; theory's exponents are fitted over the same M and N",
        "rates are those of the loss ½‖y − y*‖²; of seed 000's, which has no ½, each is half as large",
        f"largest deviation of {len(deviations(found))} compared: {largest:.1f} {unit}; chance allows {allowed:.1f}",
    ]
    return "\n".join(lines)
