"""Minibatches, small: the linear student follows its law at every batch size, and a wrong law is told from it."""

import json

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments.harness.sweep import Scores
from experiments.minibatch import __main__ as minibatch
from experiments.minibatch.report import Results
from experiments.minibatch.student import FRACTIONS, Student, examples_of
from nl_jax.theory import student_teacher

pytestmark = pytest.mark.usefixtures("lenient")
SMALL = [
    *("--batches", "1", "4", "--inputs", "3", "--students", "200", "--hidden", "2", "--rates", "0.01", "0.1"),
    *("--examples", "40", "--seeds", "2", "--target", "2.5"),
]  # fmt: skip


def empty(results, settings):
    """In the place of the picture, which takes seconds to draw."""
    return Figure(figsize=(1, 1))


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """What a small run leaves, and where."""
    out = tmp_path_factory.mktemp("minibatch")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(minibatch, "plot", empty)
        assert minibatch.main([*SMALL, "--out", str(out)]) == 0
    return out, json.loads((out / "minibatch.json").read_text())


@pytest.mark.slow
def test_the_student_follows_its_law(left):
    """Of sums: the best rates are 1/(B + N + 1)."""
    out, found = left
    assert found["largest_deviation"] < minibatch.ALLOWED
    for B, row in found["rows"].items():
        assert row["student's rate"] == pytest.approx(1 / (int(B) + 4))
        assert row["examples measured"] == pytest.approx(row["examples by law"], rel=0.1)
    arrays = np.load(out / "minibatch.npz")
    assert arrays["network 4 test loss"].shape == (2, 2, len(arrays["network examples"]))
    np.testing.assert_array_equal(arrays["network examples"] % 4, 0)
    assert arrays["network examples"][-1] == 40
    assert [json.loads(line)["batch"] for line in (out / "metrics.jsonl").read_text().splitlines()] == [1, 4]


def test_another_law_is_an_error(tmp_path, monkeypatch, capsys):
    """That of single examples, taken for that of four."""
    network = Scores(
        {part: np.ones((2, 2, 10)) for part in ("train", "validation", "test")}, {"test": np.ones((2, 2, 10))}
    )
    monkeypatch.setattr(minibatch, "sweep", lambda *args, **settings: network)
    monkeypatch.setattr(minibatch, "plot", empty)
    monkeypatch.setattr(
        student_teacher, "backprop", lambda N, *, batch, right=student_teacher.backprop: right(N, batch=1)
    )
    assert minibatch.main([*SMALL, "--out", str(tmp_path)]) == 1
    assert "error: law and measurement disagree" in capsys.readouterr().err
    kept = json.loads((tmp_path / "minibatch.json").read_text())["deviations"]
    assert kept["1"] < minibatch.ALLOWED < kept["4"]


def _results():
    """B = 2: errors exactly on the law, and a network at two rates, the second the better."""
    law = student_teacher.backprop(3, batch=2)
    steps = np.arange(int(np.ceil(examples_of(law, 2) / 2)) + 1)
    rates = law.best_rate * np.array(FRACTIONS)
    errors = np.stack([law.factor(rate) ** steps for rate in rates])[..., None] * [0.9, 1.1]
    slow, fast = [[3.0, 2.0]] * 2, [[2.0, 1.0], [1.0, 0.5]]
    loss = {part: np.array([slow, fast]) for part in ("train", "validation", "test")}
    scores = Scores(loss, {"test": np.array([slow, fast]) / 10})
    return Results({2: Student(law, errors)}, np.array([4, 8]), {2: scores})


SETTINGS = minibatch.Config(batches=(2,), inputs=3, rates=(0.1, 0.2), target=1.0, examples=8).settings


def test_the_table_shows_what_was_measured():
    results = _results()
    found = minibatch.row(2, results, SETTINGS)
    assert found["examples measured"] == pytest.approx(found["examples by law"])
    assert results.student[2].deviation == pytest.approx(0, abs=1e-9)
    row = minibatch.table(results, SETTINGS).splitlines()[2].split()
    assert row[:3] == ["2", "0.1667", "0.3333"]
    assert row[5:] == ["0.2", "0.4", "6", "±", "2", "0.7500", "±", "0.2500", "7.50", "±", "2.50"]


def test_the_picture_shows_what_was_measured():
    curves, factors, needed, test, by_rate, by_batch = minibatch.plot(_results(), SETTINGS).axes
    np.testing.assert_allclose(curves.lines[1].get_ydata()[0], 1 - 1 / 3)
    np.testing.assert_allclose(factors.containers[0].lines[0].get_xdata()[2], 1 / 6)
    np.testing.assert_allclose(needed.lines[0].get_ydata(), needed.lines[1].get_ydata()[0], rtol=1e-6)
    np.testing.assert_array_equal(test.lines[0].get_ydata(), [1.5, 0.75])
    np.testing.assert_array_equal(by_rate.lines[0].get_xdata(), [0.2])
    np.testing.assert_array_equal(by_batch.lines[0].get_ydata(), [6])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batches", "2", "3"], "--batches must be rising numbers of at least 1 that divide the last, got (2, 3)"),
        (["--batches", "4", "2"], "--batches must be rising"),
        (["--students", "1"], "--students must be at least 2, got 1"),
        (["--examples", "100"], "--examples must be at least 128, got 100"),
        (["--hidden", "0"], "--hidden must be one or more numbers of at least 1"),
        (["--rates", "0"], "--rates must be finite numbers above 0"),
        (["--target", "-1"], "--target must be a finite number above 0, got -1.0"),
    ],
)
def test_bad_settings_are_one_line(arguments, message, tmp_path, capsys):
    assert minibatch.main([*arguments, "--out", str(tmp_path / "out")]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {message}")
    assert shown.count("\n") == 1
    assert not (tmp_path / "out").exists()
