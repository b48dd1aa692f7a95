"""The experiment on equal networks, small: what is equal, and what is not."""

import json

import numpy as np
import pytest

from experiments.activation_equivalence import __main__ as experiment
from experiments.activation_equivalence.measuring import Comparison, Descent
from experiments.harness.plotting import figure

pytestmark = pytest.mark.usefixtures("lenient")

SMALL = ["--depths", "1", "--networks", "3", "--runs", "2", "--steps", "600", "--rate", "2"]


@pytest.mark.slow
def test_equal_functions_learn_differently(tmp_path, capsys):
    assert experiment.main([*SMALL, "--out", str(tmp_path)]) == 0
    data = json.loads((tmp_path / "activation_equivalence.json").read_text())
    for dtype in ("float32", "float64"):
        assert 0 < max(data[dtype]["outputs"] + data[dtype]["gradients"]) <= data["largest_deviation"] < 50
        assert min(data[dtype]["unchained"]) * np.finfo(dtype).eps > 0.1
    sigmoid, tanh, chained = (np.array(data["descent"][name]) for name in ("sigmoid", "tanh", "chained"))
    assert sigmoid.shape == (2, 600)
    np.testing.assert_allclose(sigmoid[:, 0], tanh[:, 0], rtol=1e-12)
    np.testing.assert_allclose(sigmoid, chained, rtol=1e-9)
    assert data["apart"] == pytest.approx(np.mean(abs(1 - tanh / sigmoid)[:, -1]), rel=0.5)
    assert data["drift"] < 1e-11
    assert "gradients, by the chain rule" in capsys.readouterr().out
    assert (tmp_path / "activation_equivalence.png").read_bytes().startswith(b"\x89PNG")


def test_inequality_is_a_non_zero_exit(tmp_path, monkeypatch, capsys):
    losses = np.array([[0.5, 0.2]])
    descent = Descent(losses, losses / 2, losses, 1e-12)
    rounded, wrong = (Comparison(*np.full((3, 2), value)) for value in (2.0, 200.0))
    for compared, walked, code in (
        (rounded, descent, 0),
        (wrong, descent, 1),
        (rounded, descent._replace(drift=1e-6), 1),
        (rounded, descent._replace(tanh=losses), 1),
    ):
        monkeypatch.setattr(experiment, "compare", lambda dtype, settings, compared=compared: compared)
        monkeypatch.setattr(experiment, "descend", lambda settings, walked=walked: walked)
        monkeypatch.setattr(experiment, "plot", lambda *results: figure(1, 1, (1, 1))[0])
        assert experiment.main(["--out", str(tmp_path)]) == code
        assert ("not as equal" in capsys.readouterr().err) == bool(code)


def test_bad_settings_are_one_line(tmp_path, capsys):
    for message, arguments in {
        "--runs must be at least 1, got 0": ["--runs", "0"],
        "--depths must be one or more numbers of at least 1, got (0,)": ["--depths", "0"],
        "--scale and --rate must be finite numbers above 0": ["--rate", "0"],
    }.items():
        assert experiment.main([*arguments, "--out", str(tmp_path / "out")]) == 1
        assert capsys.readouterr().err == f"error: {message}\n"
    assert not (tmp_path / "out").exists()
