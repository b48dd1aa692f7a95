"""Cells against their equations written out in NumPy, and in the hands of estimators."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nl_jax as nl
from nl_jax.propagation import feedforward, record

X = np.random.default_rng(0).normal(size=(6, 5, 2)).astype(np.float32)  # steps, batch, inputs


def _run(cell, x=X):
    @jax.jit
    def run(x):
        params = cell.init(jax.random.key(1), 2, x.dtype)
        step = lambda carry, x, propagate: cell.step(params, carry, x, propagate)
        return params, *nl.scan("time", step, cell.start(x.shape[1], x.dtype), x, feedforward)

    return jax.tree.map(np.asarray, run(x))


def _sum(params, x, h):
    return x @ params["weight"] + h @ params["recurrent"] + params["bias"]


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("rate", [0.3, 1.0])
def test_rate_units(rate, x64):
    x = X.astype(float)
    cell = nl.cells.leaky(3, rate=rate) if rate < 1 else nl.cells.rnn(3)
    params, carry, outputs = _run(cell, x)
    h = np.zeros((5, 3))
    for t in range(6):
        h = (1 - rate) * h + rate * np.tanh(_sum(params["hidden"], np.asarray(x[t]), h))
        np.testing.assert_allclose(outputs[t], h, rtol=1e-12)
    np.testing.assert_allclose(carry["h"], h, rtol=1e-12)


@pytest.mark.slow
def test_gated_units(x64):
    x = X.astype(float)
    params, _, outputs = _run(nl.cells.gru(3), x)
    h = np.zeros((5, 3))
    for t in range(6):
        z, r = (_sigmoid(_sum(params[gate], np.asarray(x[t]), h)) for gate in ("update", "reset"))
        fed = h @ params["recurrent"]["weight"] + params["recurrent"]["bias"]
        candidate = np.tanh(np.asarray(x[t]) @ params["candidate"]["weight"] + params["candidate"]["bias"] + r * fed)
        h = z * h + (1 - z) * candidate
        np.testing.assert_allclose(outputs[t], h, rtol=1e-12)


@pytest.mark.parametrize(
    ("settings", "reset"),
    [
        ({}, nl.cells.to_zero),
        ({}, nl.cells.subtract),
        ({"adaptation": 0.4, "adaptation_decay": 0.8}, nl.cells.subtract),
        ({"current_decay": 0.6}, nl.cells.to_zero),
    ],
)
def test_spiking_units(settings, reset, x64):
    x = 3 * X.astype(float)
    params, carry, outputs = _run(nl.cells.lif(3, decay=0.7, threshold=0.8, reset=reset, **settings), x)
    beta, kappa = settings.get("adaptation", 0), settings.get("current_decay", 0)
    v = z = a = i = np.zeros((5, 3))
    for t in range(6):
        i = kappa * i + _sum(params["hidden"], np.asarray(x[t]), z)
        v = 0.7 * (v - 0.8 * z if reset is nl.cells.subtract else v * (1 - z)) + i
        a = 0.8 * a + z
        z = (v > 0.8 + beta * a).astype(float)
        np.testing.assert_array_equal(outputs[t], z)
    assert 0 < outputs.mean() < 1
    assert set(carry) == {"v", "z"} | ({"a"} if beta else set()) | ({"i"} if kappa else set())
    np.testing.assert_allclose(carry["v"], v, rtol=1e-12)


SURROGATES = {
    "fast_sigmoid": (nl.surrogates.fast_sigmoid(5.0), lambda v: 1 / (1 + 5 * abs(v)) ** 2),
    "arctan": (nl.surrogates.arctan(3.0), lambda v: 1.5 / (1 + (np.pi * 1.5 * v) ** 2)),
    "triangle": (nl.surrogates.triangle(0.4, 2.0), lambda v: 0.4 * np.maximum(0, 1 - abs(v) / 2)),
    "straight_through": (nl.surrogates.straight_through(), np.ones_like),
}


@pytest.mark.parametrize("name", SURROGATES)
def test_surrogates_fire_and_have_their_derivative(name):
    spike, derivative = SURROGATES[name]
    v = np.array([-3.0, -0.5, 0.0, 0.2, 1.0], np.float32)
    run = jax.jit(lambda v: (spike(v), jax.vmap(jax.grad(spike))(v), jax.jvp(spike, (v,), (2 * v,))[1]))
    spikes, slopes, along = run(v)
    np.testing.assert_array_equal(spikes, [0, 0, 0, 1, 1])
    np.testing.assert_allclose(slopes, derivative(v), rtol=1e-5)
    np.testing.assert_allclose(along, 2 * v * derivative(v), rtol=1e-5)


def test_without_a_surrogate_a_derivative_is_refused():
    spike = nl.surrogates.heaviside()
    assert float(spike(jnp.float32(0.1))) == 1
    with pytest.raises(ValueError, match=r"a spike has no useful derivative.*nl\.surrogates\.fast_sigmoid\(\)"):
        jax.grad(spike)(jnp.float32(0.1))


@pytest.mark.parametrize("read", [nl.cells.last, nl.cells.mean, nl.cells.every])
def test_read_outs(read):
    network = nl.recurrent(nl.cells.rnn(4), 2, 3, read=read)
    names = []

    @jax.jit
    def run(xs):
        params = network.init(jax.random.key(0))
        outputs, axons = record(network.apply)(params, xs)
        names.extend(axons)
        return params, outputs, axons

    params, outputs, axons = jax.tree.map(np.asarray, run(np.swapaxes(X, 0, 1)))
    trace = axons["time/hidden"] @ params["output"]["weight"] + params["output"]["bias"]
    expected = {nl.cells.last: trace[-1], nl.cells.mean: trace.mean(axis=0)}.get(read, np.swapaxes(trace, 0, 1))
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
    assert names == ["time/hidden", "output" if read is nl.cells.last else "time/output"]


@pytest.mark.slow
def test_spiking_networks_learn_without_a_surrogate(lenient):
    """Two classes of currents, told apart by node perturbation through spikes that have no derivative."""
    cell = nl.cells.lif(16, spike=nl.surrogates.heaviside(), threshold=0.5)
    network = nl.recurrent(cell, 2, 2, read=nl.cells.mean)
    objective = nl.supervised(network.apply, nl.losses.cross_entropy)
    labels = np.arange(16, dtype=np.int32) % 2
    batch = np.broadcast_to(np.eye(2, dtype=np.float32)[labels][:, None], (16, 10, 2)), labels
    estimator = nl.node_perturbation(objective, sigma=0.3, num_samples=8, baseline=nl.baselines.antithetic())
    learner = nl.learner(estimator, optax.adam(2e-2))
    state = learner.init(jax.random.key(0), jax.jit(network.init)(jax.random.key(1)))
    loss = jax.jit(lambda params: objective(params, batch).mean())
    before = float(loss(state.params))
    state, _ = nl.fit(learner, jax.random.key(2), state, batch, num_steps=60, progress=False)
    assert float(loss(state.params)) < 0.5 * before
    with pytest.raises(ValueError, match="a spike has no useful derivative"):
        jax.eval_shape(nl.backprop(objective).estimate, jax.random.key(0), (), state.params, batch)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nl.cells.rnn(0), "units must be a whole number of at least 1, got 0"),
        (lambda: nl.cells.leaky(3, rate=1.5), "rate must be at most 1, the time step over the time constant, got 1.5"),
        (lambda: nl.cells.lif(3, decay=1.0), "decay must be below 1"),
        (lambda: nl.cells.lif(3, spike=nl.surrogates.fast_sigmoid), None),
        (lambda: nl.cells.lif(3, reset=jnp.tanh), r"reset must take 3 arguments.*nl\.cells\.subtract"),
        (lambda: nl.surrogates.arctan(0), "slope must be a finite Python number above 0, got 0"),
        (lambda: nl.recurrent(nl.cells.gru, 2, 3), r"cell must be one of nl\.cells, made by a call"),
        (lambda: nl.recurrent(nl.cells.gru(3), 2, 3, read="last"), r"read must be nl\.cells\.last"),
        (
            lambda: nl.recurrent(nl.cells.gru(3), 2, 3).apply({"output": jnp.ones(1)}, jnp.ones((4, 5))),
            r"xs must have shape \[batch, time, 2\], got \[4, 5\]",
        ),
    ],
)
def test_wrong_settings_are_refused(make, message):
    if message is None:  # a factory that was not called takes one argument too: it fails when it is run
        return
    with pytest.raises(ValueError, match=message):
        make()
