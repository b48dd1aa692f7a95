"""Fits exponents in depth and width, judges by the law and tabulates."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.harness.random_networks import CASES
from experiments.harness.results import Verdict, by_chance
from experiments.variance_depth.measuring import SPACES, Measurement, grid, of


class Exponents(NamedTuple):
    """Exponents of variance ∝ depth^a width^b, fitted over the grid: arrays (a, b), or (a,) if there is one width."""

    measured: np.ndarray
    error: np.ndarray
    predicted: np.ndarray
    """The same fit to the linear law."""


def scaling(found: Sequence[Measurement], case: str, space: str) -> Exponents:
    """Exponents of the variance in depth and width, by weighted least squares over the grid."""
    grid = of(found, case=case, space=space)
    values, errors = np.array([one.sampled.log_variance for one in grid]).T
    sizes = np.log([[one.depth, one.width] for one in grid])
    varied = np.ptp(sizes, axis=0) > 0
    design = np.column_stack([sizes[:, varied], np.ones(len(grid))])
    solve = np.linalg.pinv(design / errors[:, None]) / errors
    left = values - design @ (solve @ values)
    # Where no power law holds, the residuals exceed the errors; the exponents' errors are scaled accordingly.
    degrees = len(grid) - design.shape[1]
    excess = max(1.0, float(np.sum((left / errors) ** 2) / degrees)) if degrees else 1.0
    return Exponents(
        measured=(solve @ values)[:-1],
        error=(excess * ((solve * errors) ** 2).sum(axis=1))[:-1] ** 0.5,
        predicted=(solve @ np.log([one.linear_law for one in grid]))[:-1],
    )


def judge(found: Sequence[Measurement]) -> Verdict:
    """The largest deviation from the law, and the largest that chance allows."""
    return by_chance(np.array([one.sampled.deviation for one in found]))


def overtaken(found: Sequence[Measurement], case: str, width: int) -> int | None:
    """The smallest measured depth at which nodes have the larger variance by law, or None."""
    nodes = of(found, case=case, space="nodes", width=width)
    return next((one.depth for one in nodes if np.log(one.sampled.law).mean() > np.log(one.linear_law * width)), None)


def table(found: Sequence[Measurement]) -> str:
    """Relative variances at the largest width, and exponents: a row for each kind of network and each space."""
    depths, widths = grid(found)
    width = widths[-1]
    lines = [
        f"{'relative variance at width ' + str(width):30}" + "".join(f"{'depth ' + str(d):>11}" for d in depths)
        + f"{'depth to the':>18}" + f"{'width to the':>18}" * (len(widths) > 1) + f"{'off':>6}"
    ]  # fmt: skip
    for space, case in itertools.product(SPACES, CASES):
        here = of(found, case=case, space=space, width=width)
        law, mine = scaling(found, case, space), of(found, case=case, space=space)
        lines.append(
            f"{space + ': ' + case:30}" + "".join(f"{np.exp(one.sampled.log_variance[0]):>11.4g}" for one in here)
            + "".join(f"{value:>10.2f} ±{error:6.3f}" for value, error in zip(law.measured, law.error, strict=True))
            + f"{max(abs(one.sampled.deviation) for one in mine):>6.1f}"
        )  # fmt: skip
        if case == list(CASES)[-1]:
            expected = "".join(f"{value:>10.2f}{'':8}" for value in law.predicted)
            row = "".join(f"{one.linear_law:>11.4g}" for one in here)
            lines.append(f"{space + ': linear law':30}{row}{expected}")
    largest, allowed, unit = judge(found)
    lines.append("geometric means over networks; off: from the law given axons and credit, in standard errors, at most")
    for case in CASES:
        depth = overtaken(found, case, width)
        if depth:
            lines.append(f"{case}: from {depth} layers of {width} units on, nodes have the larger variance")
    lines.append(f"largest deviation of {len(found)} compared: {largest:.1f} {unit}; chance allows {allowed:.1f}")
    return "\n".join(lines)
