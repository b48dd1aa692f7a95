"""The student–teacher experiment, small: what it measures is what theory says, and it says so if it is not."""

import json

import numpy as np
import pytest

from experiments.harness.plotting import figure
from experiments.student_teacher import __main__ as student_teacher
from experiments.student_teacher import figure as student_teacher_figure
from experiments.student_teacher import measuring
from nl_jax.theory import student_teacher as theory

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("lenient")]

SMALL = ["--outputs", "4", "8", "--inputs", "4", "8"]


def measurement(rule="backprop", M=4, N=8, *, off=0.0, rate_off=0.0):
    """Made up: on the theory of `backprop(N)` but for `off` standard errors, and rates for a factor e^`rate_off`."""
    recursion = theory.backprop(N)
    steps, runs = np.array([5, 10, 20]), 200
    wobble = np.random.default_rng(N).normal(size=(2, runs))
    spread = wobble[0] - wobble[0].mean()
    spread *= runs**0.5 / spread.std(ddof=1)  # a standard error of 1
    predicted = recursion.curve(1.0, recursion.best_rate, steps)
    errors = predicted[:, None] * (1 + 0.01 * (off + spread))
    rates = 2 * recursion.best_rate * (1 + np.arange(runs)) / runs
    contraction = rates * (-2 + rates * recursion.contraction * np.exp(-rate_off) + 0.1 * wobble[1])
    return measuring.Measurement(rule, M, N, recursion, steps, errors, rates, contraction)


def grid(**changed):
    return [measurement(M=M, N=N, **changed) for M in (4, 8) for N in (4, 8)]


@pytest.mark.parametrize("sizes", [(4, 8), (4, 8, 16)])
def test_an_exponent_is_shown_for_three_sizes_or_more(sizes):
    """Two sizes fit any exponent, and are not joined."""
    found = [measurement(M=M, N=N) for M in sizes for N in sizes]
    _, axes = figure(1, 1, size=(3, 3))
    student_teacher_figure._best_rates(axes, found, "N", "M")
    (label,) = axes.get_legend_handles_labels()[1]
    assert ("N to the" in label) == (len(sizes) == 3)
    joined = [line for line in axes.lines if line.get_linestyle() not in ("None", "none")]
    assert bool(joined) == (len(sizes) == 3)


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """What a small run of backprop and node perturbation leaves."""
    out = tmp_path_factory.mktemp("student_teacher")
    with pytest.MonkeyPatch.context() as patch:
        for module in (student_teacher, student_teacher_figure):
            patch.setattr(module, "RULES", {"node perturbation": measuring.RULES["node perturbation"]})
        patch.setattr(measuring, "POINTS", 4)
        assert student_teacher.main([*SMALL, "--runs", "300", "--time", "1", "--out", str(out)]) == 0
    return out, dict(np.load(out / "student_teacher.npz"))


def test_measured_and_theory_agree(left):
    """Curves and best rates within 4 standard errors; the rates of backprop must fail."""
    out, data = left
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [(line["M"], line["N"]) for line in lines] == [(4, 4), (4, 8), (8, 4), (8, 8)]
    for line, errors in zip(lines, data["errors"], strict=True):
        np.testing.assert_allclose(line["error"], errors.mean(axis=1))
        M, N = line["M"], line["N"]
        assert line["predicted_best_rate"] == pytest.approx(1 / (M + 2) / (N + 2))
        assert abs(np.log(line["best_rate"] * (M + 2) * (N + 2))) < 4 * line["log_error"] < 0.4
        assert abs(np.log(line["best_rate"] * (N + 2))) > 4 * line["log_error"]
        assert np.max(np.abs(line["curve_deviations"])) < 4
        np.testing.assert_allclose(line["predicted"][-1], np.exp(-1), rtol=0.2)


