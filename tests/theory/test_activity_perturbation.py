"""Activity-based node perturbation: its moments by definition and in limits; its mean is tested with the estimator."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nl_jax.theory import activity_perturbation as theory

direction_moments = jax.jit(theory.direction_moments)


def covariance(n, spread):
    basis, _ = np.linalg.qr(np.random.default_rng(n).normal(size=(n, n)))
    return basis * np.geomspace(1, spread, n) @ basis.T


@pytest.mark.parametrize("n", [1, 3])  # for two see below
def test_moments_are_those_of_draws(n, x64):
    C = covariance(n, 30.0)
    M = np.asarray(direction_moments(C))
    u = np.random.default_rng(1).multivariate_normal(np.zeros(n), C, size=200_000)
    outer = u[:, :, None] * u[:, None, :] / np.sum(u**2, axis=1)[:, None, None]
    error = outer.std(axis=0) / len(u) ** 0.5 + 1e-9
    assert np.max(np.abs(outer.mean(axis=0) - M) / error) < 5
    np.testing.assert_allclose(np.trace(M), 1, rtol=1e-10)
    if n > 1:  # the limit of many units is not yet true of few
        assert np.max(np.abs(outer.mean(axis=0) - C / np.trace(C)) / error) > 5


def test_two_units_have_a_closed_form(x64):
    """E[λ₁z₁²/(λ₁z₁² + λ₂z₂²)] = √λ₁/(√λ₁ + √λ₂)."""
    M = direction_moments(np.diag([9.0, 1.0]))
    np.testing.assert_allclose(M, np.diag([0.75, 0.25]), atol=1e-12)


def test_many_units_tend_to_the_covariance_over_its_trace(x64):
    deviations = [
        np.max(np.abs(n * (np.asarray(direction_moments(C)) - C / np.trace(C))))
        for n in (10, 80)
        for C in [covariance(n, 4.0)]
    ]
    assert deviations[1] < deviations[0] / 4  # as 1/n


def test_response_is_the_derivative(x64):
    rng = np.random.default_rng(0)

    def activity(weights, eps):
        low, middle, high = jnp.split(eps, [3, 7])
        two = low @ weights[0] + middle
        return jnp.concatenate([low, two, two @ weights[1] + high])

    both = jax.jit(lambda weights, eps: (theory.response(weights), jax.jacobian(activity, 1)(weights, eps).T))
    np.testing.assert_allclose(*both([rng.normal(size=(3, 4)), rng.normal(size=(4, 2))], np.zeros(9)), atol=1e-12)


def test_wide_networks_add_the_credit_of_layers_below(x64):
    """E δ^l → (N/tr C)(g_l + Σ_{m<l} g_m W … W): half of the deviation with four times the units, or less."""

    def deviation(n):
        rng = np.random.default_rng(n)
        W, top = 0.7 * np.linalg.qr(rng.normal(size=(n, n)))[0], rng.normal(size=(1, n))
        run = jax.jit(lambda W, top: (theory.expected_credit([W], top), theory.response([W])))
        (low, high), R = jax.device_get(run(W, top))
        scale = 2 * n / np.sum(R**2)
        g_low = top @ W.T
        expected = np.concatenate([scale * g_low, scale * (top + g_low @ W)], axis=1)
        return np.linalg.norm(np.concatenate([low, high], axis=1) - expected) / np.linalg.norm(expected)

    assert deviation(64) < deviation(16) / 2 < 0.05


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"C must be a square matrix, the covariance of activity; got shape \[2, 3\]"):
        theory.direction_moments(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"weights must fit one another and top of shape \[1, 5\]; got \[3, 4\]"):
        theory.expected_credit([jnp.ones((3, 4))], jnp.ones((1, 5)))
