import importlib.util
import json

import jax
import numpy as np
import pytest

import nl_jax as nl
from benchmarks import recurrent_peers

SMALL = ["--units", "3", "--steps", "4", "--spiking-units", "5", "--spiking-steps", "6", "--inputs", "2",
         "--batch-size", "3", "--rounds", "2"]  # fmt: skip


def installed(*names):
    return pytest.mark.skipif(not all(map(importlib.util.find_spec, names)), reason=f"needs {' and '.join(names)}")


@pytest.mark.usefixtures("lenient")
def test_missing_peers_are_said_and_left_out(tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    missing = ("braintrace", "snntorch", "torch")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in missing else find(name, *rest))
    assert recurrent_peers.main([*SMALL, "--out", str(tmp_path)]) == 1
    shown = capsys.readouterr()
    for name in missing:
        assert f"{name} is not installed: left out (pip install {name})" in shown.out
    assert "none of the peers is installed" in shown.err


@pytest.mark.slow
@pytest.mark.parametrize("problem", [recurrent_peers.tanh_network, recurrent_peers.spiking_layer])
def test_what_is_measured_is_the_loss_of_every_step(problem):
    """Against the steps written out."""
    on = problem(recurrent_peers.Config(units=3, steps=4, spiking_units=5, spiking_steps=6, inputs=2, batch_size=3))
    (xs, ys), hidden = on.batch, jax.tree.map(np.asarray, on.params["hidden"])
    v = z = h = np.zeros(ys[:, 0].shape)
    loss, fired = 0.0, 0.0
    for t in range(xs.shape[1]):
        if "recurrent" in hidden:
            h = np.tanh(xs[:, t] @ hidden["weight"] + h @ hidden["recurrent"])
        else:
            v = 0.9 * v - z + xs[:, t] @ hidden["weight"]
            h = z = (v > 1).astype(float)
        fired += h.mean()
        loss += np.mean((h - ys[:, t]) ** 2, axis=-1) / xs.shape[1]
    np.testing.assert_allclose(on.objective(on.params, on.batch), loss, rtol=1e-5)
    assert fired != 0
    assert recurrent_peers.stacked(on.params).shape == ((5, 3) if "recurrent" in hidden else (2, 5))
    gradient = recurrent_peers._gradient(on, nl.backprop(on.objective))()
    assert np.linalg.norm(recurrent_peers.stacked(gradient)) > 0


@pytest.mark.usefixtures("lenient")
@installed("braintrace", "snntorch", "torch")
def test_peers_have_our_gradients(tmp_path):
    assert recurrent_peers.main([*SMALL, "--out", str(tmp_path)]) == 0
    saved = json.loads((tmp_path / "recurrent_peers.json").read_text())
    assert set(saved["versions"]) == {"braintrace", "snntorch"}
    for title, difference in saved["relative_difference_of_gradients"].items():
        # SnAp-1 is not one rule: ours has the exact credit of the state before a step.
        assert difference < (1 if "n = 1" in title else 1e-5)
