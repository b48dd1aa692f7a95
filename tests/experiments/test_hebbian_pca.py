"""Hebbian rules on digits, in few steps: they follow their flows, and other rules do not."""

import json

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure

import nl_jax as nl
from experiments.hebbian_pca import __main__ as hebbian_pca
from experiments.hebbian_pca import learning

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("lenient")]


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """What a short run returns, and where it leaves the rest."""
    out = tmp_path_factory.mktemp("hebbian_pca")
    return out, hebbian_pca.run(hebbian_pca.Config(out, components=3, units=2, steps=1))


@pytest.fixture(scope="module")
def digits():
    return learning.Digits()


def test_rules_follow_their_flows(left, digits):
    _, found = left
    for followed in (found.hebb, found.oja):
        assert followed.deviation < 1
        np.testing.assert_allclose(followed.errors[:2] / followed.errors[1:], 2, rtol=0.1)
    np.testing.assert_allclose(found.hebb.slopes, digits.values[:3], rtol=1e-3)
    np.testing.assert_allclose(np.abs(found.oja.measured.values[:, -1]), [1, 0, 0], atol=0.05)


def test_sanger_orders_the_eigenvectors(left, digits):
    _, found = left
    assert found.sanger.deviation < 1
    np.testing.assert_allclose(found.sanger.weights, digits.vectors[:, :2], atol=1e-5)
    assert np.all(found.sanger.distance[:, 0] > 0.5)


@pytest.mark.parametrize(("rule", "other"), [("hebb", "oja"), ("oja", "hebb"), ("sanger", "subspace")])
def test_another_rule_is_told_from_it(rule, other, digits, monkeypatch):
    monkeypatch.setattr(nl.rules, rule, getattr(nl.rules, other))
    with jax.enable_x64(True):
        measure = getattr(learning, rule)
        assert measure(digits, hebbian_pca.Config(components=3, units=2, steps=1).settings).deviation > 3


def test_folder(left):
    out, found = left
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["rule"] for line in lines] == ["hebb", "oja", "sanger"]
    kept = json.loads((out / "hebbian_pca.json").read_text())
    assert kept["deviations"] == pytest.approx({line["rule"]: line["deviation"] for line in lines})
    assert kept["hebb_growth"] == pytest.approx(list(found.hebb.slopes))
    arrays = np.load(out / "hebbian_pca.npz")
    np.testing.assert_array_equal(arrays["oja measured"], found.oja.measured.raw)
    np.testing.assert_array_equal(arrays["sanger distance"], found.sanger.distance)
    assert (out / "hebbian_pca.png").read_bytes().startswith(b"\x89PNG")


def test_disagreement_is_an_error(left, tmp_path, monkeypatch, capsys):
    _, found = left
    far = learning.Settled(**{**vars(found.sanger), "left": found.sanger.left / 4})
    for rule, result in found._replace(sanger=far)._asdict().items():
        monkeypatch.setattr(hebbian_pca, rule, lambda digits, settings, result=result: result)
    monkeypatch.setattr(hebbian_pca, "plot", lambda found, digits: Figure(figsize=(1, 1)))
    assert hebbian_pca.main(["--out", str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert f"error: law and measurement disagree: sanger is {far.deviation:.1f} error bars off" in shown.err
    assert f"largest deviation from theory: {far.deviation:.2f} error bars" in shown.out


def test_the_picture_shows_what_was_measured(left, digits):
    _, found = left
    growth, turning, settling, pictures = hebbian_pca.plot(found, digits).axes
    np.testing.assert_allclose(growth.lines[2].get_ydata(), np.exp(found.hebb.measured.raw[1]))
    np.testing.assert_array_equal(turning.lines[0].get_ydata(), found.oja.measured.raw[0])
    np.testing.assert_array_equal(settling.lines[1].get_ydata(), found.sanger.distance[1])
    shown = pictures.images[0].get_array()
    assert shown.shape == (20, 20)
    np.testing.assert_array_equal(shown[1:9, 11:19].ravel(), found.sanger.weights[:, 1])


def test_errors_are_one_line_and_a_non_zero_exit(tmp_path, capsys):
    cases = {
        "--components must be from 2 to 20, got 1": ["--components", "1"],
        "--units must be from 1 to 8, got 9": ["--units", "9"],
        "--steps must be from 1 to": ["--steps", "0"],
        "--start must be above 0 and below 1, got 0": ["--start", "0"],
    }
    for message, arguments in cases.items():
        assert hebbian_pca.main([*arguments, "--out", str(tmp_path / "out")]) == 1
        shown = capsys.readouterr().err
        assert shown.startswith("error: ")
        assert message in shown
        assert shown.count("\n") == 1
    assert not (tmp_path / "out").exists()
