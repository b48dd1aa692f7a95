import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from nl_jax import losses

X = np.array([0.05, 0.3, 0.5, 0.97])
TARGETS = np.array([0.9, 0.3, 0.2, 0.999])


def _alone(loss):
    """The loss as a function of one output and one target, with its derivatives by the output, at many."""

    def one(x, target):
        return loss(x.reshape(1), target.reshape(1))[0]

    slope = jax.grad(one)
    return jax.jit(lambda *at: tuple(jax.vmap(f)(*at) for f in (one, slope, jax.grad(slope), jax.grad(one, argnums=1))))


KL, BINARY = _alone(losses.kullback_leibler), _alone(losses.binary_kullback_leibler)


def test_kullback_leibler_is_the_seeds_with_its_derivatives(x64):
    """Seed 003 eq. 15."""
    value, by_output, second, by_target = KL(X, TARGETS)
    np.testing.assert_allclose(value, X * np.log(X / TARGETS), rtol=1e-12)
    np.testing.assert_allclose(by_output, np.log(X / TARGETS) + 1, rtol=1e-12)
    np.testing.assert_allclose(second, 1 / X, rtol=1e-12)
    np.testing.assert_allclose(by_target, -X / TARGETS, rtol=1e-12)
    summed = jax.jit(losses.kullback_leibler)(X.reshape(2, 2), TARGETS.reshape(2, 2))
    np.testing.assert_allclose(np.sum(summed), np.sum(value))


def test_binary_kullback_leibler_is_the_seeds_with_its_derivatives(x64):
    """Seed 003 eq. 17, 18: at x = a nothing is lost, nothing slopes, and the curvature is positive."""
    value, slope, curvature, _ = BINARY(X, TARGETS)
    x, a = X, TARGETS
    np.testing.assert_allclose(value, x * np.log(x / a) + (1 - x) * np.log((1 - x) / (1 - a)), rtol=1e-11, atol=1e-15)
    np.testing.assert_allclose(slope, np.log(x / a) - np.log((1 - x) / (1 - a)), rtol=1e-11, atol=1e-15)
    np.testing.assert_allclose(curvature, 1 / x + 1 / (1 - x), rtol=1e-11)
    np.testing.assert_array_equal([value[1], slope[1]], 0)


@pytest.mark.slow
def test_forward_and_reverse_mode_agree_with_differences(x64):
    for loss in (losses.kullback_leibler, losses.binary_kullback_leibler):
        check_grads(jax.jit(loss), (jnp.asarray(X)[None], jnp.asarray(TARGETS)[None]), order=1, eps=1e-6, rtol=1e-6)


# Output, target, loss: 0 log 0 = 0, and +∞ outside the domain.
EDGES = np.array(
    [
        (0, 0.5, 0),
        (0, 0, 0),
        (1, 1, 0),
        (0.5, 0, np.inf),
        (-0.1, 0.5, np.inf),
        (-0.1, 0, np.inf),
        (0.5, -0.1, np.inf),
        (0, -0.1, np.inf),
        (1e30, 0, np.inf),
    ]
)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_edges_have_a_value_and_a_finite_derivative(dtype):
    x, targets, expected = EDGES.T.astype(dtype)
    value, by_output, second, by_target = map(np.asarray, KL(x, targets))
    np.testing.assert_array_equal(value, expected)
    assert all(np.isfinite(d.astype(np.float32)).all() for d in (by_output, second, by_target))
    tiny = float(jnp.finfo(dtype).tiny)
    x, targets = np.asarray(x, np.float64), np.asarray(targets, np.float64)
    slope = np.log(np.maximum(x, tiny) / np.maximum(targets, tiny)) + np.where(x < 0, -1, 1)
    np.testing.assert_allclose(by_output.astype(np.float32), slope, rtol=2 * float(jnp.finfo(dtype).eps))
    assert (by_output[x < 0] < 0).all()  # a step against it leads back
    assert (by_output[(targets == 0) & (x > 0)] > 0).all()


def test_binary_edges():
    inside = [(0, 0, 0), (1, 1, 0), (0, 0.5, np.log(2)), (1, 0.5, np.log(2))]
    outside = [(0.5, 0), (0.5, 1), (-0.1, 0.5), (1.1, 0.5), (0.5, 1.1), (-0.1, 0), (1.1, 1)]
    edges = [*inside, *((x, a, np.inf) for x, a in outside)]
    x, targets, expected = np.array(edges, np.float32).T
    value, slope, _, _ = BINARY(x, targets)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert np.isfinite(slope).all()
    # Down the slope lies the target, or for a target outside the nearest edge.
    np.testing.assert_array_equal(np.sign(slope), np.sign(x - np.clip(targets, 0, 1)))


def test_a_nan_is_a_nan():
    nan = np.nan
    for x, target in [(nan, 0.5), (0.5, nan), (nan, -1), (-1, nan), (nan, nan)]:
        value, by_output, _, _ = KL(np.full(9, x, np.float32), np.full(9, target, np.float32))
        assert np.isnan(value).all()
        assert np.isnan(by_output).all()


def test_a_derivative_that_is_not_asked_for_does_no_harm():
    """An output against a target of 0 has an endless derivative by the target, which nobody moves."""
    zero = np.zeros((1, 1), np.float32)
    tangent = jax.jit(lambda x: jax.jvp(lambda x: losses.kullback_leibler(x, zero), (x,), (jnp.ones((1, 1)),))[1])
    assert np.isfinite(tangent(np.full((1, 1), 1e30, np.float32))).all()
