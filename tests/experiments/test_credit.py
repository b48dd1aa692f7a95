"""The experiment on credit, small: the seed's formulas, the law, and that either can fail."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nl_jax as nl
from experiments.credit import __main__ as experiment
from experiments.credit.comparison import Comparison
from experiments.credit.step import RATE
from experiments.harness.plotting import figure

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("lenient")]

SMALL = ["--units", "5", "--depth", "1", "--images", "8", "--samples", "4", "--estimates", "60"]


def test_formulas_and_law_hold(tmp_path, capsys):
    assert experiment.main([*SMALL, "--out", str(tmp_path)]) == 0
    data = json.loads((tmp_path / "credit.json").read_text())
    assert data["largest_deviation"] <= 1
    assert max(data["roundings"].values()) < 100
    assert data["standard_errors"] < 5
    assert np.shape(data["error"]) == (60, 2)
    assert data["cosine"]["backprop"] == pytest.approx([1, 1])
    assert data["cosine"]["feedback alignment"][1] == pytest.approx(1)
    assert data["cosine"]["feedback alignment"][0] < 0.9
    assert max(data["size"]["predictive coding"]) < 1
    arrays = np.load(tmp_path / "credit.npz")
    assert arrays["node perturbation/hidden1"].shape == (8, 5)
    for name in ("credit", "layers"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "law and slope: at most" in capsys.readouterr().out


def test_the_formulas_are_those_of_autodiff(x64):
    net, params, x, target = experiment.seed_network()
    step = experiment.by_formula(params, x, target)
    objective = nl.supervised(net.apply, nl.losses.half_squared_error)
    batch = jnp.asarray(x)[None, :], jnp.asarray(target)[None, :]
    grads = jax.grad(lambda p: objective(p, batch)[0])(params)
    np.testing.assert_allclose(step.gamma, grads["hidden1"]["bias"], rtol=1e-12)
    np.testing.assert_allclose(step.delta, grads["output"]["bias"], rtol=1e-12)
    np.testing.assert_allclose(step.v[1:], params["output"]["weight"] - RATE * grads["output"]["weight"], rtol=1e-12)
    without_slope = step._replace(gamma=step.gamma / (step.h * (1 - step.h)))  # the hidden units' own derivative
    at = nl.backprop, net, params, x, target
    assert experiment.distance(*at, step) < experiment.ROUNDINGS
    assert experiment.distance(*at, without_slope) > 1e6


def test_disagreement_is_a_non_zero_exit(tmp_path, monkeypatch, capsys):
    rng, law = np.random.default_rng(0), np.array([2.0, 0.5])
    of = {name: {"hidden1": np.ones((8, 3)), "output": np.ones((8, 2))} for name in ("backprop", "node perturbation")}
    ones = {name: np.ones(2) for name in of}
    agreeing = Comparison(of, ones, ones, law, rng.normal(law, 0.1, (50, 2)), rng.normal(1, 0.1, (50, 2)))

    for compared, roundings, code in (
        (agreeing, 2.0, 0),
        (agreeing, 200.0, 1),
        (agreeing._replace(law=1.2 * law), 2.0, 1),
        (agreeing._replace(slope=agreeing.slope + 0.2), 2.0, 1),
    ):
        monkeypatch.setattr(experiment, "compare", lambda compared=compared, **settings: compared)
        monkeypatch.setattr(experiment, "distance", lambda *at, roundings=roundings: roundings)
        for drawing in ("plot", "show"):
            monkeypatch.setattr(experiment, drawing, lambda *results: figure(1, 1, (1, 1))[0])
        assert experiment.main(["--out", str(tmp_path)]) == code
        assert ("the credit is not that of the formulas" in capsys.readouterr().err) == bool(code)


def test_bad_settings_are_one_line(tmp_path, capsys):
    assert experiment.main(["--images", "3", "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == "error: --images must be at least 8, got 3\n"
    assert not (tmp_path / "out").exists()
