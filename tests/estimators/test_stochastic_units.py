"""Stochastic units: what they draw, and what they say of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nl_jax as nl

NU = jnp.array([[0.5, -1.0, 2.0], [0.0, 3.0, -0.3]])
MEANS = {
    "bernoulli": (nl.units.bernoulli(), jax.nn.sigmoid),
    "categorical": (nl.units.categorical(), jax.nn.softmax),
    "gaussian": (nl.units.gaussian(sigma=0.5), lambda nu: nu),
}


@pytest.mark.parametrize("name", MEANS)
def test_mean_of_the_draws(name):
    unit, mean = MEANS[name]
    draws = np.asarray(jax.vmap(lambda key: unit.sample(key, NU))(jax.random.split(jax.random.key(0), 20_000)))
    error = draws.std(axis=0, ddof=1) / len(draws) ** 0.5
    assert np.max(np.abs(draws.mean(axis=0) - mean(NU)) / error) < 5
    assert np.max(np.abs(draws.mean(axis=0) - mean(1.1 * NU)) / error) > 5
    if name == "gaussian":
        np.testing.assert_allclose(draws.std(axis=0), 0.5, rtol=0.03)
    else:
        assert set(np.unique(draws)) == {0, 1}
    if name == "categorical":
        assert (draws.sum(axis=-1) == 1).all()


def test_eligibilities(x64):
    """Williams 1992: s − σ(ν), s − softmax(ν), (s − ν)/σ²."""
    nu = jnp.asarray(np.asarray(NU), jnp.float64)
    s = jax.nn.one_hot(jnp.array([2, 0]), 3, dtype=nu.dtype)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
    close(nl.units.bernoulli().eligibility(s, nu), s - jax.nn.sigmoid(nu))
    close(nl.units.categorical().eligibility(s, nu), s - jax.nn.softmax(nu))
    close(nl.units.gaussian(sigma=0.5).eligibility(s, nu), (s - nu) / 0.25)


def test_a_draw_stands_for_the_activation_or_for_what_it_receives():
    assert nl.units.bernoulli().axons(NU, jnp.tanh) is NU
    assert nl.units.categorical().axons(NU, jnp.tanh) is NU
    np.testing.assert_array_equal(nl.units.gaussian(sigma=0.5).axons(NU, jnp.tanh), jnp.tanh(NU))


@pytest.mark.parametrize("sigma", [0, -1.0, jnp.inf, "1"])
def test_sigma_is_checked(sigma):
    with pytest.raises(ValueError, match="sigma must be a finite Python number above 0"):
        nl.units.gaussian(sigma=sigma)
