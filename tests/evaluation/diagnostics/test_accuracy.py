import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nl_jax as nl
from nl_jax.evaluation.diagnostics import cosine, measure

KEY = jax.random.key(0)


def _noisy(spread, bias=0.0):
    """An estimator whose law is known: g + bias + spread · (exponential − 1) per component."""

    def estimate(key, state, params, batch):
        noise = jax.random.exponential(key, params.shape, params.dtype) - 1
        return 2 * params + bias + spread * noise, state, nl.Info(jnp.float32(0), jnp.int32(1))

    return nl.GradientEstimator(lambda key, params: (), estimate)


def _measured(estimator, reference, params, num_estimates):
    """A measurement by one program, numpy's."""
    run = jax.jit(lambda key, params: measure(estimator, reference, key, params, (), num_estimates=num_estimates))
    return jax.device_get(run(KEY, params))


def test_measures_a_known_law(x64):
    params, spread = np.array([1.0, -2.0, 0.5]), 0.7
    n = 4000
    m = _measured(_noisy(spread, 0.1), _noisy(0.0), params, n)
    np.testing.assert_allclose(m.reference, 2 * params)
    assert np.all(np.abs(m.bias - 0.1) < 5 * m.bias_error)
    assert np.all(np.abs(m.bias) > 5 * m.bias_error)
    np.testing.assert_allclose(m.bias_error, spread / n**0.5, rtol=0.1)
    assert np.all(np.abs(m.variance - spread**2) < 5 * m.variance_error)
    np.testing.assert_allclose(m.variance_error, spread**2 * (8 / n) ** 0.5, rtol=0.3)  # μ₄ = 9 σ⁴
    power = float(np.sum((2 * params) ** 2))
    assert abs(m.relative_bias - 3 * 0.1**2 / power) < 5 * m.relative_bias_error
    np.testing.assert_allclose(m.relative_bias_error, 2 * 3**0.5 * 0.1 * spread / n**0.5 / power, rtol=0.1)
    assert abs(m.relative_variance - 3 * spread**2 / power) < 5 * m.relative_variance_error
    assert abs(m.signal_to_noise - power / (3 * spread**2)) < 5 * m.signal_to_noise_error
    assert 0 < m.cosine < 1
    assert 0 < m.cosine_error < 0.01


@pytest.mark.slow
def test_the_error_of_a_relative_bias_is_its_spread(x64):
    """Over many measurements its mean is the true one, unless the noise's own share is counted as bias."""
    params, spread, n, runs = np.linspace(-1, 1, 20), 0.7, 200, 400
    power = float(np.sum((2 * params) ** 2))
    of = lambda key, bias: measure(_noisy(spread, bias), _noisy(0.0), key, params, (), num_estimates=n)
    run = jax.jit(jax.vmap(of, in_axes=(0, None)))
    for bias in (0.0, 0.03):
        m = jax.device_get(run(jax.random.split(KEY, runs), bias))
        for counted in (0, 1):
            error = m.relative_bias + counted * m.relative_variance / n - 20 * bias**2 / power
            assert 0.9 < np.mean(m.relative_bias_error**2) ** 0.5 / np.std(error) < 1.3
            assert (abs(np.mean(error)) < 5 * np.std(error) / runs**0.5) == (not counted)


def test_a_bias_far_above_the_spread_spoils_nothing():
    m = _measured(_noisy(0.01, 10.0), _noisy(0.0), np.array([1.0, -2.0, 0.5], np.float32), 400)
    np.testing.assert_allclose(m.bias, 10, atol=5e-3)
    np.testing.assert_allclose(m.variance, 1e-4, rtol=0.6)
    np.testing.assert_allclose(m.relative_variance, 3e-4 / 21, rtol=0.4)
    # ‖noise‖² has standard deviation (3 · 8)^½ · 10⁻⁴ per estimate.
    np.testing.assert_allclose(m.relative_variance_error, 24**0.5 * 1e-4 / 21 / 20, rtol=0.5)


def test_half_precision_is_measured_in_single():
    params = jnp.array([1.0, -2.0], jnp.bfloat16)

    def estimate(key, state, params, batch):
        return 1 + jax.random.normal(key, params.shape, params.dtype), state, nl.Info(jnp.float32(0), jnp.int32(1))

    noisy = nl.GradientEstimator(lambda key, params: (), estimate)
    m = _measured(noisy, _noisy(0.0), params, 2000)
    assert np.all(np.abs(np.asarray(m.mean, np.float32) - 1) < 5 * m.bias_error)
    assert np.all(np.abs(m.variance - 1) < 5 * m.variance_error)


