"""Which rule it was, small: a run, what is counted, and what is said when probabilities are wrong."""

import json

import numpy as np
import pytest

from experiments.identify import __main__ as identify
from experiments.identify.__main__ import Config
from experiments.identify.report import Cases, calibration
from experiments.identify.simulation import CANDIDATES

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("lenient")]

RULES = ("backprop", "Oja’s rule")


def test_runs_and_writes(tmp_path, capsys):
    settings = ["--cases", "50", "--steps", "2", "--num-samples", "1", "--candidates", *RULES]
    assert identify.main([*settings, "--out", str(tmp_path)]) == 0
    said = json.loads((tmp_path / "identify.json").read_text())
    assert said["names"] == list(RULES)
    assert min(said["confusion"][0][0], said["confusion"][1][1]) > 0.7
    np.testing.assert_allclose(np.sum(said["confusion"], axis=1), 1, rtol=1e-5)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 50
    assert (tmp_path / "identify.png").read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert "nan" not in shown
    assert "chance allows" in shown


def made_up(truly, count=3000):
    """Two candidates, of which the first is given 0.8 and is true in a fraction `truly` of the cases."""
    posterior = np.tile([0.8, 0.2], (count, 1))
    which = (np.arange(count) >= truly * count).astype(int)
    return Cases(posterior, which, np.linspace(0.1, 39, count))


def test_what_came_true_is_held_against_what_was_stated():
    right = identify.judge(made_up(0.8))
    assert right.largest_deviation == pytest.approx(0, abs=1e-6)
    assert not identify.judge(made_up(0.7)).agrees
    assert not identify.judge(made_up(0.9)).agrees
    low, high = calibration(made_up(0.7))
    assert (high.stated, high.right, high.times) == pytest.approx((0.8, 0.7, 3000))
    assert high.error == pytest.approx((0.8 * 0.2 / 3000) ** 0.5)
    assert high.deviation == pytest.approx(-0.1 / high.error)
    assert (low.stated, low.right) == pytest.approx((0.2, 0.3))


def test_the_table_and_the_picture_show_what_was_found():
    settings, found = Config(candidates=RULES).settings, made_up(0.8)
    text = identify.table(found, settings)
    assert "the most probable rule is the true one in 80.0 % of 3000 networks" in text
    assert text.splitlines()[1].split() == ["backprop", "0.800", "0.200", "2400"]
    matrix, curve, strength = identify.plot(found, settings).axes
    np.testing.assert_allclose(matrix.images[0].get_array(), [[0.8, 0.2], [0.8, 0.2]])
    np.testing.assert_allclose(np.float64(curve.containers[0].lines[0].get_ydata()), [0.2, 0.8])
    np.testing.assert_allclose(np.float64(strength.containers[1].lines[0].get_ydata()), 0.2)
    for axes in (matrix, curve, strength):
        assert axes.get_xlabel()
        assert axes.get_ylabel()


def test_wrong_probabilities_are_a_non_zero_exit(tmp_path, monkeypatch, capsys):
    """Said after all is saved: a rule that is always held for certain, and is true in half of the cases."""
    case = lambda key, settings: (np.array([1.0, 0.0]), identify.jax.random.randint(key, (), 0, 2), np.float32(3))
    monkeypatch.setattr(identify, "case", case)
    assert identify.main(["--cases", "200", "--candidates", *RULES, "--out", str(tmp_path)]) == 1
    assert "error: probabilities are not calibrated" in capsys.readouterr().err
    assert (tmp_path / "identify.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cases", "49"], "--cases must be at least 50, got 49"),
        (["--steps", "1"], "--steps must be at least 2, got 1"),
        (["--unobserved", "1"], "--unobserved must be from 0 to below 1, got 1.0"),
        (["--strongest", "0"], "--strongest must be above 0, got 0.0"),
        (["--candidates", "backprop"], "--candidates must be two or more of backprop, feedback alignment"),
        (["--candidates", "backprop", "magic"], "--candidates must be two or more of"),
    ],
)
def test_bad_settings_are_one_line(arguments, message, tmp_path, capsys):
    assert identify.main([*arguments, "--out", str(tmp_path / "out")]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {message}")
    assert shown.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_all_candidates_are_offered():
    assert Config().candidates == tuple(CANDIDATES)
