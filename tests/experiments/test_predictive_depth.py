"""Predictive coding in deep networks, small: what is counted, how a rate is chosen, and what is told of it."""

import json

import numpy as np
import pytest

from experiments.predictive_depth import __main__ as predictive_depth
from experiments.predictive_depth.__main__ import factor, regret, shift
from experiments.predictive_depth.inference import Descent, descents
from experiments.predictive_depth.training import Curve, lowest_of_parabola

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("lenient")]
SMALL = [
    *("--layers", "4", "--units", "6", "--inference-rates", "0.05", "0.1", "--steps-in-axons", "256"),
    *("--steps-in-errors", "1024", "--examples", "3", "--depths", "4", "5", "--rates", "0.01", "0.1"),
    *("--learning-inference-rates", "0.3", "--updates", "3", "--steps", "2", "--seeds", "2"),
]  # fmt: skip


def test_runs_and_writes(tmp_path, capsys):
    assert predictive_depth.main([*SMALL, "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "predictive_depth.json").read_text())
    assert [(one["network"], one["variables"]) for one in found["inference"]] == [
        (network, variables) for network in ("plain", "residual") for variables in ("axons", "errors")
    ]
    assert [(one["scaling"], one["layers"]) for one in found["learning"]] == [
        (scaling, layers) for scaling in ("depth-μP", "standard") for layers in (4, 5)
    ]
    assert np.shape(found["learning"][0]["loss"]) == (2, 2)
    shown = capsys.readouterr().out
    assert "‖∂F/∂x‖ falls to 0.001" in shown
    assert "from 4 to 5 layers log₂ of the best rate shifts by" in shown
    assert (tmp_path / "predictive_depth.png").read_bytes().startswith(b"\x89PNG")


def test_both_variables_come_to_the_same_equilibrium():
    """From the same place, at the same rate; what is not at rest is far from it."""
    for of in descents(4, 6, [0.05], {"axons": 2048, "errors": 1024}, seeds=2, examples=3):
        assert of.residual.shape == of.error.shape == (1, 2, len(of.steps))
        assert (of.error[0, :, 0] > 0.1).all()
        assert (of.residual[0, :, -1] < 1e-6).all()
        assert (of.error[0, :, -1] < 1e-4).all()


def _descent(residual, variables="axons"):
    residual = np.asarray(residual, float)
    return Descent("plain", variables, np.array([0.1, 0.2]), np.array([1, 2, 4]), residual, residual)


def test_what_is_reached_must_stay():
    """Evaluations are two a step and three besides; what comes down and goes up again has not come to rest."""
    of = _descent([[[1, 0.1, 0.1], [1, 1, 0.1]], [[0.1, np.nan, np.nan], [0.1, 0.1, 0.1]]])
    np.testing.assert_array_equal(of.evaluations(of.residual, 0.5), [[7, 11], [np.inf, 5]])
    assert of.best(of.residual, 0.5) == 0


def test_the_factor_is_of_the_best_rates():
    axons = _descent([[[1, 1, 0.1]], [[1, 0.1, 0.1]]])
    errors = _descent([[[0.1, 0.1, 0.1]], [[1, 1, 1]]], "errors")
    assert factor(axons, errors, "residual", 0.5) == pytest.approx([7 / 5])


def test_the_lowest_point_of_a_parabola():
    x = np.arange(-5.0, 1.0)
    assert lowest_of_parabola(x, np.exp((x + 2.3) ** 2)) == pytest.approx(-2.3)
    assert lowest_of_parabola(x, np.exp(x)) == -5
    assert lowest_of_parabola(x, np.array([3, 1, 2, np.nan, np.inf, 1.5])) == pytest.approx(
        -4 + 0.5 * np.log(1.5) / np.log(6)
    )
    assert lowest_of_parabola(x, np.array([3, 2, 1, np.nan, np.nan, np.nan])) == -3


def test_how_a_rate_carries_over():
    """The shallow network's best rate is the first, the deep one's the third."""
    rates = 2.0 ** np.arange(-3, 0)
    shallow = Curve("standard", 4, rates, 0.3, np.array([[1, 1], [2, 2], [4, 4]], float))
    deep = Curve("standard", 8, rates, 0.3, np.array([[6, 9], [4, 4], [2, 3]], float))
    np.testing.assert_allclose(shift([shallow, deep]), [2, 2])
    np.testing.assert_allclose(regret([shallow, deep]), [3, 3])
    np.testing.assert_allclose(deep.least, [2, 3])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layers", "2"], "--layers must be at least 3, got 2"),
        (["--depths", "8", "4"], "--depths must be rising numbers of at least 3, got (8, 4)"),
        (["--rates", "0"], "--rates must be finite numbers above 0"),
    ],
)
def test_bad_settings_are_one_line(arguments, message, tmp_path, capsys):
    assert predictive_depth.main([*arguments, "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert not (tmp_path / "out").exists()
