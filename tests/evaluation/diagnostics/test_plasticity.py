"""The coefficients of a polynomial rule come back from weights, readings and activity, within their errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nl_jax as nl
from nl_jax.evaluation.diagnostics import plasticity_from_activity, plasticity_from_readings, plasticity_from_weights
from nl_jax.evaluation.diagnostics.plasticity import ALL_TERMS

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("x64")]

RATE, SIGMA = 0.1, 0.02
OJA = {(1, 1, 0): RATE, (0, 2, 1): -RATE}
TERMS = [(1, 1, 0), (0, 2, 1), (1, 0, 0), (0, 0, 1), (0, 1, 0), (2, 1, 0)]
STEPS, EXAMPLES, INPUTS, UNITS = 40, 2, 3, 2


def trained(key, process=0.0):
    """Inputs, weights and answers of linear units under Oja's rule, whose changes have noise of size `process`."""
    data, start, noise = jax.random.split(key, 3)
    x = jax.random.normal(data, (STEPS, EXAMPLES, INPUTS)) * jnp.array([[[1.5, 1.0, 0.7]]])
    first = 0.5 * jax.random.normal(start, (INPUTS, UNITS))

    def step(W, given):
        x, noise = given
        y = x @ W
        change = RATE * (x.T @ y - W * jnp.sum(y**2, axis=0, keepdims=True)) / EXAMPLES
        return W + change + process * noise, (W, y)

    last, (W, y) = jax.lax.scan(step, first, (x, jax.random.normal(noise, (STEPS, INPUTS, UNITS))))
    return x, jnp.concatenate([W, last[None]]), y


def from_weights(key):
    x, W, y = trained(key, process=SIGMA)
    return plasticity_from_weights(W, x, y)


def from_readings(key):
    x, W, _ = trained(key)
    read = W + SIGMA * jax.random.normal(jax.random.fold_in(key, 1), W.shape)
    return plasticity_from_readings(read, x, initial=read[0], terms=TERMS)


def from_activity(key):
    x, W, y = trained(key)
    seen = y + SIGMA * jax.random.normal(jax.random.fold_in(key, 1), y.shape)
    return plasticity_from_activity(seen, x, initial=W[0], terms=TERMS)


# These programs run for longer than XLA takes to optimise them, which conftest.py tells it not to do.
OPTIMISED = {"xla_backend_optimization_level": "2", "xla_llvm_disable_expensive_passes": "False"}


@functools.cache
def fits(fit, count):
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), count)
        run = jax.jit(lambda keys: jax.lax.map(fit, keys, batch_size=50), compiler_options=OPTIMISED)
        return jax.device_get(run(keys))


def truth():
    theta = np.zeros((3, 3, 3))
    for powers, value in OJA.items():
        theta[powers] = value
    return theta


def covered(fit, count, terms, scale=1.0):
    """Of each coefficient: how often 90 % intervals hold the truth, in standard errors from 0.9."""
    found = fits(fit, count)
    at = tuple(np.transpose(terms))
    z = ((found.theta - truth()) / np.where(found.standard_errors > 0, found.standard_errors, 1))[(slice(None), *at)]
    return (np.mean(np.abs(z) < 1.6449 * scale, axis=0) - 0.9) / np.sqrt(0.9 * 0.1 / count)


CASES = [(from_weights, 200, ALL_TERMS), (from_readings, 50, TERMS), (from_activity, 50, TERMS)]


@pytest.mark.parametrize(("fit", "count", "terms"), CASES, ids=["weights", "readings", "activity"])
def test_the_truth_lies_within_the_errors_as_often_as_they_say(fit, count, terms):
    assert np.abs(covered(fit, count, terms)).max() < 4
    assert covered(fit, count, terms, scale=0.5).max() < -4  # errors understated by half, of every coefficient


@pytest.mark.parametrize(("fit", "count", "terms"), CASES, ids=["weights", "readings", "activity"])
def test_ojas_coefficients_come_back(fit, count, terms):
    found, at = fits(fit, count), tuple(np.transpose(terms))
    mean = np.mean(found.theta, axis=0)
    error = np.std(found.theta, axis=0, ddof=1) / count**0.5
    assert np.all(np.abs(mean - truth())[at] < 5 * error[at] + 0.02 * RATE)  # the likeliest θ has a bias of order σ²
    assert np.all(found.standard_errors[:, 1, 1, 0] < RATE / 5)
    assert abs(np.mean(found.noise) / SIGMA - 1) < 0.02
    left_out = np.ones((3, 3, 3), bool)
    left_out[at] = False
    assert not found.theta[:, left_out].any()
    assert not found.standard_errors[:, left_out].any()


def test_changes_are_fitted_by_linear_least_squares():
    x, W, y = map(np.asarray, jax.jit(lambda key: trained(key, process=SIGMA))(jax.random.key(3)))
    rows, observed = [], []
    for t in range(STEPS):
        for i in range(INPUTS):
            for j in range(UNITS):
                rows.append([np.mean(x[t, :, i] ** a * y[t, :, j] ** b) * W[t, i, j] ** c for a, b, c in TERMS])
                observed.append(W[t + 1, i, j] - W[t, i, j])
    A, b = np.array(rows), np.array(observed)
    theta = np.linalg.solve(A.T @ A, A.T @ b)
    variance = np.sum((b - A @ theta) ** 2) / (len(b) - len(TERMS))
    found = jax.jit(lambda: plasticity_from_weights(W, x, y, terms=TERMS))()
    np.testing.assert_allclose([found.theta[p] for p in TERMS], theta, rtol=1e-8)
    np.testing.assert_allclose(found.covariance, variance * np.linalg.inv(A.T @ A), rtol=1e-6)
    np.testing.assert_allclose([found.standard_errors[p] for p in TERMS], np.sqrt(np.diag(found.covariance)), rtol=1e-8)


