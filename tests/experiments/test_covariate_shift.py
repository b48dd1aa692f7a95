"""Shifts, small: measured as defined, on their law where units are normalised, and jolts that leave no trace."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matplotlib.figure import Figure

from experiments.covariate_shift import __main__ as covariate_shift
from experiments.covariate_shift.network import PLAIN, SCHEMES, Measured, jolts
from experiments.covariate_shift.report import ALLOWED, plot, table, verdict
from experiments.covariate_shift.shift import Results, shift
from experiments.harness.sweep import Scores

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("lenient")]
_, NORMALISED, JOLTED = SCHEMES
SMALL = ["--hidden", "4", "3", "--rates", "0.5", "--updates", "3", "--seeds", "2", "--jolt", "0.2"]


def empty(results, settings):
    """In the place of the picture, which takes seconds to draw."""
    return Figure(figsize=(1, 1))


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """What a small run returns, and where it leaves the rest."""
    out = tmp_path_factory.mktemp("covariate_shift")
    config = covariate_shift.Config(out, hidden=(4, 3), rates=(0.5,), updates=3, seeds=2, jolt=0.2)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(covariate_shift, "plot", empty)
        return out, covariate_shift.run(config)


def test_normalised_units_follow_the_law(left):
    out, results = left
    found = json.loads((out / "covariate_shift.json").read_text())
    assert 0 < found["largest_deviation"] < ALLOWED
    measured, law = results.received(JOLTED)
    assert measured.shape == law.shape == (2, 1, 2, 3)  # layers, rates, seeds, updates
    assert law.min() > 0.05
    assert list(found["rows"]) == list(SCHEMES)
    assert np.load(out / "covariate_shift.npz")[f"{PLAIN}, shift"].shape == (2, 1, 2, 3)


def test_jolts_shift_what_layers_see(left):
    _, results = left
    assert results.shifts(JOLTED).min() > 2 * results.shifts(NORMALISED).max() > 0


def test_another_law_is_an_error(left, tmp_path, monkeypatch, capsys):
    """Such as that units do not move at all."""
    _, results = left
    right = Results.received
    monkeypatch.setattr(Results, "received", lambda self, scheme: (right(self, scheme)[0], np.zeros((2, 1, 2, 3))))
    monkeypatch.setattr(covariate_shift, "plot", empty)
    monkeypatch.setattr(
        covariate_shift, "trained",
        lambda normalised, *rest: ((n, results.measured[n]) for n, s in SCHEMES.items() if s.normalised == normalised),
    )  # fmt: skip
    assert covariate_shift.main([*SMALL, "--out", str(tmp_path)]) == 1
    assert "error: law and measurement disagree: normalised units moved by" in capsys.readouterr().err


def test_shift_is_the_distance_of_gaussians_in_standard_deviations():
    """Of two units: the one moves its mean by 3, the other its deviation from 1 to 5; their deviations are 2 and 1."""
    before, after = np.array([[0.0, 0.0], [2.0, 1.0]]), np.array([[3.0, 0.0], [2.0, 5.0]])
    assert shift(before, after) == pytest.approx(np.sqrt((3**2 + 4**2) / (2**2 + 1**2)))
    assert shift(before, before) == 0
    quantiles = np.linspace(-3, 3, 1001)  # W₂ of one unit, as the mean distance of matched quantiles
    moved = np.sqrt(np.average(((1 + 2 * quantiles) - quantiles) ** 2, weights=np.exp(-(quantiles**2) / 2)))
    assert shift(np.array([[0.0], [1.0]]), np.array([[1.0], [2.0]])) == pytest.approx(moved, rel=0.02)


def test_jolts_leave_no_trace():
    """The parameters are those of plain descent and this moment's disturbance, which others never have."""
    params = {
        "hidden1": {"gamma": jnp.ones(3), "beta": jnp.zeros(3), "weight": jnp.ones((2, 3))},
        "output": {"bias": jnp.ones(2)},
    }
    grads = jax.tree.map(jnp.ones_like, params)
    jolted, plain = optax.chain(optax.sgd(0.1), jolts(0.5)), optax.sgd(0.1)
    states = [jolted.init(params), plain.init(params)]
    now = [params, params]
    offsets = []
    for _ in range(3):
        for i, optimizer in enumerate((jolted, plain)):
            updates, states[i] = optimizer.update(grads, states[i], now[i])
            now[i] = optax.apply_updates(now[i], updates)
        offsets.append(jax.tree.map(lambda a, b: np.asarray(a - b), *now))
    for offset in offsets:
        np.testing.assert_allclose(offset["hidden1"].pop("weight"), 0, atol=1e-6)
        np.testing.assert_allclose(offset.pop("output")["bias"], 0, atol=1e-6)
        values = np.concatenate(list(offset["hidden1"].values()))
        assert 0.1 < np.abs(values).max() < 0.5
        assert len(set(values)) == 6
    assert np.abs(offsets[0]["hidden1"]["beta"] - offsets[1]["hidden1"]["beta"]).min() > 1e-3


