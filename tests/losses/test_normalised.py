import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nl_jax import losses

X = np.array([[0.5, 1.5, 0.7], [2.0, 0.1, 3.0]])
TARGETS = np.array([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])


@functools.cache
def _with_derivative(loss):
    return jax.jit(lambda x, t: (loss(x, t), jax.grad(lambda x: loss(x, t).sum())(x)))


@pytest.mark.parametrize("loss", [losses.half_squared_error, losses.p_norm(3), losses.kullback_leibler])
def test_the_derivative_of_a_normalised_loss_is_the_seeds(loss, x64):
    """Seed 003 eq. 13: (∂_i ℓ − C)/X, across the outputs."""
    x, targets = jnp.asarray(X), jnp.asarray(TARGETS)
    total = X.sum(1, keepdims=True)
    value, derivative = _with_derivative(losses.normalised(loss))(x, targets)
    by_share_value, by_share = _with_derivative(loss)(x / total, targets)
    C = np.sum(X * by_share, axis=1, keepdims=True) / total
    np.testing.assert_allclose(value, by_share_value, rtol=1e-12)
    np.testing.assert_allclose(derivative, (by_share - C) / total, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(np.sum(X * derivative, axis=1), 0, atol=1e-14)


def test_normalised_kullback_leibler_is_the_seeds(x64):
    """Seed 003 eq. 16 as printed; the same for any length and sign of x, and 0 at the target's shares."""
    x, targets = jnp.asarray(X), jnp.asarray(TARGETS)
    total = X.sum(1, keepdims=True)
    log = np.log(X / (total * TARGETS))
    L = np.sum(X * log, axis=1, keepdims=True) / total
    f = _with_derivative(losses.normalised_kullback_leibler)
    value, derivative = f(x, targets)
    np.testing.assert_allclose(value, L[:, 0], rtol=1e-12)
    np.testing.assert_allclose(derivative, (log - L) / total, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(f(3 * x, targets)[0], value, rtol=1e-12)
    np.testing.assert_allclose(f(-x, targets)[0], value, rtol=1e-12)
    for found in f(3 * targets, targets):
        np.testing.assert_allclose(found, 0, atol=1e-15)


@pytest.mark.slow
def test_no_shares_are_infinitely_wrong_and_teach_nothing():
    """X = 0, of an ℓ without a derivative at 0 or 1 too; the other example is as ever."""
    x = jnp.array([[0, 0, 0], [1, -1, 0], X[1]], jnp.float32)
    targets = jnp.asarray(TARGETS[[0, 0, 1]], jnp.float32)

    def entropic(x, targets):
        return jnp.sum(x * jnp.log(x / targets) + (1 - x) * jnp.log(1 - x), axis=1)

    for loss in (losses.half_squared_error, losses.kullback_leibler, entropic):
        value, derivative = _with_derivative(losses.normalised(loss))(x, targets)
        assert np.isposinf(value[:2]).all()
        np.testing.assert_array_equal(derivative[:2], 0)
        assert 0 < value[2] < 3
        assert (derivative[2] != 0).all()


def test_negative_shares_are_outside_of_the_divergence():
    x = jnp.array([[0.5, -0.1, 1.0], [0.0, 1.0, 1.0]])
    value, derivative = _with_derivative(losses.normalised_kullback_leibler)(x, jnp.asarray(TARGETS, jnp.float32))
    np.testing.assert_allclose(value, [np.inf, 0.5 * np.log(0.5 / 0.3) + 0.5 * np.log(0.5 / 0.1)], rtol=1e-6)
    assert np.isfinite(derivative).all()
    assert derivative[0, 1] < 0


def test_targets_go_to_the_loss_as_they_are(x64):
    labels, shares = np.array([1, 0]), X / X.sum(1, keepdims=True)
    value = jax.jit(losses.normalised(losses.cross_entropy))(X, labels)
    np.testing.assert_allclose(value, losses.cross_entropy(shares, labels), rtol=1e-12)


def test_a_factory_that_was_not_called_is_refused():
    with pytest.raises(ValueError, match=r"loss must take 2 arguments, got p_norm: .*nl\.losses\.p_norm\(2\)"):
        losses.normalised(losses.p_norm)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_derivative_is_finite_at_any_length(dtype, x64):
    """Seed 003 eq. 16 for sums from 1e-3 to 1e30, just above 1 among them, with shares that are nearly 0."""
    shares = np.array([[0.9, 0.1 - 1e-6, 1e-6], [1 - 2e-6, 1e-6, 1e-6]])
    target = np.array([[0.2, 0.3, 0.5]])
    for total in (1e-3, 1.0, 1.01, 1.1, 1.5, 3.0, 1e10, 1e30):
        x, targets = jnp.asarray(total * shares, dtype), jnp.asarray(np.repeat(target, 2, axis=0), dtype)
        _, derivative = _with_derivative(losses.normalised_kullback_leibler)(x, targets)
        log = np.log(shares / target)
        expected = (log - np.sum(shares * log, axis=1, keepdims=True)) / total
        off = np.abs(np.asarray(derivative) - expected).max(axis=1) / np.abs(expected).max(axis=1)
        assert np.all(off < 100 * float(jnp.finfo(dtype).eps)), total


@pytest.mark.parametrize(("dtype", "length"), [("float16", 2e4), ("float32", 1e38)])
def test_a_sum_beyond_the_largest_number(dtype, length):
    """Shares of ¾ and ¼ whatever their sum."""
    x = length * np.array([[3.0, 1.0]])
    x, targets = jnp.asarray(x, dtype), jnp.full([1, 2], 0.5, dtype)
    assert np.isinf(jnp.sum(x))
    value, derivative = _with_derivative(losses.normalised_kullback_leibler)(x, targets)
    assert value.dtype == derivative.dtype == x.dtype
    epsilon = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(value, 0.75 * np.log(1.5) + 0.25 * np.log(0.5), rtol=8 * epsilon)
