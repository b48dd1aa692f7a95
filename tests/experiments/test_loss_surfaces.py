"""The losses' surfaces, small: the library's losses are the seed's, and what is drawn is what they are."""

import json

import numpy as np
import pytest

from experiments.loss_surfaces import __main__ as loss_surfaces
from experiments.loss_surfaces import measuring
from experiments.loss_surfaces.formulas import NORMALISED, SURFACES

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("lenient")]

TARGETS = np.array([0.5, 0.3, 0.2])


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """What a small run leaves, and where."""
    out = tmp_path_factory.mktemp("loss_surfaces")
    assert loss_surfaces.main(["--points", "200", "--out", str(out)]) == 0
    return out, dict(np.load(out / "loss_surfaces.npz"))


def test_folder(left):
    out, _ = left
    judged = json.loads((out / "loss_surfaces.json").read_text())
    assert judged["largest_deviation"] == max(judged["deviations"].values()) < judged["allowed"] == 1
    assert len(judged["deviations"]) == 4 * len(SURFACES) + len(NORMALISED) + 7
    assert (out / "loss_surfaces.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_drawn(left):
    """On the simplex normalising changes no loss; everywhere its gradients are at right angles to x."""
    _, data = left
    x = data["simplex"]
    np.testing.assert_allclose(x.sum(axis=1), 1)
    np.testing.assert_allclose(data["4-norm, simplex"], np.sum((x - TARGETS) ** 4, axis=1) / 4)
    divergence = np.sum(x * np.log(x / TARGETS), axis=1)
    for name in ("Kullback–Leibler", "normalised Kullback–Leibler"):
        np.testing.assert_allclose(data[f"{name}, simplex"], divergence, atol=1e-15)
        along = data[f"{name}, simplex, gradient"]
        np.testing.assert_allclose(along - along.mean(axis=1, keepdims=True), np.log(x / TARGETS) - np.mean(
            np.log(x / TARGETS), axis=1, keepdims=True), atol=1e-12)  # fmt: skip
    plane = data["plane"]
    across = np.sum(plane * data["normalised Kullback–Leibler, plane, gradient"], axis=1)
    np.testing.assert_allclose(across, 0, atol=1e-12)
    assert np.abs(np.sum(plane * data["Kullback–Leibler, plane, gradient"], axis=1)).max() > 1
    best = plane[np.argmin(data["Kullback–Leibler, plane"])]
    np.testing.assert_allclose(best, np.array([5, 3]) / 8 / np.e, atol=0.02)
    at = np.argmin(data["L"])
    assert abs(data["x"][at] - 5 / 8) < 0.003
    assert np.all(np.diff(data["L'"]) > 0)


WRONG = {
    "gradient": lambda loss: loss._replace(gradient=lambda x, target: 1.0001 * loss.gradient(x, target)),
    "gradient where it is least": lambda loss: loss._replace(least=lambda target: 0.9 * target + 0.03),
    "its least loss": lambda loss: loss._replace(value=loss.value + 1e-6),
    "lower losses": lambda loss: loss._replace(least=lambda target: np.array([0.9, 0.05, 0.05])),
}


@pytest.mark.parametrize("what", WRONG)
def test_another_formula_is_a_non_zero_exit(what, tmp_path, monkeypatch, capsys):
    wrong = WRONG[what](SURFACES["normalised Kullback–Leibler"])
    monkeypatch.setattr(loss_surfaces, "SURFACES", {"wrong": wrong})
    monkeypatch.setattr(measuring, "NORMALISED", (wrong,))
    monkeypatch.setattr(loss_surfaces, "drawn", lambda targets: {})
    monkeypatch.setattr(loss_surfaces, "plot", lambda arrays, targets: loss_surfaces_figure())
    assert loss_surfaces.main(["--points", "50", "--out", str(tmp_path)]) == 1
    assert "theory and measurement disagree" in capsys.readouterr().err
    assert json.loads((tmp_path / "loss_surfaces.json").read_text())["deviations"][f"wrong: {what}"] > 1


def loss_surfaces_figure():
    from experiments.harness.plotting import figure

    return figure(1, 1, size=(1, 1))[0]


def test_a_loss_that_knows_its_length_is_found_out(monkeypatch):
    """Kullback and Leibler's own, taken for a normalised one."""
    loss = SURFACES["Kullback–Leibler"]
    monkeypatch.setattr(measuring, "NORMALISED", (loss,))
    assert measuring.compare(loss, TARGETS, 50)["Σ x ∂L/∂x"] > 1


def test_eq_17_and_18_are_judged(x64, monkeypatch):
    right = measuring.two_variables(0.3, 50)
    assert max(right.values()) < 1
    for name in ("L", "L'", "L''"):
        curve = measuring.curve

        def off(a, x, name=name, curve=curve):
            return {**(found := curve(a, x)), name: 1.0001 * found[name] + 1e-9}

        with monkeypatch.context() as patch:
            patch.setattr(measuring, "curve", off)
            assert measuring.two_variables(0.3, 50)[name] > 1


def test_errors_are_one_line_and_a_non_zero_exit(tmp_path, capsys):
    cases = {
        "--targets must be three numbers above 0 that sum to 1, got (0.5, 0.5)": ["--targets", "0.5", "0.5"],
        "--targets must be three": ["--targets", "0.5", "0.5", "0"],
        "--points must be at least 1, got 0": ["--points", "0"],
    }
    for message, arguments in cases.items():
        assert loss_surfaces.main([*arguments, "--out", str(tmp_path / "out")]) == 1
        shown = capsys.readouterr().err
        assert shown.startswith("error: ")
        assert message in shown
        assert shown.count("\n") == 1
    assert not (tmp_path / "out").exists()
