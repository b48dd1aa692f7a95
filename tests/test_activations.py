import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nl_jax import activations

GRID = np.concatenate([np.linspace(-4, 4, 33), [-30.0, -1e-6, 1e-6, 30.0]])
SMOOTH = {f.__name__: f() for f in (activations.identity, activations.sigmoid, activations.tanh, activations.relu)}


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
    np.testing.assert_array_equal(activations.sign()(jnp.array([-2.0, 0.0, 0.5])), [-1, 0, 1])


def test_sign_has_the_derivative_one_chooses_or_none():
    chosen = activations.sign(surrogate=lambda x: 1 - x**2)
    np.testing.assert_allclose(jax.vmap(jax.grad(chosen))(jnp.array([0.0, 2.0])), [1, 0])
    np.testing.assert_allclose(chosen.derivative(jnp.array([0.0, 1.0])), [1, 0])
    refusing = activations.sign()
    for differentiate in (lambda: jax.grad(refusing)(1.0), lambda: refusing.derivative(jnp.ones(1))):
        with pytest.raises(ValueError, match=r"sign unit has no useful derivative.*surrogate=jnp\.ones_like"):
            differentiate()
