"""The deep linear networks' experiment, small: modes lie on their law, and another law is told from it."""

import dataclasses
import json

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments.deep_linear import __main__ as deep_linear
from experiments.deep_linear.measuring import MOMENTS

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("lenient")]


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """What a small run returns, and where it leaves the rest: 3 layers, coarse steps."""
    out = tmp_path_factory.mktemp("deep_linear")
    config = deep_linear.Config(
        out, depths=(3,), strengths=(2.0, 1.0), inputs=3, hidden=4, start=0.01, steps=3, seeds=2
    )
    (course,) = deep_linear.run(config)
    return out, course


def test_measured_and_law_agree(left):
    _, course = left
    assert course.deviation < 1
    np.testing.assert_allclose(course.errors[:2] / course.errors[1:], 2, rtol=0.1)
    assert np.abs(course.measured.values - course.law).max() < course.errors[-1] / 20
    assert np.all(course.law[:, 0] < 0.02)
    np.testing.assert_allclose(course.law[:, -1], [2, 0.98], rtol=1e-3)
    first, second = (np.argmax(curve > curve[-1] / 2) for curve in course.measured.raw)
    assert second > 1.5 * first  # one after the other
    assert course.random.shape == (2, MOMENTS)
    assert np.all(course.random[:, -1] < course.random[:, 0] / 3)


def test_folder(left):
    out, course = left
    (line,) = (json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines())
    assert line["depth"] == 3
    assert json.loads((out / "deep_linear.json").read_text())["deviations"]["3"] == pytest.approx(course.deviation)
    np.testing.assert_array_equal(np.load(out / "deep_linear.npz")["3 law"], course.law)
    assert json.loads((out / "config.json").read_text())["config"]["hidden"] == 4
    assert (out / "deep_linear.png").read_bytes().startswith(b"\x89PNG")


def empty(courses, settings):
    """In the place of the picture, which takes a second to draw."""
    return Figure(figsize=(1, 1))


def test_another_law_is_an_error(left, tmp_path, monkeypatch, capsys):
    """Such as one that is late by a thousandth of the time."""
    _, course = left
    late = np.stack([np.interp(0.999 * course.time, course.time, curve) for curve in course.law])
    wrong = dataclasses.replace(course, law=late)
    assert wrong.deviation > 1.5
    monkeypatch.setattr(deep_linear, "measure", lambda depth, settings: wrong)
    monkeypatch.setattr(deep_linear, "plot", empty)
    assert deep_linear.main(["--depths", "3", "--strengths", "2", "1", "--out", str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert "error: law and measurement disagree: the law of 3 layers is" in shown.err
    assert f"largest deviation from the law: {wrong.deviation:.2f} error bars" in shown.out
    assert (tmp_path / "deep_linear.png").exists()


def test_the_picture_shows_what_was_measured(left):
    _, course = left
    config = deep_linear.Config(depths=(3,), strengths=(2.0, 1.0), seeds=2)
    strengths, by_rate, losses, _ = deep_linear.plot([course], config.settings).axes
    measured = {line.get_label(): line for line in strengths.lines}["measured, s = 1"]
    np.testing.assert_array_equal(measured.get_ydata(), course.measured.raw[1])
    np.testing.assert_array_equal(by_rate.lines[0].get_ydata(), course.errors)
    balanced = {line.get_label(): line for line in losses.lines}["from balanced weights"]
    np.testing.assert_array_equal(balanced.get_ydata(), course.loss)


def test_errors_are_one_line_and_a_non_zero_exit(tmp_path, capsys):
    cases = {
        "--depths must be different numbers of at least 2, got (1,)": ["--depths", "1"],
        "--depths must be": ["--depths", "2", "2"],
        "--strengths must be falling numbers, got (1.0, 2.0)": ["--strengths", "1", "2"],
        "--strengths must be finite, got (inf, 1.0)": ["--strengths", "inf", "1"],
        "--start must be above 0 and below half the weakest strength, got 0.6": ["--start", "0.6"],
        "--inputs must be at least 4, got 3": ["--inputs", "3"],
        "--hidden must be at least 4, got 2": ["--hidden", "2"],
        "--steps must be at least 1, got 0": ["--steps", "0"],
        "--seeds must be at least 1, got 0": ["--seeds", "0"],
    }
    for message, arguments in cases.items():
        assert deep_linear.main([*arguments, "--out", str(tmp_path / "out")]) == 1
        shown = capsys.readouterr().err
        assert shown.startswith("error: ")
        assert message in shown
        assert shown.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_ctrl_c_leaves_what_was_done(left, tmp_path, monkeypatch, capsys):
    def interrupted(depth, settings):
        if depth == 4:
            raise KeyboardInterrupt
        return left[1]

    monkeypatch.setattr(deep_linear, "measure", interrupted)
    monkeypatch.setattr(deep_linear, "plot", empty)
    arguments = ["--depths", "3", "4", "--strengths", "2", "1", "--out", str(tmp_path)]
    assert deep_linear.main(arguments) == 130
    assert "what had been written is kept" in capsys.readouterr().err
    assert (tmp_path / "deep_linear.png").exists()
