"""Deep residual networks: the equations as written, the size of axons at any depth, and learning at 64 layers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nl_jax as nl
from nl_jax.propagation import record
from tests.equations import equations

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)
TANH = nl.activations.tanh()


def _network(layers, activation=TANH, units=16, **settings):
    return nl.residual(4, units, 3, layers=layers, activation=activation, **settings)


def test_is_what_is_written(x64):
    """x_1 = W_1 x/√N₀, x_l = x_{l−1} + W_l f(x_{l−1})/√(N L), x_L = W_L f(x_{L−1})/N, in numpy."""
    network = _network(6)
    params = jax.jit(network.init, static_argnums=1)(KEY, jnp.float64)
    inputs = np.random.default_rng(0).normal(size=(5, 4))
    weights = jax.tree.map(np.asarray, params)
    x = inputs @ weights["first"]["weight"] / 2
    found = [x]
    for W in weights["block"]["weight"]:
        x = x + np.tanh(x) @ W / np.sqrt(16 * 6)
        found.append(x)
    outputs, axons = jax.jit(record(network.apply))(params, inputs)
    np.testing.assert_allclose(outputs, np.tanh(x) @ weights["output"]["weight"] / 16, rtol=1e-12)
    np.testing.assert_allclose([axons["first"], *axons["depth/block"]], found, rtol=1e-12)
    assert outputs.shape == (5, 3)
    assert outputs.dtype == jnp.float64


def test_weights_have_the_size_that_is_said():
    wide = nl.residual(30, 40, 50, layers=20, activation=TANH)
    for scaling, sizes in (
        (nl.scalings.depth_mup, (1, 1, 1)),
        (nl.scalings.standard, (30**-0.5, 40**-0.5, 40**-0.5)),
    ):
        params = nl.residual(30, 40, 50, layers=20, activation=TANH, scaling=scaling).init(KEY)
        for (name, leaf), size in zip(params.items(), sizes, strict=True):
            W = np.asarray(leaf["weight"])
            error = size * (2 * W.size) ** -0.5  # of a deviation
            assert abs(W.std() - size) < 4 * error, name
    assert [weight.multiplier for weight in wide.scaling] == [30**-0.5, 800**-0.5, 1 / 40]


@functools.cache
def _sizes(scaling, layers, activation, seeds=100):
    """⟨x²⟩ of the last hidden layer over that of the inputs, by seed."""
    network = _network(layers, activation, scaling=scaling)
    inputs = jnp.ones((1, 4))

    @jax.jit
    def measure(keys):
        return jax.lax.map(
            lambda key: jnp.mean(record(network.apply)(network.init(key), inputs)[1]["depth/block"][-1] ** 2), keys
        )

    return np.asarray(measure(jax.random.split(KEY, seeds)))


def _deviation(values, expected):
    return abs(values.mean() - expected) / (values.std(ddof=1) / len(values) ** 0.5)


def _too_large(inputs, units, layers):
    """A twin whose a_l is too large by √2."""
    return nl.scalings.depth_mup(inputs, units, layers // 2)


DEPTHS = 8, 128


def test_local_rules_reach_every_layer(x64):
    """ΔW_l = ⟨f(x_{l−1})ᵀ x_l⟩ by Hebb's rule: one change for each layer of the stack."""
    network = _network(5)
    params = jax.jit(network.init, static_argnums=1)(KEY, jnp.float64)
    inputs = jax.random.normal(KEY, (7, 4))
    estimator = nl.local_learning(network.apply, {"block": nl.rules.hebb()})
    run = jax.jit(
        lambda *at: (estimator.estimate(KEY, estimator.init(KEY, at[0]), *at)[0], record(network.apply)(*at)[1])
    )
    grads, axons = run(params, inputs)
    x = np.concatenate([axons["first"][None], axons["depth/block"]])
    expected = np.einsum("lni,lnj->lij", np.tanh(x[:-1]), x[1:]) / 7
    np.testing.assert_allclose(grads["block"]["weight"], -expected, rtol=1e-12)
    assert not np.any(grads["first"]["weight"])


