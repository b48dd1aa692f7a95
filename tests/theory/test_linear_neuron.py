"""The linear neuron's closed forms against autodiff, actual descent and many random datasets."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nl_jax as nl
from nl_jax.theory import linear_neuron as neuron

REGIMES = {"N > D": (7, 4), "N < D": (4, 7)}
regimes = pytest.mark.parametrize(("N", "D"), REGIMES.values(), ids=REGIMES)


# Compiled once for each shape, for all tests.
hessian, covariance, minimiser, training_error, limit_of = (
    jax.jit(f)
    for f in (neuron.hessian, neuron.covariance, neuron.minimiser, neuron.training_error, neuron.gradient_descent_limit)
)


def data(N: int, D: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs, targets with noise, and a start."""
    rng = np.random.default_rng(3)
    return rng.normal(size=(N, D)), rng.normal(size=N), rng.normal(size=D)


def spectrum_bound(x) -> float:
    return float(np.linalg.eigvalsh(hessian(x))[-1])


@regimes
def test_hessian_is_the_covariance_up_to_the_factor_of_the_loss(N, D, x64):
    """(2/N) C of the mean of squares, C itself of half their sum: the seed's "= C"."""
    x, y, w = data(N, D)

    def half_sum(w, x, y):
        return jnp.sum(nl.losses.half_squared_error(x @ w, y))

    for ours, loss in ((hessian, neuron.training_error), (covariance, half_sum)):
        np.testing.assert_allclose(ours(x), jax.jit(jax.hessian(loss))(w, x, y), rtol=1e-12, atol=1e-13)


@regimes
def test_rank_of_the_covariance(N, D, x64):
    x, _, _ = data(N, D)
    assert np.linalg.matrix_rank(covariance(x)) == neuron.rank_bound(N, D) == 4
    repeated = np.concatenate([x[:3], x[:3]])
    assert np.linalg.matrix_rank(covariance(repeated)) == 3 < neuron.rank_bound(6, D)


