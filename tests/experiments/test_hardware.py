import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.hardware import __main__ as hardware
from experiments.hardware.circuit import Crossbar, Faults, circuit
from experiments.harness import data

pytestmark = pytest.mark.usefixtures("lenient")  # optax promotes

NONE = Faults(mismatch=0, drift=0, bits=16, noise=0)
PARAMS = {"weight": np.array([[0.3, -0.6], [0.9, 0.1]], np.float32), "bias": np.array([0.5, 0.0], np.float32)}
X = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)


def test_a_faultless_circuit_is_its_model():
    made = circuit((3, 4, 2), NONE, seed=0)
    params = made.init(jax.random.key(0))
    x = np.asarray(jax.random.normal(jax.random.key(1), (5, 3)))
    expected = made.model(params, x)
    np.testing.assert_allclose(jax.jit(made.hardware)(params, x), expected, atol=1e-3)  # of 16 bits
    np.testing.assert_allclose(made.answer(jax.device_get(params), x), expected, atol=1e-3)


def test_each_fault_is_what_it_says():
    ideal = X @ PARAMS["weight"] + PARAMS["bias"]
    coarse = Crossbar(NONE._replace(bits=3), (2, 2), 0)(PARAMS, X) - PARAMS["bias"]
    np.testing.assert_allclose(coarse * 3, np.rint(PARAMS["weight"] * 3), atol=1e-6)  # 3 bits: −3 to 3
    noisy = Crossbar(NONE._replace(noise=0.1), (2, 2), 0)
    found = np.stack([noisy(PARAMS, X) - ideal for _ in range(500)])
    assert found.std() == pytest.approx(0.1, abs=5 * 0.1 / (2 * found.size) ** 0.5)
    ones = {"weight": np.ones((60, 50), np.float32), "bias": np.zeros(50, np.float32)}
    gains = Crossbar(NONE._replace(mismatch=0.2), (60, 50), 0)(ones, np.eye(60, dtype=np.float32))
    assert gains.std() == pytest.approx(0.2, abs=5 * 0.2 / (2 * gains.size) ** 0.5)
    wandering = Crossbar(NONE._replace(drift=0.2), (60, 50), 0)
    for _ in range(5000):
        wandering(ones, np.zeros((1, 60), np.float32))
    away = wandering(ones, np.eye(60, dtype=np.float32)) - 1
    assert away.std() == pytest.approx(0.2, abs=5 * 0.2 / (2 * away.size) ** 0.5)


@pytest.fixture
def few_images(monkeypatch):
    rng = np.random.default_rng(0)
    split = lambda n: data.Split(rng.random((n, 12), np.float32), rng.integers(0, 10, n).astype(np.int32))
    monkeypatch.setattr(hardware, "mnist_5000", lambda: data.Dataset("few", split(40), split(20)))


@pytest.mark.slow
def test_every_way_is_measured_and_resumed(few_images, tmp_path, capsys, monkeypatch):
    small = ["--quick", "--updates", "2", "--hidden", "3", "--batch-size", "10", "--out", str(tmp_path)]
    assert hardware.main(small) == 0
    found = json.loads((tmp_path / "hardware.json").read_text())
    assert "largest_deviation" not in found  # nothing is judged
    assert set(found["ways"]) == set(hardware.WAYS)
    assert all(np.shape(of["test"]) == (2,) for of in found["ways"].values())
    assert found["behind"]["software"] == [0, 0]
    assert "activity" in capsys.readouterr().out
    monkeypatch.setattr(hardware, "trained", lambda *of: pytest.fail("trained again"))
    assert hardware.main([*small, "--resume"]) == 0


def test_falling_behind_is_an_error(few_images, tmp_path, capsys, monkeypatch):
    accuracy = {"software": 0.9, "activity": 0.88, "transferred": 0.5, "physics_aware": 0.9}
    monkeypatch.setattr(hardware, "trained", lambda config, sets, way, rate, seed: (rate, accuracy[way]))
    assert hardware.main(["--out", str(tmp_path)]) == 1
    assert "activity, behind backprop in software" in capsys.readouterr().err
    found = json.loads((tmp_path / "hardware.json").read_text())
    assert found["largest_deviation"] == pytest.approx(2)
    assert found["ways"]["software"]["rate"] == 3e-3  # the one of the best validation accuracy
    monkeypatch.setitem(accuracy, "activity", 0.895)
    assert hardware.main(["--out", str(tmp_path)]) == 0


@pytest.mark.parametrize(
    ("settings", "words"), [(["--seeds", "1"], "--seeds and --samples at least 2"), (["--hidden", "0"], "at least 1")]
)
def test_settings_that_will_not_do(settings, words, tmp_path, capsys):
    assert hardware.main([*settings, "--out", str(tmp_path)]) == 1
    assert words in capsys.readouterr().err


@pytest.mark.slow
def test_the_activity_way_sees_noise_of_the_circuit_alone():
    """Without noise in the circuit nothing changes from pass to pass, and nothing is learned."""
    made = circuit((3, 4, 2), NONE, seed=0)
    estimator = hardware._estimator("activity", made, 2)
    params, batch = made.init(jax.random.key(0)), (jnp.ones([5, 3]), jnp.zeros(5, int))
    grads, _, _ = estimator.estimate(jax.random.key(1), (), params, batch)
    assert all(float(jnp.abs(leaf).max()) == 0 for leaf in jax.tree.leaves(grads))
