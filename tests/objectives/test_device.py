"""A circuit on the host: its own weights' errors, its own noise, and no derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nl_jax as nl
from nl_jax.propagation import feedforward

pytestmark = pytest.mark.slow

BATCH = jax.random.normal(jax.random.key(0), (6, 3)), jnp.ones([6, 2])
PARAMS = {"output": {"weight": jax.random.normal(jax.random.key(1), (3, 2))}}
KEY = jax.random.key(2)


def ideal(params, x):
    return x @ params["weight"]


def identity(nu):
    return nu


def program(connection):
    def objective(params, batch, propagate=feedforward):
        outputs = propagate("output", connection, identity, params["output"], batch[0])
        return nl.losses.half_squared_error(outputs, batch[1])

    return objective


@pytest.mark.parametrize("make", [nl.weight_perturbation, nl.evolution_strategy])
def test_a_black_box_is_trained_as_the_same_thing_in_jax(make):
    def circuit(params, batch):
        outputs = batch[0] @ params["output"]["weight"]
        assert isinstance(outputs, np.ndarray)
        return 0.5 * np.sum((outputs - batch[1]) ** 2, axis=1)

    settings = {"num_samples": 4, "sigma": 0.1}
    ours, theirs = (make(objective, **settings) for objective in (nl.device(circuit), program(ideal)))
    found, expected = (jax.jit(one.estimate)(KEY, (), PARAMS, BATCH) for one in (ours, theirs))
    np.testing.assert_allclose(found[0]["output"]["weight"], expected[0]["output"]["weight"], rtol=1e-4)
    assert found[2].evaluations == expected[2].evaluations


def test_a_connection_runs_on_the_device_and_learns_by_its_model():
    calls = []

    def circuit(params, x):
        calls.append(x.shape)
        return 2 * (x @ params["weight"])  # an amplifier that the model knows nothing of

    connection = nl.device(circuit, like=ideal)
    losses = jax.jit(program(connection))(PARAMS, BATCH)
    doubled = {"output": {"weight": 2 * PARAMS["output"]["weight"]}}
    np.testing.assert_allclose(losses, program(ideal)(doubled, BATCH), rtol=1e-6)
    grads, _, _ = nl.backprop(program(connection)).estimate(KEY, (), PARAMS, BATCH)
    delta = (2 * BATCH[0] @ PARAMS["output"]["weight"] - BATCH[1]) / 6
    np.testing.assert_allclose(grads["output"]["weight"], BATCH[0].T @ delta, rtol=1e-5)
    calls.clear()
    jax.block_until_ready(jax.vmap(connection, in_axes=(None, 0))(PARAMS["output"], jnp.ones([4, 5, 3])))
    assert calls == [(5, 3)] * 4


def test_noise_of_the_device_is_enough_to_learn_by():
    """Node perturbation by measured activity: two noisy passes, of whose noise nobody knows anything."""
    rng = np.random.default_rng(3)

    def circuit(params, x):
        return x @ params["weight"] + 1e-2 * rng.standard_normal((len(x), 2), np.float32)

    objective = program(nl.device(circuit, like=ideal))
    noisy = lambda key, params, batch, propagate: objective(params, batch, propagate=propagate)
    estimator = nl.activity_node_perturbation(objective, noisy=noisy, num_samples=1)
    estimate = jax.jit(estimator.estimate)
    exact = jax.grad(lambda params: program(ideal)(params, BATCH).mean())(PARAMS)["output"]["weight"]
    found = np.stack([estimate(KEY, (), PARAMS, BATCH)[0]["output"]["weight"] for _ in range(400)])
    mean, error = found.mean(axis=0), found.std(axis=0, ddof=1) / 20
    assert np.all(error > 0)  # the same key, another answer
    deviations = lambda reference: np.max(np.abs(mean - reference) / error)
    assert deviations(exact) < 4.5
    assert deviations(2 * exact) > 6  # the wrong twin


@pytest.mark.parametrize("reference", ["clean", "mean"])
def test_every_sample_is_a_pass_of_its_own(reference):
    """Though the device ignores the key: it is run K + 1 times, and its noise is averaged over K passes."""
    rng, passes = np.random.default_rng(3), []

    def circuit(params, x):
        passes.append(rng.standard_normal((len(x), 2), np.float32))
        return x @ params["weight"] + 1e-2 * passes[-1]

    objective = program(nl.device(circuit, like=ideal))
    noisy = lambda key, params, batch, propagate: objective(params, batch, propagate=propagate)
    estimator = nl.activity_node_perturbation(objective, noisy=noisy, num_samples=4, reference=reference)
    credit = jax.jit(lambda: estimator.estimate(KEY, (), PARAMS, BATCH))
    jax.block_until_ready(credit())
    assert len(passes) == 5
    assert not any(np.array_equal(passes[0], other) for other in passes[1:])


def test_what_a_device_may_not_return_or_be():
    with pytest.raises(ValueError, match="run must be a function"):
        nl.device(3)
    with pytest.raises(ValueError, match="a black box is run"):
        nl.device(lambda x: x)
    with pytest.raises(ValueError, match="like must be a JAX function"):
        nl.device(ideal, like=3)
    with pytest.raises(Exception, match=r"the device returned shape \(\), and \(6,\) was expected"):
        jax.block_until_ready(nl.device(lambda params, batch: np.float32(1))(PARAMS, BATCH))
    with pytest.raises(Exception, match="return the same tree"):
        jax.block_until_ready(nl.device(lambda params, batch: (1, 2))(PARAMS, BATCH))
