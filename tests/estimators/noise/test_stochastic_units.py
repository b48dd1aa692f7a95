"""Stochastic units: what they draw, and what they say of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import nl_jax as nl

NU = np.array([[0.5, -1.0, 2.0], [0.0, 3.0, -0.3]], np.float32)
MEANS = {
    "bernoulli": (nl.units.bernoulli(), scipy.special.expit),
    "categorical": (nl.units.categorical(), lambda nu: scipy.special.softmax(nu, axis=-1)),
    "gaussian": (nl.units.gaussian(sigma=0.5), lambda nu: nu),
}


@pytest.mark.parametrize("name", MEANS)
def test_mean_of_the_draws(name):
    unit, mean = MEANS[name]
    draw = lambda n: unit.sample(jax.random.fold_in(jax.random.key(0), n), jnp.asarray(NU))
    draws = np.asarray(jax.jit(jax.vmap(draw))(np.arange(20_000)))
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
    nu, s = NU.astype(np.float64), np.eye(3)[[2, 0]]
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
    found = jax.jit(lambda: [unit.eligibility(jnp.asarray(s), jnp.asarray(nu)) for unit, _ in MEANS.values()])()
    close(found[0], s - scipy.special.expit(nu))
    close(found[1], s - scipy.special.softmax(nu, axis=-1))
    close(found[2], (s - nu) / 0.25)


@pytest.mark.parametrize("name", ["bernoulli", "categorical"])
def test_rare_events_are_as_rare_in_half_precision(name):
    unit, mean = MEANS[name]
    p = mean(np.array([-7.0, 0.0]))

    @jax.jit
    def drawn(nu):
        nu = jnp.broadcast_to(nu, (200_000, 2))
        s = unit.sample(jax.random.key(0), nu)
        return nu, s, unit.eligibility(s, nu)

    nu, s, eligibility = drawn(np.array([-7.0, 0.0], jnp.bfloat16))
    error = np.sqrt(p * (1 - p) / len(nu))
    assert s.dtype == nu.dtype
    assert eligibility.dtype == jnp.float32
    assert (np.abs(np.asarray(s, np.float32).mean(axis=0) - p) < 5 * error).all()
    assert (np.abs(np.asarray(eligibility).mean(axis=0)) < 5 * error).all()


@pytest.mark.parametrize(
    ("sigma", "dtype"), [(1e-3, jnp.bfloat16), (1e-2, jnp.bfloat16), (1e-3, jnp.float16), (1e-7, jnp.float32)]
)
def test_noise_that_rounding_would_swallow_is_refused(sigma, dtype):
    with pytest.raises(ValueError, match=f"sigma = {sigma} is lost in {jnp.dtype(dtype)}.*Take a larger sigma, or"):
        nl.units.gaussian(sigma=sigma).sample(jax.random.key(0), jnp.asarray(NU, dtype))


@pytest.mark.parametrize(("sigma", "dtype"), [(1e-4, jnp.float32), (1e-2, jnp.float16), (0.1, jnp.bfloat16)])
def test_noise_that_is_taken_survives_rounding(sigma, dtype):
    """The variance of s about ν is σ², between 1 and 2 and in its own eligibilities as well."""
    unit, nu = nl.units.gaussian(sigma=sigma), np.full(50_000, 1.5, dtype)
    eligibility = jax.jit(lambda nu: unit.eligibility(unit.sample(jax.random.key(0), nu), nu))(nu)
    np.testing.assert_allclose(np.mean(np.square(sigma * np.asarray(eligibility))), 1, atol=5 * (2 / 50_000) ** 0.5)


def test_a_draw_stands_for_the_activation_or_for_what_it_receives():
    assert nl.units.bernoulli().axons(NU, jnp.tanh) is NU
    assert nl.units.categorical().axons(NU, jnp.tanh) is NU
    np.testing.assert_array_equal(nl.units.gaussian(sigma=0.5).axons(NU, jnp.tanh), jnp.tanh(NU))


@pytest.mark.parametrize("sigma", [0, -1.0, jnp.inf, "1"])
def test_sigma_is_checked(sigma):
    with pytest.raises(ValueError, match="sigma must be a finite Python number above 0"):
        nl.units.gaussian(sigma=sigma)
