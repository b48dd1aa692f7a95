import importlib.util
import json

import jax
import numpy as np
import pytest

from benchmarks import peers, pytorch
from benchmarks.problem import problem

SMALL = ["--sizes", "6", "5", "3", "--num-samples", "2", "--batch-size", "4", "--rounds", "2", "--estimates", "2"]


def installed(*names):
    return pytest.mark.skipif(not all(map(importlib.util.find_spec, names)), reason=f"needs {' and '.join(names)}")


@pytest.mark.slow
@pytest.mark.usefixtures("lenient")
def test_missing_peers_are_said_and_left_out(tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    missing = ("evosax", "torch")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in missing else find(name, *rest))
    assert peers.main([*SMALL, "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "evosax is not installed: left out (pip install evosax)" in shown
    assert "torch is not installed: left out (pip install torch)" in shown
    saved = json.loads((tmp_path / "peers.json").read_text())
    assert set(saved["versions"]) == {"optax"}
    assert json.loads((tmp_path / "config.json").read_text())["config"]["num_samples"] == 2
    ((peer, ours),) = saved["peer_over_ours"].items()
    assert peer.startswith("optax")
    assert saved["versions"]["optax"] in peer
    assert set(ours) == {f"weight perturbation, {law}" for law in ("Gaussian", "signs", "rank one")}
    check(saved, shown)
    assert (tmp_path / "peers.png").stat().st_size > 10_000


@pytest.mark.usefixtures("lenient")
@installed("evosax", "torch")
def test_all_peers(tmp_path, capsys):
    assert peers.main([*SMALL, "--out", str(tmp_path)]) == 0
    saved = json.loads((tmp_path / "peers.json").read_text())
    assert set(saved["versions"]) == {"optax", "evosax", "torch"}
    assert [len(ours) for ours in saved["peer_over_ours"].values()] == [5, 5, 3, 1, 3]
    check(saved, capsys.readouterr().out)
    backprops = [value for name, value in saved["cosine_and_error"].items() if "backprop" in name]
    np.testing.assert_allclose(backprops, [(1, 0), (1, 0)], atol=1e-5)  # PyTorch's network is the same as ours


def check(saved, shown):
    for peer, ours in saved["peer_over_ours"].items():
        assert peer in shown
        for name, value in ours.items():
            assert name in shown
            assert 0 < value["low"] <= value["median"] <= value["high"]
            assert saved["milliseconds"][peer] > 0 < saved["milliseconds"][name]
    assert all(-1.001 < cosine < 1.001 and error >= 0 for cosine, error in saved["cosine_and_error"].values())


@pytest.mark.usefixtures("lenient")
@installed("evosax")
def test_estimates_of_jax_peers_point_along_the_gradient():
    on = problem((3, 4, 3), 8)
    contests = [*peers._evosax(on, 64), peers._optax(on, 64)]
    cosines = peers._cosines(on, contests, estimates=4)
    assert set(cosines) == {name for contest in contests for name in (contest.title, *contest.ours)}
    assert all(cosine > 0.6 for cosine, _ in cosines.values())  # of 31 dimensions and 64 samples: √(64/95) = 0.82


@installed("torch")
def test_mezo_restores_its_weights_and_descends(monkeypatch):
    import torch

    models = []
    twin = pytorch.twin
    monkeypatch.setattr(pytorch, "twin", lambda *arguments: models.append(twin(*arguments)) or models[-1])
    on = problem((3, 4, 3), 8)
    step = pytorch.mezo(torch, on)
    start = [w.detach().clone() for w in models[0].parameters()]
    losses = [step(None) for _ in range(3)]
    for before, after in zip(start, models[0].parameters(), strict=True):
        np.testing.assert_allclose(after.detach(), before, atol=1e-5)
    np.testing.assert_allclose(losses, float(on.mean_loss(on.params, on.data)), rtol=1e-4)

    monkeypatch.setattr(pytorch, "RATE", 1e-2)
    assert np.mean([step(None) for _ in range(200)][-10:]) < losses[0]


def test_left_out_where_jax_has_an_accelerator(monkeypatch, capsys):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert pytorch.module() is None
    assert "CPUs only" in capsys.readouterr().out
