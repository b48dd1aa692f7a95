"""Steepest descent and Adam are optax's, and the seed's to the letter."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

pytestmark = pytest.mark.usefixtures("lenient")
GRADIENTS = np.random.default_rng(4).normal(size=(30, 5))


def updates(optimizer):
    state, out = optimizer.init(jnp.zeros(5)), []
    for g in GRADIENTS:
        u, state = optimizer.update(jnp.asarray(g), state)
        out.append(u)
    return np.array(out), state


def test_steepest_descent(x64):
    """dx = −α ∂f (eq. 20); f falls by α |∂f|² to first order (eq. 21)."""
    np.testing.assert_allclose(updates(optax.sgd(0.1))[0], -0.1 * GRADIENTS, rtol=1e-14)
    f = lambda x: jnp.sum(jnp.cosh(x))
    x, alpha = jnp.linspace(-1.0, 1.0, 5), 1e-7
    g = jax.grad(f)(x)
    np.testing.assert_allclose((f(x - alpha * g) - f(x)) / alpha, -(g @ g), rtol=1e-6)


@pytest.mark.slow
def test_adam(x64):
    """Eq. 38, 41, 42 with the values of eq. 43; resolved, eq. 39, and for a constant gradient eq. 40."""
    beta_1, beta_2, alpha, epsilon = 0.9, 0.999, 0.001, 1e-8
    g = v = np.zeros(5)
    expected = []
    for n, gradient in enumerate(GRADIENTS, start=1):
        g = beta_1 * g + (1 - beta_1) * gradient
        v = beta_2 * v + (1 - beta_2) * gradient**2
        g_hat, v_hat = g / (1 - beta_1**n), v / (1 - beta_2**n)
        expected.append(-alpha * g_hat / (np.sqrt(v_hat) + epsilon))
    found, state = updates(optax.adam(alpha))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    n = len(GRADIENTS)
    resolved = (1 - beta_1) * sum(beta_1 ** (n - m) * GRADIENTS[m - 1] for m in range(1, n + 1))
    np.testing.assert_allclose(optax.tree.get(state, "mu"), resolved, rtol=1e-12)
    constant, state = optax.scale_by_adam(), optax.scale_by_adam().init(jnp.zeros(1))
    for step in range(1, 6):
        _, state = constant.update(jnp.ones(1), state)
        np.testing.assert_allclose(state.mu, 1 - beta_1**step, rtol=1e-12)