def test_what_cannot_be_told_apart_has_no_finite_error():
    W = np.asarray(jax.jit(lambda key: trained(key, process=SIGMA))(jax.random.key(4))[1])
    x = (np.random.default_rng(0).random((STEPS, 1, INPUTS)) < 0.5).astype(float)  # x² = x
    found = jax.jit(lambda: plasticity_from_weights(W, x, x @ W[:-1], terms=[(1, 1, 0), (2, 1, 0), (0, 2, 1)]))()
    assert np.isinf(found.standard_errors[1:, 1, 0]).all()
    assert np.isfinite(found.standard_errors[0, 2, 1])


def test_an_l1_penalty_leaves_a_minimum_of_the_penalised_loss():
    x, W, y = map(np.asarray, jax.jit(trained)(jax.random.key(6)))
    seen = y + SIGMA * np.random.default_rng(7).normal(size=y.shape)
    seen[5:9, 0, 1] = np.nan
    l1, missing = 3e-3, np.isnan(seen)
    observations = 2.0 * int(np.sum(~missing))
    found = jax.jit(lambda: plasticity_from_activity(seen, x, initial=W[0], terms=TERMS, l1=l1))()

    def loss(theta):
        rule, w, residuals = nl.rules.parametric(theta), W[0], []
        for t in range(STEPS):
            residuals.append(x[t] @ w - np.where(missing, 0, seen)[t])
            w = w + rule.change((), {"weight": w}, x[t], x[t] @ w, None)[0]["weight"]
        return jnp.sum(jnp.where(missing, 0, jnp.stack(residuals)) ** 2) / observations

    slope = jax.jit(jax.grad(loss))(found.theta)
    zero = np.array([found.theta[p] == 0 for p in TERMS])
    slopes, signs = (np.array([a[p] for p in TERMS]) for a in (slope, np.sign(found.theta)))
    assert zero.any()
    assert not zero[:2].any()  # those of Oja's rule
    np.testing.assert_allclose(slopes[~zero], -l1 * signs[~zero], rtol=1e-3)
    assert np.all(np.abs(slopes[zero]) < l1)
    assert np.isnan([found.standard_errors[p] for p in TERMS]).all()


@pytest.mark.parametrize(("dtype", "fit_initial"), [(int, False), (jnp.bfloat16, True), (np.uint8, False)])
def test_arrays_of_any_dtype_are_fitted(dtype, fit_initial):
    """Those of integers neither wrap nor fail, and lists are arrays."""
    rng = np.random.default_rng(8)
    x, y = (rng.integers(0, 20, (STEPS, 1, size)).astype(dtype) for size in (INPUTS, UNITS))
    W = rng.integers(0, 20, (STEPS + 1, INPUTS, UNITS)).astype(dtype)
    terms = [(1, 0, 0), (0, 1, 0)]

    @jax.jit
    def fitted(W, x, y, initial=None):
        initial = [[1] * UNITS] * INPUTS if initial is None else initial
        settings = {"terms": terms, "fit_initial": fit_initial, "num_steps": 2}
        return [
            plasticity_from_weights(W, x, y, terms=[(2, 1, 0), (0, 2, 1)]).theta,
            plasticity_from_readings(W, x, initial=initial, **settings).theta,
            plasticity_from_activity(y, x, initial=initial, **settings).theta,
        ]

    found, expected = fitted(W, x, y), fitted(*(a.astype(np.float64) for a in (W, x, y)), np.ones((INPUTS, UNITS)))
    for ours, theirs in zip(found, expected, strict=True):
        assert np.isfinite(theirs).all()
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-7)


def test_bad_input_is_refused():
    x, W, y = np.ones((4, 1, 3)), np.ones((5, 3, 2)), np.ones((4, 1, 2))
    with pytest.raises(ValueError, match=r"pre must be of shape \[steps, examples, inputs\].*\(5, 1, 3\)"):
        plasticity_from_weights(W, np.ones((5, 1, 3)), y)
    with pytest.raises(ValueError, match="24 observations of 27 unknowns: observe more steps, or name fewer terms"):
        plasticity_from_weights(W, x, y)
    y[0, 0, 0] = np.nan
    few = lambda y: plasticity_from_activity(y, x, initial=W[0], terms=ALL_TERMS[:7], num_steps=1)
    with pytest.raises(ValueError, match="7 observations of 7 unknowns"):
        few(y)
    assert np.isnan(jax.jit(few)(y).noise)  # whose values are unknown to it
    with pytest.raises(ValueError, match=r"terms must name each term once.*\(1, 1, 3\)"):
        plasticity_from_weights(W, x, y, terms=[(1, 1, 3)])
    with pytest.raises(ValueError, match="activity must be of shape"):
        plasticity_from_activity(y[:, 0], x, initial=W[0])
    with pytest.raises(ValueError, match=r"initial must be of shape \[inputs, units\], \(3, 2\), got \(2, 3\)"):
        plasticity_from_activity(y, x, initial=W[0].T)
    with pytest.raises(ValueError, match="l1 must be"):
        plasticity_from_activity(y, x, initial=W[0], terms=TERMS, l1=-1.0)
    with pytest.raises(ValueError, match="initial must be of the shape of one reading"):
        plasticity_from_readings(W, x, initial=W)
