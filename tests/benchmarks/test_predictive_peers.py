import importlib.util
import json

import jax
import jax.numpy as jnp
import pytest

from benchmarks import predictive_peers
from benchmarks.predictive_peers import Config

SMALL = Config(layers=(4,), inputs=3, units=5, outputs=2, batch_size=6, steps=7, rounds=2)


@pytest.mark.usefixtures("lenient")
def test_a_missing_peer_is_said(tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "jpc" else find(name, *rest))
    assert predictive_peers.main(["--quick", "--out", str(tmp_path)]) == 1
    assert "pip install jpc" in capsys.readouterr().err


@pytest.mark.slow
def test_ours_is_inference_on_the_energy_of_the_mean_over_examples():
    """Against the energy of Innocenti et al. (2025) written out layer by layer, with steps for a batch's mean."""
    problem = predictive_peers.deep_problem(SMALL, 4)
    x, y = problem.batch
    scales = [3**-0.5, *[(5 * 4) ** -0.5] * 2, 1 / 5]
    weights = list(map(jnp.asarray, predictive_peers.weights_of(problem.params)))

    def predictions(weights, z):
        below = [x, *z]
        sent = [below[0], *map(jnp.tanh, below[1:])]
        skips = [0.0, *below[1:-1], 0.0]
        return [s * a @ w + skip for s, a, w, skip in zip(scales, sent, weights, skips, strict=True)]

    def energy(weights, z):
        parts = zip([*z, y], predictions(weights, z), strict=True)
        return sum(0.5 * jnp.sum((own - predicted) ** 2) for own, predicted in parts) / len(x)

    @jax.jit
    def expected(weights):
        z = []
        for i in range(3):
            z.append(predictions(weights[: i + 1] + weights[i + 1 :], [*z, *[jnp.zeros((6, 5))] * (3 - i)])[i])
        for _ in range(SMALL.steps):
            slopes = jax.grad(energy, argnums=1)(weights, z)
            z = [own - SMALL.rate * len(x) * slope for own, slope in zip(z, slopes, strict=True)]
        return jax.grad(energy)(weights, z)

    theirs = expected(weights)
    for way in (predictive_peers.in_loop, predictive_peers.written_out):
        ours = way(SMALL, problem)()
        assert predictive_peers.relative_difference(theirs, ours) < 1e-5
        assert predictive_peers.relative_difference([0 * of for of in theirs], ours) == pytest.approx(1)


@pytest.mark.usefixtures("lenient")
@pytest.mark.skipif(importlib.util.find_spec("jpc") is None, reason="needs jpc")
def test_jpc_has_our_gradient(tmp_path):
    assert predictive_peers.main(["--quick", "--out", str(tmp_path)]) == 0
    saved = json.loads((tmp_path / "predictive_peers.json").read_text())
    assert max(saved["8 layers"]["relative_differences"].values()) < 1e-4
