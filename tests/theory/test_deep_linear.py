"""Deep linear networks: gradients beside autodiff, modes beside their equation of motion, descent beside the modes."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nl_jax as nl
from nl_jax.theory import deep_linear

pytestmark = pytest.mark.usefixtures("x64")

KEY = jax.random.key(0)
INPUTS, OUTPUTS, HIDDEN = 3, 2, 4
depths = pytest.mark.parametrize("depth", [1, 2, 4])


def draws():
    """Inputs, correlated, and targets."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(7, INPUTS)), rng.normal(size=(7, OUTPUTS))


def seed_loss(weights, x, y):
    """L = (1/N) Σ (y − W_L ⋯ W_1 x)ᵀ (y − W_L ⋯ W_1 x)."""
    for W in weights:
        x = x @ W.T
    return jnp.sum((y - x) ** 2) / len(x)


def random_weights(depth):
    sizes = [INPUTS, *[HIDDEN] * (depth - 1), OUTPUTS]
    rng = np.random.default_rng(1)
    return [rng.normal(size=(high, low)) for low, high in itertools.pairwise(sizes)]


def test_both_gradients_of_the_seed():
    @jax.jit
    def both(weights, x, y):
        W21, W32 = weights
        ours = deep_linear.two_layer_gradients(W32, W21, *deep_linear.correlations(x, y))
        return ours, jax.grad(seed_loss)(weights, x, y)

    (by_32, by_21), exact = both(random_weights(2), *draws())
    np.testing.assert_allclose(by_21, exact[0], rtol=1e-12)
    np.testing.assert_allclose(by_32, exact[1], rtol=1e-12)


@depths
def test_flow_is_down_the_gradient(depth):
    @jax.jit
    def both(weights, x, y):
        return deep_linear.flow(weights, *deep_linear.correlations(x, y)), jax.grad(seed_loss)(weights, x, y)

    for ours, gradient in zip(*both(random_weights(depth), *draws()), strict=True):
        np.testing.assert_allclose(ours, -gradient / 2, rtol=1e-12, atol=1e-13)


# Of one mode: s, u₀ and τ, and strengths on the way from u₀ to s.
S, START, TAU = 1.7, 0.02, 3.0
WAY = np.array([START, 0.1, 0.9, 1.6, 1.699])


@functools.partial(jax.jit, static_argnums=1)
def journey(u, depth):
    """When u is reached, dt/du there, how fast u moves, and what u is at that time."""
    time, slowness = jax.jvp(lambda u: deep_linear.learning_time(u, S, START, TAU, depth), (u,), (jnp.ones_like(u),))
    return time, slowness, deep_linear.mode_velocity(u, S, depth), deep_linear.mode(time, S, START, TAU, depth)


@depths
def test_modes_solve_their_equation(depth):
    time, slowness, velocity, u = journey(jnp.asarray(WAY), depth)
    assert time[0] == 0
    np.testing.assert_allclose(velocity * slowness, TAU, rtol=1e-10)  # τ du/dt
    np.testing.assert_allclose(u, WAY, rtol=1e-12)


@pytest.mark.parametrize("depth", [1, 2])
def test_modes_written_in_time_solve_it_too(depth):

    @jax.jit
    def both(t):
        u, speed = jax.jvp(lambda t: deep_linear.mode(t, S, START, TAU, depth), (t,), (jnp.ones(7),))
        return TAU * speed, deep_linear.mode_velocity(u, S, depth)

    np.testing.assert_allclose(*both(np.linspace(0.0, 12.0, 7)), rtol=1e-10)


@pytest.mark.slow
def test_two_layers_are_the_formula_of_the_paper():
    """u(t) = s e^{2st/τ} / (e^{2st/τ} − 1 + s/u₀), which ends at s, however late."""
    t = np.linspace(0, 12, 7)
    growth = np.exp(2 * S * t / TAU)
    np.testing.assert_allclose(
        deep_linear.mode(jnp.asarray(t), S, START, TAU), S * growth / (growth - 1 + S / START), rtol=1e-12
    )
    for depth in (1, 2, 3):
        assert float(deep_linear.mode(1e6, S, START, TAU, depth)) == pytest.approx(S, rel=1e-12)


def test_deep_networks_wait_longer_and_longer():
    """From ten times less, two layers wait τ ln 10/(2s) longer; three some 10^{1/3} times as long."""

    def wait(u0, depth):
        return float(deep_linear.learning_time(S / 2, S, u0, TAU, depth))

    assert wait(1e-6, 2) - wait(1e-5, 2) == pytest.approx(TAU * np.log(10) / (2 * S), rel=1e-4)
    assert wait(1e-10, 3) / wait(1e-9, 3) == pytest.approx(10 ** (1 / 3), rel=1e-2)