def test_the_scale_of_gradients_does_not_matter():
    """Neither fourth powers of small ones underflow nor squares of large ones overflow."""
    params = np.array([1.0, -2.0, 0.5], np.float32)

    def scaled(estimator, scale):
        def estimate(*at):
            grads, *rest = estimator.estimate(*at)
            return jax.tree.map(lambda g: scale * g, grads), *rest

        return estimator._replace(estimate=estimate)

    @jax.jit
    def run(scale):
        return measure(*(scaled(_noisy(spread), scale) for spread in (0.7, 0.0)), KEY, params, (), num_estimates=20)

    one, *others = (jax.device_get(run(np.float32(scale))) for scale in (1, 1e-30, 1e30))
    for scale, other in zip((1e-30, 1e30), others, strict=True):
        for name in one._fields[6:]:
            np.testing.assert_allclose(getattr(other, name), getattr(one, name), rtol=1e-4, err_msg=name)
        for name in ("reference", "mean", "bias", "bias_error"):
            np.testing.assert_allclose(getattr(other, name), scale * getattr(one, name), rtol=1e-4, err_msg=name)


def test_an_exact_estimator_is_exact():
    m = _measured(_noisy(0.0), _noisy(0.0), np.ones(2, np.float32), 3)
    np.testing.assert_array_equal(m.variance, 0)
    np.testing.assert_array_equal(m.bias, 0)
    np.testing.assert_allclose(m.cosine, 1, rtol=1e-6)
    assert m.signal_to_noise == np.inf
    assert m.signal_to_noise_error == 0


def test_as_many_estimates_as_there_are_integers_can_be_measured():
    """The square of their number is none of 32 bits."""
    measured = lambda: nl.diagnostics.measure(
        _noisy(0.0), _noisy(0.0), jax.random.key(0), np.ones(2, np.float32), None, num_estimates=50_000
    )
    assert jax.eval_shape(measured).cosine.shape == ()


def test_a_measurement_is_printed_without_its_trees():
    trees, numbers = ({"w": jnp.zeros(1000)},) * 6, (0.5, 0.01, 0.3, 0.02, 2.0, 0.1, 0.25, 0.0125)
    m = nl.diagnostics.Measurement(*trees, *map(jnp.float32, numbers))
    assert str(m) == (
        "cosine 0.5 ± 0.01, squared relative bias 0.3 ± 0.02, relative variance 2 ± 0.1, signal to noise 0.25 ± 0.0125"
    )
    assert "[0.5 0.5]" in str(m._replace(cosine=jnp.full(2, 0.5)))
    assert str(m._replace(zero_estimates=jnp.int32(3))).endswith("± 0.0125, zero estimates 3")
    jax.jit(lambda x: str(m._replace(cosine=x, zero_estimates=x)) and x)(1.0)  # while tracing too


def _silent(share, broken=False):
    """An estimator that is zero in a share of its estimates, and else exact; or NaN."""

    def estimate(key, state, params, batch):
        off = jax.random.bernoulli(key, share)
        return jnp.where(off, jnp.nan if broken else 0, 2 * params), state, nl.Info(jnp.float32(0), jnp.int32(1))

    return nl.GradientEstimator(lambda key, params: (), estimate)


@pytest.mark.slow
def test_an_estimate_of_zero_counts_as_a_cosine_of_0_and_is_counted():
    n, params = 400, np.array([1.0, -2.0], np.float32)
    m = _measured(_silent(0.25), _noisy(0.0), params, n)
    zero = int(m.zero_estimates)
    assert abs(zero / n - 0.25) < 4 * (0.25 * 0.75 / n) ** 0.5
    np.testing.assert_allclose(m.cosine, 1 - zero / n, rtol=1e-5)  # left out, they would make it 1
    np.testing.assert_allclose(m.cosine_error, (zero * (n - zero) / (n - 1)) ** 0.5 / n, rtol=1e-4)
    assert _measured(_noisy(0.1), _noisy(0.0), params, 9).zero_estimates == 0


@pytest.mark.slow
def test_where_there_is_no_gradient_or_no_estimate_there_is_no_cosine():
    """No 0 in place of a cosine with a gradient of zero, nor of one that failed."""
    for pair in ((_silent(0.5), _silent(1.0)), (_silent(0.5, broken=True), _noisy(0.0))):
        assert np.isnan(_measured(*pair, np.ones(2, np.float32), 9).cosine)


def test_cosine():
    a, b, nothing = ({"x": np.array(x, np.float32)} for x in ([3, 0], [3, 4], [0, 0]))
    run = jax.jit(cosine)
    np.testing.assert_allclose(run(a, b), 0.6, rtol=1e-6)
    assert np.isnan(run(a, nothing))
    long = jnp.ones(100_000, jnp.float16)  # whose square overflows
    np.testing.assert_allclose([run(long, long), run(long, -long)], [1, -1], rtol=1e-5)


@pytest.mark.parametrize("n", [0, 1, 2.5])
def test_needs_two_estimates(n):
    with pytest.raises(ValueError, match="num_estimates must be"):
        measure(_noisy(0.0), _noisy(0.0), KEY, jnp.ones(2), (), num_estimates=n)
