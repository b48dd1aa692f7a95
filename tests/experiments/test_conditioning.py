"""Preprocessed inputs, small: linear units follow their law, and a wrong law is told from it."""

import json

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments.conditioning import __main__ as conditioning
from experiments.conditioning import linear_descent
from experiments.conditioning.measuring import CENTRED, GIVEN, RAW, STANDARDISED, WHITENED, preprocessings
from experiments.harness.sweep import Scores

pytestmark = pytest.mark.usefixtures("lenient")
SMALL = [
    "--reduction",
    "1.5",
    "--hidden",
    "3",
    "--rates",
    "0.1",
    "1",
    "--updates",
    "4",
    "--seeds",
    "2",
    "--target",
    "2.4",
]


def empty(results, settings):
    """In the place of the picture, which takes seconds to draw."""
    return Figure(figsize=(1, 1))


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """What a small run leaves, and where."""
    out = tmp_path_factory.mktemp("conditioning")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(conditioning, "plot", empty)
        assert conditioning.main([*SMALL, "--out", str(out)]) == 0
    return out, json.loads((out / "conditioning.json").read_text())


@pytest.mark.slow
def test_linear_units_follow_the_law(left):
    out, found = left
    assert found["largest_deviation"] < 1e-10
    assert len(found["deviations"]) == 4 + len(GIVEN)
    conditions = [found["rows"][name]["condition"] for name in (RAW, CENTRED, STANDARDISED, WHITENED)]
    assert conditions == sorted(conditions, reverse=True)
    assert conditions[-1] == pytest.approx(1)
    for row in found["rows"].values():
        assert row["steps from worst start"] == row["steps allowed"] >= row["steps from zero"]
    assert np.load(out / "conditioning.npz")["network, raw, test loss"].shape == (2, 2, 4)
    assert (out / "conditioning.png").read_bytes().startswith(b"\x89PNG")


def test_another_law_is_an_error(tmp_path, monkeypatch, capsys):
    """Such as that of a rate one thousandth larger."""
    right = linear_descent.conditioning.excess_loss
    monkeypatch.setattr(linear_descent.conditioning, "excess_loss", lambda c, e, rate, t: right(c, e, 1.001 * rate, t))
    monkeypatch.setattr(conditioning, "network_scores", lambda raw, moments, **settings: {})
    monkeypatch.setattr(conditioning, "plot", empty)
    assert conditioning.main([*SMALL, "--out", str(tmp_path)]) == 1
    assert "error: law and measurement disagree" in capsys.readouterr().err
    assert json.loads((tmp_path / "conditioning.json").read_text())["largest_deviation"] > 1e-6


def test_preprocessing():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 3)) @ rng.normal(size=(3, 3)) + [1.0, 2.0, -1.0]
    made = {name: prepare(x) for name, prepare in preprocessings(x).items()}
    np.testing.assert_array_equal(made[RAW], x)
    for name in (CENTRED, STANDARDISED, WHITENED):
        np.testing.assert_allclose(made[name].mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(made[STANDARDISED].std(axis=0), 1)
    np.testing.assert_allclose(np.cov(made[WHITENED].T, bias=True), np.eye(3), atol=1e-12)
    assert np.abs(np.cov(made[STANDARDISED].T, bias=True) - np.eye(3)).max() > 0.1
    with jax.enable_x64(True):
        found = linear_descent.descend(made[STANDARDISED], rng.integers(10, size=50), 100.0)
    assert found.taken[0] == found.allowed > found.taken[1] > 1
    assert found.deviation < 1e-12
    np.testing.assert_array_equal(found.measured[:, 0], 1)


def test_condensed_examples_have_the_same_excess_loss():
    rng = np.random.default_rng(0)
    x, y, w = rng.normal(size=(20, 3)), rng.normal(size=(20, 2)), rng.normal(size=(3, 2))
    few, targets = linear_descent._condensed(x, y)
    least = ((x @ np.linalg.lstsq(x, y)[0] - y) ** 2).mean(axis=0)
    np.testing.assert_allclose(((few @ w - targets) ** 2).mean(axis=0), ((x @ w - y) ** 2).mean(axis=0) - least)


def _results():
    """Of a network at two rates from two beginnings, at moments 1, 2 and 3; the second rate is the better."""
    slow, fast = [[3.0, 2.0, 1.0]] * 2, [[3.0, 1.0, 0.5], [3.0, 3.0, 1.0]]
    scores = Scores(
        {"train": np.array([slow, fast]), "validation": np.array([slow, fast]), "test": np.array([slow, fast])}, {}
    )
    scores.loss["validation"][1, 0] = [3.0, 0.2, 0.5]
    line = linear_descent.Descent(3, 5.0, 7, np.array([0, 7]), np.ones((2, 2)), np.ones((2, 2)), np.array([7.0, 6.0]))
    given = dict.fromkeys(GIVEN, line)
    return conditioning.Results({RAW: line}, given, [1, 2, 3], {RAW: scores})


SETTINGS = conditioning.Config(rates=(0.1, 1.0), target=1.0, seeds=2).settings


def test_the_network_is_judged_at_the_rate_that_validation_chooses():
    (row,) = conditioning.rows(_results(), SETTINGS).values()
    assert row["rate"] == 1.0
    np.testing.assert_array_equal(row["updates, test"], [2, 3])
    np.testing.assert_array_equal(row["test loss"], [1, 1])  # where validation is least
    text = conditioning.table(_results(), SETTINGS).splitlines()[2]
    assert text.split() == [
        "raw",
        "5",
        "7",
        "7",
        "6",
        "1",
        "2.5",
        "±",
        "0.5",
        "2.5",
        "±",
        "0.5",
        "1.0000",
        "±",
        "0.0000",
    ]


def test_the_picture_shows_what_was_measured():
    curves, by_condition, _, training, test, by_rate = conditioning.plot(_results(), SETTINGS).axes
    np.testing.assert_array_equal(curves.lines[1].get_ydata(), [1])
    np.testing.assert_array_equal(by_condition.lines[0].get_xdata(), [5.0] * 10)
    np.testing.assert_allclose(training.lines[0].get_ydata(), [3, 2, 0.75])
    np.testing.assert_allclose(test.lines[0].get_ydata(), [3, 2, 0.75])
    np.testing.assert_array_equal(by_rate.lines[0].get_ydata(), [3, 2.5])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "letters"], "unknown dataset letters; there are digits, mnist_5000"),
        (["--updates", "0"], "--updates must be at least 1, got 0"),
        (["--hidden", "0"], "--hidden must be one or more numbers of at least 1"),
        (["--rates", "-1"], "--rates must be finite numbers above 0"),
        (["--reduction", "1"], "--reduction must be above 1 and below 1e9, got 1.0"),
        (["--target", "0"], "--target must be a finite number above 0, got 0.0"),
    ],
)
def test_bad_settings_are_one_line(arguments, message, tmp_path, capsys):
    assert conditioning.main([*arguments, "--out", str(tmp_path / "out")]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {message}")
    assert shown.count("\n") == 1
    assert not (tmp_path / "out").exists()
