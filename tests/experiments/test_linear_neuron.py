"""The linear neuron's experiment, small: what it measures is what the law says."""

import dataclasses
import json

import numpy as np
import pytest

from experiments.linear_neuron import __main__ as linear_neuron
from experiments.linear_neuron.measuring import Point, Settings
from experiments.linear_neuron.report import plot, table

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("lenient")]


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """What a small run leaves, and where: N far below D, near it and far above."""
    out = tmp_path_factory.mktemp("linear_neuron")
    arguments = ["--inputs", "12", "--examples", "4", "11", "24", "--datasets", "200", "--steps", "2", "200"]
    assert linear_neuron.main([*arguments, "--out", str(out)]) == 0
    return out, dict(np.load(out / "linear_neuron.npz"))


def test_measured_and_law_agree(left):
    _, data = left
    N, D = data["examples"], 12
    np.testing.assert_array_equal(N, [4, 11, 24])
    np.testing.assert_allclose(data["law"], [8 / 12 + 0.25 * 4 / 7, np.inf, 0.25 * 12 / 11])
    error = data["test_error"].std(axis=1, ddof=1) / 200**0.5
    off = np.abs(data["test_error"].mean(axis=1) - data["law"]) / error
    assert off[0] < 5
    assert off[2] < 5
    assert data["training_error"][N < D].max() < 1e-6
    expected = 0.25 * (1 - D / 24)
    spread = data["training_error"][2].std(ddof=1) / 200**0.5
    assert abs(data["training_error"][2].mean() - expected) < 5 * spread


def test_descent_lies_on_the_same_points(left):
    """In the end it is the solution of least norm; before, early stopping spares it the peak."""
    _, data = left
    descent = data["descent_test_error"]
    for measured, walked in ((data["test_error"][i], descent[i, 1]) for i in (0, 2)):
        assert abs(walked.mean() - measured.mean()) < 0.2 * measured.std() / 200**0.5
    assert np.all(descent[1].mean(axis=-1) < data["test_error"][1].mean() / 2)
    assert data["off_closed_form"].max() < 1e-3
    assert np.abs(descent[0, 0] - descent[0, 1]).max() > 0.01


def test_folder(left):
    out, data = left
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["examples"] for line in lines] == [4, 11, 24]
    assert lines[1]["law"] is None  # infinite
    assert lines[2]["test_error"] == pytest.approx(data["test_error"][2].mean())
    assert json.loads((out / "config.json").read_text())["config"]["inputs"] == 12
    assert (out / "linear_neuron.png").read_bytes().startswith(b"\x89PNG")


SETTINGS = Settings(inputs=10, noise=0.5, datasets=2, steps=(5,))


def _point(N: int, mean: float) -> Point:
    spread = np.array([mean - 0.1, mean + 0.1])  # one standard error is 0.1
    return Point(N, 0.5, spread, spread, spread[None], spread[None], 1e-6)


def test_the_table_judges_only_where_errors_can_be_judged():
    text = table([_point(2, 0.7), _point(9, 9.0)], SETTINGS)
    rows = [line.split() for line in text.splitlines()[1:3]]
    assert rows[0] == ["2", "0.20", "0.7000", "0.7000", "±0.1000", "0.5000", "+2.0", "0.7000"]
    assert rows[1] == ["9", "0.90", "9.0000", "9.0000", "0.5000", "–", "9.0000"]
    assert "largest deviation from the law: 2.0 standard errors at 1 values of N" in text


def test_the_picture_shows_what_was_measured():
    test, training = plot([_point(2, 0.7), _point(10, 9.0), _point(20, 0.3)], SETTINGS).axes
    for axes, means in ((test, [0.7, np.nan, 0.3]), (training, [0.7, 9.0, 0.3])):
        measured = axes.containers[0].lines[0]
        np.testing.assert_allclose(measured.get_xdata(), [0.2, 1, 2])
        np.testing.assert_allclose(measured.get_ydata(), means)


def test_disagreement_is_an_error(tmp_path, monkeypatch, capsys):
    """By 6 standard errors below the law; at N = 9, too near to D to be judged, it would not be."""
    monkeypatch.setattr(
        linear_neuron, "measure", lambda N, settings: dataclasses.replace(_point(N, 0.7), law=1.3 if N < 9 else 99.0)
    )
    arguments = ["--inputs", "10", "--examples", "2", "9", "--steps", "5", "--out", str(tmp_path)]
    assert linear_neuron.main(arguments) == 1
    assert (
        "error: law and measurement disagree: by 6.0 standard errors, where chance allows 5" in capsys.readouterr().err
    )
    kept = json.loads((tmp_path / "linear_neuron.json").read_text())
    assert kept["largest_deviation"] == pytest.approx(6)
    assert (kept["allowed"], kept["unit"], list(kept["deviations"])) == (5, "standard errors", ["2"])


def test_without_noise_rounding_is_not_judged():
    assert "largest deviation from" not in table([dataclasses.replace(_point(20, 1e-9), law=0.0)], SETTINGS)


def test_errors_are_one_line_and_a_non_zero_exit(tmp_path, capsys):
    cases = {
        "--examples must be rising numbers of at least 1, got (5, 5)": ["--examples", "5", "5"],
        "--steps must be rising": ["--steps", "0"],
        "--inputs must be at least 1, got 0": ["--inputs", "0"],
        "--datasets must be at least 2, got 1": ["--datasets", "1"],
        "--noise must be": ["--noise", "nan"],
    }
    for message, arguments in cases.items():
        assert linear_neuron.main([*arguments, "--out", str(tmp_path / "out")]) == 1
        shown = capsys.readouterr().err
        assert shown.startswith("error: ")
        assert message in shown
        assert shown.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_ctrl_c_leaves_what_was_done(tmp_path, monkeypatch, capsys):
    def interrupted(N, settings):
        if N == 5:
            raise KeyboardInterrupt
        return _point(N, 0.7)

    monkeypatch.setattr(linear_neuron, "measure", interrupted)
    arguments = ["--inputs", "10", "--examples", "2", "3", "5", "--steps", "5", "--out", str(tmp_path)]
    assert linear_neuron.main(arguments) == 130
    assert "what had been written is kept" in capsys.readouterr().err
    np.testing.assert_array_equal(np.load(tmp_path / "linear_neuron.npz")["examples"], [2, 3])
    assert (tmp_path / "linear_neuron.png").exists()
