"""Extrapolation to steps of size zero, of errors that are known."""

import numpy as np
import pytest

from experiments.harness import extrapolation
from experiments.harness.failure import ExperimentError


def measured(eta):
    """Two curves at five times whose errors are series in η, of first to third order."""
    time = np.linspace(0, 1, 5)
    return np.stack([np.exp(time) + eta * time - 2 * eta**2 + 0.5 * eta**3, time + 0.3 * eta + eta**2 * time])


LAW = measured(0.0)


def test_two_orders_are_taken_away():
    found = extrapolation.limit(*map(measured, (0.1, 0.05, 0.025)))
    np.testing.assert_allclose(found.values[0] - LAW[0], 0.5 * 0.1**3 / 8, rtol=1e-9)
    np.testing.assert_allclose(found.values[1], LAW[1], atol=1e-14)
    # What the third rate changed is the second order that two rates leave.
    np.testing.assert_allclose(found.correction[1], 0.1**2 / 8 * np.linspace(0, 1, 5), atol=1e-14)
    np.testing.assert_array_equal(found.raw, measured(0.025))


def test_a_law_is_judged_by_its_worst_curve():
    found = extrapolation.limit(*map(measured, (0.1, 0.05, 0.025)))
    bar = np.abs(found.correction[1]).max()
    assert extrapolation.deviation(found, LAW) == pytest.approx(0.5 * 0.1 / 8 / (2 / 8), rel=0.05)
    wrong = LAW + np.array([[0.0], [3 * bar]])
    assert extrapolation.deviation(found, wrong) == pytest.approx(3)
    wrong[0, 2] = np.nan
    assert np.isnan(extrapolation.deviation(found, wrong))


@pytest.mark.parametrize("off", [1.2, np.inf, np.nan])
def test_what_is_off_is_named(off):
    extrapolation.judge({"near": 0.9, "on": 1.0})
    with pytest.raises(ExperimentError, match=r"disagree: far is .* error bars off"):
        extrapolation.judge({"near": 0.9, "far": off})