def test_axons_keep_their_size_at_any_depth():
    """Of linear layers ⟨x²⟩ is (1 + 1/L)^(L−2) times the inputs': from 2.0 at 8 layers to e at the most."""
    identity = nl.activations.identity()
    for layers in DEPTHS:
        law = (1 + 1 / layers) ** (layers - 2)
        assert _deviation(_sizes(nl.scalings.depth_mup, layers, identity), law) < 4
        assert _deviation(_sizes(_too_large, layers, identity), law) > 4


def test_axons_of_tanh_layers_hardly_know_the_depth():
    """Four times the layers, the same size to a standard error; and to one of standard layers, by no means."""

    def apart(scaling):
        few, many = (_sizes(scaling, layers, TANH) for layers in (32, 128))
        error = np.hypot(few.std(ddof=1), many.std(ddof=1)) / len(few) ** 0.5
        return abs(many.mean() - few.mean()) / error

    assert apart(nl.scalings.depth_mup) < 4
    assert apart(nl.scalings.standard) > 10


def test_one_layer_is_compiled_whatever_their_number():
    counts = [
        equations(_network(layers).apply, jax.eval_shape(_network(layers).init, KEY), jnp.ones((2, 4)))
        for layers in (8, 128)
    ]
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    ("make", "everywhere"),
    [
        (nl.backprop, True),
        (functools.partial(nl.error_predictive_coding, optimizer=optax.sgd(0.5), num_steps=8, tolerance=0.0), True),
        # A signal crosses a layer a step: of those farther down than the steps go nothing is known.
        (functools.partial(nl.predictive_coding, optimizer=optax.sgd(0.5), num_steps=16, tolerance=0.0), False),
    ],
    ids=["backprop", "error_predictive_coding", "predictive_coding"],
)
@pytest.mark.usefixtures("lenient")
def test_sixty_four_layers_learn(make, everywhere):
    """Three classes of random points, by Adam: the loss falls to a quarter; all layers take part, or do not."""
    network = _network(64)
    objective = nl.supervised(network.apply, nl.losses.half_squared_error)
    rng = np.random.default_rng(1)
    targets = np.eye(3, dtype=np.float32)[np.arange(12) % 3]
    batch = (rng.normal(size=(12, 4)) + 2 * targets @ rng.normal(size=(3, 4))).astype(np.float32), targets
    learner = nl.learner(make(objective), optax.adam(0.03))
    state = learner.init(KEY, jax.jit(network.init)(KEY))
    begun = state.params

    @jax.jit
    def train(state):
        return jax.lax.scan(lambda state, _: learner.step(KEY, state, batch), state, None, length=100)

    state, info = train(state)
    assert float(info.loss[-1]) < 0.25 * float(info.loss[0])
    now, then = (np.asarray(params["block"]["weight"]) for params in (state.params, begun))
    moved = np.abs(now - then).max(axis=(1, 2)) > 0.01
    assert moved.any()
    assert moved.all() == everywhere


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": 2}, "layers must be at least 3, one with a skip connection between first and last, got 2"),
        ({"layers": 2.5}, "layers must be a whole number"),
        ({"units": 0}, "units must be a whole number of at least 1, got 0"),
        ({"activation": nl.activations.tanh}, "activation must take one argument"),
        ({"scaling": lambda units: units}, "scaling must take 3 arguments"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        nl.residual(**{"inputs": 4, "units": 8, "outputs": 3, "layers": 8, "activation": TANH} | settings)


def test_inputs_of_another_shape_are_refused():
    network = _network(4)
    with pytest.raises(ValueError, match=r"inputs must have shape \[batch, 4\], got \[2, 5\]"):
        jax.eval_shape(lambda: network.apply(network.init(KEY), jnp.ones((2, 5))))