def whitened():
    """Inputs with Σ11 = I, and targets whose Σ31 has strengths 2 and 1, with something left unexplained."""
    x, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(7, INPUTS + 1)))
    left, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(OUTPUTS, OUTPUTS)))
    right, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(INPUTS, INPUTS)))
    x = np.sqrt(7) * x
    y = x[:, :INPUTS] @ right[:, :OUTPUTS] @ np.diag([2.0, 1.0]) @ left.T + 0.3 * x[:, INPUTS:]
    return x[:, :INPUTS], y


def test_modes_of_data():
    run = jax.jit(
        lambda *data: (deep_linear.correlations(*data), deep_linear.modes(deep_linear.correlations(*data)[1]))
    )
    (Sigma11, Sigma31), (U, s, V) = jax.device_get(run(*whitened()))
    np.testing.assert_allclose(Sigma11, np.eye(INPUTS), atol=1e-14)
    np.testing.assert_allclose(s, [2, 1], rtol=1e-12)
    np.testing.assert_allclose((U * s[None]) @ V.T, Sigma31, atol=1e-14)


@pytest.mark.parametrize("depth", [2, 3])
def test_a_balanced_network_moves_along_its_modes(depth):
    @jax.jit
    def at_the_start(x, y):
        correlations = deep_linear.correlations(x, y)
        U, s, V = deep_linear.modes(correlations[1])
        weights = deep_linear.balanced_weights(KEY, correlations[1], START, [HIDDEN] * (depth - 1))
        u, velocity = jax.jvp(
            lambda *weights: deep_linear.strengths(weights, U, V), weights, deep_linear.flow(weights, *correlations)
        )
        return u, velocity, deep_linear.mode_velocity(u, s, depth), seed_loss(weights, x, y) - jnp.sum((s - u) ** 2)

    u, velocity, law, unexplained = at_the_start(*whitened())
    np.testing.assert_allclose(u, START, rtol=1e-12)
    np.testing.assert_allclose(velocity, law, rtol=1e-10)
    np.testing.assert_allclose(unexplained, 2 * 0.3**2, rtol=1e-10)


@functools.cache
def descent(depth):
    """`walk(rate, steps)`: strengths where nl.backprop and optax.sgd on the seed's loss arrive, and the modes' s."""
    network = nl.mlp([INPUTS, *[HIDDEN] * (depth - 1), OUTPUTS], activation=nl.activations.identity(), bias=False)
    objective = nl.supervised(network.apply, lambda outputs, targets: jnp.sum((targets - outputs) ** 2, axis=1))
    layers = list(network.shapes)[1:]

    @jax.jit
    def walk(rate, steps):
        x, y = whitened()
        _, Sigma31 = deep_linear.correlations(x, y)
        U, s, V = deep_linear.modes(Sigma31)
        learner = nl.learner(nl.backprop(objective), optax.sgd(rate))
        start = deep_linear.balanced_weights(KEY, Sigma31, START, [HIDDEN] * (depth - 1))
        params = {layer: {"weight": W.T} for layer, W in zip(layers, start, strict=True)}
        state = learner.init(KEY, params)
        end = jax.lax.fori_loop(0, steps, lambda _, state: learner.step(KEY, state, (x, y))[0], state)
        return deep_linear.strengths([end.params[layer]["weight"].T for layer in layers], U, V), s

    return walk


@pytest.mark.slow
@pytest.mark.parametrize("depth", [2, 3])
def test_descent_lies_on_the_modes(depth):
    """By Euler's method: half the step, half the error; and not if τ were 1/η, as it is of half the loss."""
    time = 2.5 if depth == 2 else 5.0  # in units of τ: the strong mode is learned by then, the weak one on its way

    def error(steps, tau=deep_linear.time_constant):
        rate = time / (2 * steps)
        u, s = descent(depth)(rate, steps)
        law = jax.jit(lambda s, tau: deep_linear.mode(float(steps), s, START, tau, depth))
        return float(np.linalg.norm(np.asarray(u) - np.asarray(law(s, tau(rate)))))

    errors = [error(steps) for steps in (500, 1000, 2000)]
    assert errors[-1] < 0.01
    np.testing.assert_allclose([errors[0] / errors[1], errors[1] / errors[2]], 2, rtol=0.03)
    assert error(2000, tau=lambda rate: 1 / rate) > 0.3


def test_bad_input_is_told():
    Sigma31 = jnp.ones([2, 3])
    with pytest.raises(ValueError, match=r"got \[3, 2\] and \[3\]"):
        deep_linear.correlations(jnp.ones([3, 2]), jnp.ones(3))
    with pytest.raises(ValueError, match="start must be a finite number above 0, got 0"):
        deep_linear.balanced_weights(KEY, Sigma31, 0, [4])
    with pytest.raises(ValueError, match=r"hidden layers must have at least 2 units, .* got \[4, 1\]"):
        deep_linear.balanced_weights(KEY, Sigma31, 0.1, [4, 1])
    for function in (deep_linear.mode, deep_linear.learning_time):
        with pytest.raises(ValueError, match="depth must be a whole number of at least 1"):
            function(0.5, S, START, TAU, depth=0)
