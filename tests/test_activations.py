import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nl_jax as nl
from nl_jax import activations

GRID = np.concatenate([np.linspace(-4, 4, 33), [-30.0, -1e-6, 1e-6, 30.0]])
SMOOTH = {
    "identity": activations.identity(),
    "sigmoid": activations.sigmoid(),
    "tanh": activations.tanh(),
    "tanh(1.7, 0.6)": activations.tanh(alpha=1.7, beta=0.6),
    "tanh(-2, 3)": activations.tanh(alpha=-2, beta=3),
    "exp": activations.exp(),
    "exp(-0.5, 0.3)": activations.exp(alpha=-0.5, beta=0.3),
    "tanh_by_sigmoid": activations.tanh_by_sigmoid(),
    "sigmoid_by_tanh": activations.sigmoid_by_tanh(),
    "relu": activations.relu(),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_derivative_from_the_value_is_the_derivative(name, x64):
    """Seed 003 eq. 10: df(f(ν)) = f'(ν), edges and zero included."""
    f = SMOOTH[name]
    nu = jnp.asarray(GRID)
    by_autodiff = jax.vmap(jax.grad(f))(nu)
    np.testing.assert_allclose(f.derivative(f(nu)), by_autodiff, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dtype_is_kept(name, dtype):
    f = SMOOTH[name]
    x = f(jnp.ones(3, dtype))
    assert x.dtype == f.derivative(x).dtype == dtype


def test_values(x64):
    np.testing.assert_allclose(activations.sigmoid()(jnp.asarray(GRID)), 1 / (1 + np.exp(-GRID)), rtol=1e-12)
    np.testing.assert_allclose(activations.relu()(jnp.asarray(GRID)), np.maximum(GRID, 0))
    np.testing.assert_allclose(
        activations.tanh(alpha=1.7, beta=0.6)(jnp.asarray(GRID)), 1.7 * np.tanh(0.6 * GRID), rtol=1e-12
    )
    np.testing.assert_allclose(
        activations.exp(alpha=-0.5, beta=0.3)(jnp.asarray(GRID)), -0.5 * np.exp(0.3 * GRID), rtol=1e-12
    )
    np.testing.assert_array_equal(activations.sign()(jnp.array([-2.0, 0.0, 0.5])), [-1, 0, 1])


def test_the_plain_tanh_costs_no_more_than_itself():
    assert activations.tanh().function is activations.tanh(alpha=1.0, beta=1).function is jnp.tanh


def test_sigmoid_and_tanh_are_each_other_scaled(x64):
    """Seed 000: tanh ν = 2σ(2ν) − 1 and σ(ν) = (tanh(ν/2) + 1)/2."""
    nu = jnp.asarray(GRID)
    np.testing.assert_allclose(activations.tanh_by_sigmoid()(nu), np.tanh(GRID), atol=1e-15)
    np.testing.assert_allclose(activations.sigmoid_by_tanh()(nu), activations.sigmoid()(nu), atol=1e-15)


@pytest.mark.parametrize("make", [activations.tanh, activations.exp])
@pytest.mark.parametrize("name", ["alpha", "beta"])
@pytest.mark.parametrize("value", [0, np.inf, np.nan, "1", True, jnp.ones(())])
def test_a_scale_that_is_none_is_refused(make, name, value):
    with pytest.raises(ValueError, match=f"{name} must be a finite Python number other than 0, got"):
        make(**{name: value})


def test_a_scale_may_be_numpys():
    f = activations.tanh(alpha=np.float64(2), beta=np.float32(0.5))
    assert f(jnp.ones(3)).dtype == f.derivative(jnp.ones(3)).dtype == jnp.float32


def test_sign_has_the_derivative_one_chooses_or_none():
    chosen = activations.sign(surrogate=lambda x: 1 - x**2)
    np.testing.assert_allclose(jax.vmap(jax.grad(chosen))(jnp.array([0.0, 2.0])), [1, 0])
    np.testing.assert_allclose(chosen.derivative(jnp.array([0.0, 1.0])), [1, 0])
    refusing = activations.sign()
    for differentiate in (lambda: jax.grad(refusing)(1.0), lambda: refusing.derivative(jnp.ones(1))):
        with pytest.raises(ValueError, match=r"sign unit has no useful derivative.*surrogate=jnp\.ones_like"):
            differentiate()


def _exclusive_or():
    """XOR for sign units, without biases as they start: then every hidden unit is odd in the inputs."""
    network = nl.mlp([2, 4, 2], activation=activations.sign())
    batch = jnp.array([[-1.0, -1], [-1, 1], [1, -1], [1, 1]]), jnp.array([0, 1, 1, 0])
    return network, nl.supervised(network.apply, nl.losses.cross_entropy), batch


@pytest.mark.slow
def test_node_perturbation_trains_sign_units():
    """No read-out of odd features has more than 3 of XOR's 4 examples right: with 4, the hidden layer has learned.

    The noise is about as large as the pre-activations, for a sign is smooth on the noise's scale and not below.
    """
    network, objective, batch = _exclusive_or()
    params = network.init(jax.random.key(0))
    hidden = network.axons(params, batch[0])["hidden1"]
    np.testing.assert_array_equal(hidden, -hidden[::-1])
    learner = nl.learner(nl.node_perturbation(objective, sigma=0.5, num_samples=32), optax.sgd(0.5))
    state, _ = nl.fit(
        learner, jax.random.key(1), learner.init(jax.random.key(2), params), batch, num_steps=300, progress=False
    )
    assert (network.apply(state.params, batch[0]).argmax(axis=1) == batch[1]).all()


@pytest.mark.parametrize(
    "make", [nl.backprop, nl.backprop_recursion, nl.lagrangian_backprop, nl.forward_gradient], ids=lambda f: f.__name__
)
def test_estimators_that_differentiate_refuse_sign_units(make):
    network, objective, batch = _exclusive_or()
    estimator, params = make(objective), network.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"sign unit has no useful derivative.*node_perturbation"):
        jax.eval_shape(estimator.estimate, jax.random.key(0), (), params, batch)


def test_node_perturbation_follows_the_sign_smoothed_by_its_noise():
    """Of x = sgn(ν + σξ) at ν = w u and ½ (x − t)²: d/dw E = −2 t u φ(ν/σ)/σ, φ the normal density."""
    network = nl.mlp([1, 1], activation=activations.sign(), output_activation=activations.sign(), bias=False)
    objective = nl.supervised(network.apply, nl.losses.half_squared_error)
    w, u, t, sigma = 0.1, 0.8, 0.7, 0.5
    estimator = nl.node_perturbation(objective, sigma=sigma, num_samples=32)
    params, batch = {"output": {"weight": jnp.full((1, 1), w)}}, (jnp.full((16, 1), u), jnp.full((16, 1), t))

    @jax.jit
    @jax.vmap
    def estimates(key):
        return estimator.estimate(key, (), params, batch)[0]["output"]["weight"][0, 0]

    found = np.asarray(estimates(jax.random.split(jax.random.key(3), 64)))
    error = found.std(ddof=1) / 8

    def smoothed(sigma):
        return -2 * t * u * np.exp(-((w * u / sigma) ** 2) / 2) / np.sqrt(2 * np.pi) / sigma

    assert abs(found.mean() - smoothed(sigma)) < 4 * error
    assert abs(found.mean() - smoothed(sigma / 2)) > 8 * error  # and no other width's