def _results():
    """One hidden unit at rates 1 and 2, whose mean moves by 0.1 or 0.2 deviations; the second rate is the better."""
    loss = np.broadcast_to(np.array([2.0, 1.0])[:, None, None], (2, 2, 2))
    scores = Scores(dict.fromkeys(("train", "validation", "test"), loss), {})
    means = np.zeros((2, 2, 2, 1, 1))
    means[0, :, 1], means[1, :, 1] = 0.1, 0.2
    moments = np.concatenate([means, np.ones_like(means)], axis=-2)
    own = {"beta": means[..., 0, :], "gamma": np.ones((2, 2, 2, 1))}
    layer = lambda value: {"hidden1": value}
    return Results(
        np.array([0]),
        {
            name: Measured(scores, layer(moments), layer(moments), layer(own if scheme.normalised else {}))
            for name, scheme in SCHEMES.items()
        },
    )


SETTINGS = covariate_shift.Config(hidden=(1,), rates=(1.0, 2.0), seeds=2, updates=1).settings


def test_the_table_shows_what_was_measured():
    assert verdict(_results()).largest_deviation == pytest.approx(0, abs=1e-12)
    row = table(_results(), SETTINGS).splitlines()[2].removeprefix(PLAIN).split()
    assert row == ["2", "0.2000", "±", "0.0000", "1.0000", "±", "0.0000", "1.0000", "±", "0.0000"]


def test_the_picture_shows_what_was_measured():
    through, by_layer, by_rate, losses, _, laws = plot(_results(), SETTINGS).axes
    np.testing.assert_allclose(through.lines[0].get_ydata(), [0.2])
    np.testing.assert_allclose(by_layer.lines[0].get_ydata(), [0.2])
    np.testing.assert_allclose(by_rate.lines[1].get_ydata(), [0.1, 0.2])
    np.testing.assert_allclose(losses.lines[2].get_ydata(), [1.0])
    np.testing.assert_allclose(laws.lines[0].get_xdata(), laws.lines[0].get_ydata())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--activation", "sine"], "unknown activation sine; there are sigmoid, tanh"),
        (["--updates", "1"], "--updates must be at least 2, got 1"),
        (["--batch-size", "1"], "--batch-size must be at least 2, got 1"),
        (["--hidden", "0"], "--hidden must be one or more numbers of at least 1"),
        (["--rates", "inf"], "--rates must be finite numbers above 0"),
        (["--jolt", "-1"], "--jolt must be a finite number of at least 0, got -1.0"),
    ],
)
def test_bad_settings_are_one_line(arguments, message, tmp_path, capsys):
    assert covariate_shift.main([*arguments, "--out", str(tmp_path / "out")]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {message}")
    assert shown.count("\n") == 1
    assert not (tmp_path / "out").exists()