def test_folder(left):
    out, _ = left
    said = json.loads((out / "student_teacher.json").read_text())
    law = said["exponents"]["node perturbation"]
    np.testing.assert_allclose(law["predicted"], -np.log(10 / 6) / np.log(2), rtol=1e-6)
    assert np.all(np.abs(np.subtract(law["measured"], law["predicted"])) < 4 * np.array(law["error"]))
    assert said["compared"] == 4 * 4 + 4 + 2
    assert said["largest_deviation"] < said["allowed"]
    assert (out / "student_teacher.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_measured_of_a_line():
    """The best rate of a known parabola, and the error it is known with."""
    for off in (0.0, 0.3):
        found = [measurement(N=N, rate_off=off).log_best_rate for N in range(2, 40)]
        z = [(value - off - np.log(1 / (N + 2))) / error for (value, error), N in zip(found, range(2, 40), strict=True)]
        assert 0.7 < np.std(z) < 1.3
        assert abs(np.mean(z)) < 0.5
        assert all(error < 0.02 for _, error in found)


def test_exponents_are_those_of_the_grid():
    law = student_teacher.scaling(grid())["backprop"]
    np.testing.assert_allclose(law.predicted, [0, -np.log(10 / 6) / np.log(2)], atol=1e-12)
    assert np.max(np.abs(law.deviations)) < 4
    tilted = [one if one.N == 4 else measurement(M=one.M, N=8, rate_off=0.3) for one in grid()]
    deviations = student_teacher.scaling(tilted)["backprop"].deviations
    assert abs(deviations[0]) < 4 < deviations[1]


def test_curves_are_judged_by_their_own_errors():
    np.testing.assert_allclose(measurement(off=3.0).curve_deviations, 3, rtol=1e-6)
    right = student_teacher.judge(grid(off=3.0))
    assert len(student_teacher.deviations(grid(off=3.0))) == 4 * 3 + 4 + 2
    assert 3 <= right.largest_deviation < right.allowed < 4.2
    for wrong in (grid(off=5.0), grid(rate_off=0.3)):
        assert student_teacher.judge(wrong).largest_deviation > right.allowed


def test_the_table_and_the_picture_show_what_was_measured():
    found = [measurement(rule, M, N, off=2.0) for rule in student_teacher.RULES for M in (4, 8) for N in (4, 8)]
    text = student_teacher.table(found)
    rows = [line.split() for line in text.splitlines()[2:5]]
    assert [row[-2] for row in rows] == ["2.0"] * 3
    assert "largest deviation of 54 compared" in text
    curves, *_, contraction, by_inputs, by_outputs = student_teacher.plot(found, 0.1).axes
    first = curves.containers[0].lines[0]
    np.testing.assert_allclose(first.get_xdata(), [5, 10, 20])
    np.testing.assert_allclose(first.get_ydata(), found[0].errors.mean(axis=1))
    assert len(contraction.containers) == 3
    for axes, along in ((by_inputs, "N"), (by_outputs, "M")):
        assert axes.get_xlabel() == along
        np.testing.assert_allclose(axes.containers[0].lines[0].get_xdata(), [4, 8])
        np.testing.assert_allclose(axes.containers[0].lines[0].get_ydata()[0], np.exp(found[0].log_best_rate[0]))


def test_disagreement_is_a_non_zero_exit(tmp_path, monkeypatch, capsys):
    """Said after all is saved."""
    monkeypatch.setattr(student_teacher, "measure", lambda rule, M, N, **settings: measurement(rule, M, N, off=6.0))
    assert student_teacher.main([*SMALL, "--out", str(tmp_path)]) == 1
    said = "error: theory and measurement disagree: by 6.0 standard errors, where chance allows 4"
    assert said in capsys.readouterr().err
    assert (tmp_path / "student_teacher.png").exists()


def test_errors_are_one_line_and_a_non_zero_exit(tmp_path, capsys):
    cases = {
        "--outputs must be two or more rising numbers of at least 1, got (5, 5)": ["--outputs", "5", "5"],
        "--inputs must be two or more rising": ["--inputs", "4"],
        "--sigma must be a finite number above 0, got 0.0": ["--sigma", "0"],
        "--time must be a finite number above 0, got inf": ["--time", "inf"],
        "--runs must be at least 200": ["--runs", "199"],
    }
    for message, arguments in cases.items():
        assert student_teacher.main([*arguments, "--out", str(tmp_path / "out")]) == 1
        shown = capsys.readouterr().err
        assert shown.startswith("error: ")
        assert message in shown
        assert shown.count("\n") == 1
    assert not (tmp_path / "out").exists()
