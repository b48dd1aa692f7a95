import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nl_jax import losses

D = np.array([-2.0, -0.3, 0.0, 0.5, 3.0])
TARGETS = np.array([0.5, -0.25, 1.0, 2.0, 0.0])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _derivatives(term, order, x, *targets):
    """Value and derivatives of a function of one number, at many."""
    functions = [term]
    for _ in range(order):
        functions.append(jax.grad(functions[-1]))
    return [jax.vmap(f)(x, *targets) for f in functions]


def _term(loss):
    return lambda x, target: loss(x.reshape(1), target.reshape(1))[0]


@pytest.mark.parametrize("p", [1, 1.5, 2, 3])
def test_p_norm_is_the_seeds_with_its_derivatives(p, x64):
    """Seed 003 eq. 14, and autodiff of |d|^p/p to the third order where that exists."""
    value, first, second, third = map(np.asarray, _derivatives(_term(losses.p_norm(p)), 3, D + TARGETS, TARGETS))
    np.testing.assert_allclose(value, np.abs(D) ** p / p, rtol=1e-12)
    np.testing.assert_allclose(first, np.sign(D) * np.abs(D) ** (p - 1), rtol=1e-12)
    plain = map(np.asarray, _derivatives(lambda d: jnp.abs(d) ** float(p) / p, 3, D))
    for ours, autodiff in zip((value, first, second, third), plain, strict=True):
        np.testing.assert_allclose(ours[D != 0], autodiff[D != 0], rtol=1e-11, atol=1e-14)
    np.testing.assert_array_equal(second[D == 0], 1 if p == 2 else 0)  # autodiff has 0 for p = 2 and NaN below


def test_p_norm_sums_over_all_but_the_first_axis(x64):
    one, two, half = losses.p_norm(1), losses.p_norm(2), losses.half_squared_error
    run = jax.jit(lambda *at: (one(*at), two(*at), half(*at)))
    of_one, of_two, expected = run(np.arange(12.0).reshape(2, 3, 2), np.ones((2, 3, 2)))
    np.testing.assert_allclose(of_one, [11, 45])
    np.testing.assert_allclose(of_two, expected)


def test_a_curvature_at_the_target_meets_no_infinity():
    """A Hessian times a vector that leaves the outputs at their targets alone: 0 times infinity would be NaN."""
    slope = jax.grad(lambda x: losses.p_norm(1.5)(x, jnp.zeros((1, 2))).sum())
    product = jax.jit(lambda x: jax.jvp(slope, (x,), (x,))[1])
    np.testing.assert_allclose(product(np.array([[0.0, 1.0]], np.float32)), [[0.0, 0.5]])


def test_a_constant_slope_has_no_curvature_however_near_the_target():
    """Not 0 times an overflow, at half precision's smallest distance."""
    near, target = jnp.array([6e-8], jnp.float16), jnp.zeros(1, jnp.float16)
    for p in (1, 2):
        np.testing.assert_array_equal(_derivatives(_term(losses.p_norm(p)), p + 1, near, target)[-1], 0)


@pytest.mark.parametrize("p", [0.5, 0, -1, np.inf, np.nan, "2", True])
def test_a_p_of_no_norm_is_refused(p):
    with pytest.raises(ValueError, match=r"p must be .*got"):
        losses.p_norm(p)


def test_half_squared_error(x64):
    x, target = np.arange(12.0).reshape(2, 3, 2), np.ones((2, 3, 2))
    loss = losses.half_squared_error
    run = jax.jit(lambda x, t: (loss(x, t), jax.grad(lambda x: loss(x, t).sum())(x), loss(t, t)))
    value, derivative, none = run(x, target)
    np.testing.assert_allclose(value, ((x - 1) ** 2).reshape(2, -1).sum(1) / 2)
    np.testing.assert_allclose(derivative, x - target)
    np.testing.assert_array_equal(none, 0)