@regimes
def test_minimiser(N, D, x64):
    """It solves C w = Σ y x, is C⁺ Σ y x in both regimes, and interpolates where it can."""
    x, y, start = data(N, D)
    w, C, target = map(np.asarray, (minimiser(x, y), covariance(x), jax.jit(neuron.input_output)(x, y)))
    np.testing.assert_allclose(C @ w, target, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(w, np.linalg.pinv(C, rcond=1e-12) @ target, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(jax.jit(jax.grad(neuron.training_error))(w, x, y), 0, atol=1e-13)
    error = training_error(w, x, y)
    assert error < 1e-25 if N < D else error > 0.05
    elsewhere = np.asarray(limit_of(x, y, start))
    np.testing.assert_allclose(training_error(elsewhere, x, y), error, rtol=1e-10, atol=1e-25)
    if N < D:  # one of infinitely many, and the shortest
        assert np.linalg.norm(w) < np.linalg.norm(elsewhere)
    else:
        np.testing.assert_allclose(elsewhere, w, rtol=1e-10)


@regimes
def test_gradient_descent_is_optax_s(N, D, x64):
    """The closed form after 0, 5 and 40 steps is where `optax.sgd` on L^tr arrives by walking."""
    x, y, start = data(N, D)
    rate = 1.7 / spectrum_bound(x)
    objective = nl.supervised(lambda w, x: x @ w, lambda outputs, targets: (targets - outputs) ** 2)
    learner = nl.learner(nl.backprop(objective), optax.sgd(rate))

    @jax.jit
    def run(x, y, start):
        key = jax.random.key(0)
        step = lambda state, _: (learner.step(key, state, (x, y))[0], state.params)
        walked = jax.lax.scan(step, learner.init(key, start), length=41)[1]
        return walked, [neuron.gradient_descent(x, y, start, rate, steps) for steps in (0, 5, 40)]

    walked, closed = jax.device_get(run(x, y, start))
    for steps, ours in zip((0, 5, 40), closed, strict=True):
        np.testing.assert_allclose(ours, walked[steps], rtol=1e-11, atol=1e-12)
    assert np.linalg.norm(walked[40] - limit_of(x, y, start)) > 1e-6  # still on its way


@regimes
def test_gradient_descent_ends_at_its_limit(N, D, x64):
    """w* + (I − C⁺C) w_0, and from zero the solution of least norm."""
    x, y, start = data(N, D)
    limit = limit_of(x, y, start)
    C = np.asarray(covariance(x))
    kept = start - np.linalg.pinv(C, rcond=1e-12) @ C @ start
    np.testing.assert_allclose(limit, np.asarray(minimiser(x, y)) + kept, rtol=1e-10, atol=1e-12)
    bound = spectrum_bound(x)
    descend = jax.jit(lambda *at: [neuron.gradient_descent(*at, rate / bound, 5000) for rate in (1, 2.1)])
    arrived, diverged = descend(x, y, start)
    np.testing.assert_allclose(arrived, limit, rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(limit_of(x, y, np.zeros(D)), minimiser(x, y), rtol=1e-12)
    assert np.max(np.abs(diverged)) > 1e10


def _excess_errors(N: int, D: int, noise: float, signal: float) -> np.ndarray:
    """(ŵ − w)ᵀ(ŵ − w), the excess error on x ~ N(0, I), of 4000 datasets."""

    @jax.vmap
    def one(key):
        keys = jax.random.split(key, 3)
        w = jax.random.normal(keys[0], (D,))
        w = signal * w / jnp.linalg.norm(w)
        x = jax.random.normal(keys[1], (N, D))
        y = x @ w + noise * jax.random.normal(keys[2], (N,))
        return jnp.sum((neuron.minimiser(x, y) - w) ** 2)

    return np.asarray(jax.jit(one)(jax.random.split(jax.random.key(N), 4000)))


def _asymptotic(N: int, D: int, *, noise: float, signal: float) -> float:
    """The law of N, D → ∞ at fixed N/D: 1 missing in the denominator, a wrong twin for numbers this small."""
    return signal**2 * max(0, 1 - N / D) + noise**2 * min(N, D) / abs(N - D)


@regimes
def test_expected_training_error(N, D, x64):
    """The residuals are the noise outside the span of the inputs: exact for each x, over the noise alone."""
    x, _, w = data(N, D)
    noise = 0.7 * N**0.5 * np.eye(N)  # N draws whose second moment is 0.7² I

    @jax.jit
    @jax.vmap
    def error(epsilon):
        y = x @ w + epsilon
        return neuron.training_error(neuron.minimiser(x, y), x, y)

    expected = neuron.expected_training_error(N, D, noise=0.7)
    np.testing.assert_allclose(np.mean(error(noise)), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.slow
@regimes
def test_expected_excess_error(N, D):
    """Within 5 standard errors of the mean; far enough from N = D for the standard error to be one."""
    N, D = 3 * N, 3 * D
    errors = _excess_errors(N, D, noise=1.5, signal=2.0)
    standard_error = errors.std(ddof=1) / len(errors) ** 0.5
    deviations = {
        law: abs(errors.mean() - law(N, D, noise=1.5, signal=2.0)) / standard_error
        for law in (neuron.expected_excess_error, _asymptotic)
    }
    assert deviations[neuron.expected_excess_error] < 5 < deviations[_asymptotic]


def test_the_peak():
    law = neuron.expected_excess_error
    assert [law(N, 10, noise=1.0, signal=1.0) for N in (9, 10, 11)] == [math.inf] * 3
    assert law(8, 10, noise=1.0, signal=1.0) == pytest.approx(0.2 + 8)
    assert law(12, 10, noise=1.0, signal=1.0) == pytest.approx(10)
    assert [law(N, 10, noise=0.0, signal=2.0) for N in (5, 9, 10, 11)] == pytest.approx([2, 0.4, 0, 0])


def test_bad_input_is_told():
    x, y, start = data(7, 4)
    for function in (neuron.input_output, neuron.minimiser):
        with pytest.raises(ValueError, match=r"x must be of shape \[N, D\] and y of shape \[N\], got \[7, 4\]"):
            function(x, y[:, None])
    with pytest.raises(ValueError, match=r"got \[4\] and \[7\]"):
        neuron.training_error(start, start, y)
    good = {"N": 20, "D": 10, "noise": 1.0, "signal": 1.0}
    for wrong in ({"N": 0}, {"D": 0}, {"noise": -1.0}, {"signal": math.nan}, {"signal": math.inf}):
        (name,) = wrong
        with pytest.raises(ValueError, match=f"{name} must be a finite number of at least"):
            neuron.expected_excess_error(**(good | wrong))
    with pytest.raises(ValueError, match="noise must be a finite number of at least 0, got -1"):
        neuron.expected_training_error(20, 10, noise=-1)


def test_weights_of_other_shapes_and_negative_steps_are_refused():
    x, y, w = jnp.ones([3, 2]), jnp.ones(3), jnp.ones(2)
    with pytest.raises(ValueError, match=r"w must be of shape \[D\] = \[2\], .* got \[2, 1\]"):
        neuron.training_error(w[:, None], x, y)
    for descend in (neuron.gradient_descent_limit, lambda *data: neuron.gradient_descent(*data, 0.1, 1)):
        with pytest.raises(ValueError, match=r"start must be of shape \[D\]"):
            descend(x, y, w[:, None])
    with pytest.raises(ValueError, match="steps must be a whole number of at least 0, got -1"):
        neuron.gradient_descent(x, y, w, 0.1, -1)


def test_descent_stays_where_there_is_no_curvature():
    """Rounding makes some of the curvatures of 0 negative; 10⁹ steps would take those to infinity."""
    x = 3 * np.random.default_rng(0).normal(size=(5, 40)).astype(np.float32)
    y, start = np.ones(5, np.float32), np.ones(40, np.float32)
    curvatures = np.asarray(jax.jit(lambda x: jnp.linalg.eigvalsh(neuron.hessian(x)))(x))
    rate = float(1.9 / curvatures[-1])
    assert rate * curvatures[0] < -1e-7
    arrived = jax.jit(lambda *at: neuron.gradient_descent(*at, rate, 10**9))(x, y, start)
    np.testing.assert_allclose(arrived, limit_of(x, y, start), atol=1e-5)
