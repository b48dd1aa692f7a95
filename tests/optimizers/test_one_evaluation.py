"""The seed's conjugate gradient without a line search."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.functions import rosenbrock
from nl_jax import optimizers

START = (-1.2, 1.0, -1.2, 1.0)


def test_to_the_letter(x64):
    """p_n = r_n + r_n²/(z_{n−1} − r_n p_{n−1}) p_{n−1} or p_{n−1}; x ← x + α sgn(pᵀr) p (seed 003 §3.2)."""
    gradients = np.random.default_rng(2).normal(size=(7, 3))
    for renew_every in (1, 3):
        cg = optimizers.one_evaluation_conjugate_gradient(0.1, clip=None, renew_every=renew_every)
        state = cg.init(jnp.zeros(3))
        p, z, seen = np.zeros(3), 0.0, []
        for n, r in enumerate(-gradients):
            updates, state = cg.update(jnp.asarray(-r), state)
            if n == 0:
                p = r
            elif n % renew_every == 0:
                p = r + r @ r / (z - r @ p) * p
            z = p @ r
            seen.append(np.sign(z))
            np.testing.assert_allclose(updates, 0.1 * np.sign(z) * p, rtol=1e-12)
        assert set(seen) == {-1.0, 1.0}


def test_beta_is_dai_and_yuan_s(x64):
    r_old, r, p = np.random.default_rng(3).normal(size=(3, 4))
    state = optimizers.scale_by_one_evaluation(clip=None).init(jnp.zeros(4))
    state = state._replace(step=jnp.int32(1), direction=jnp.asarray(p), projection=jnp.asarray(p @ r_old))
    _, state = optimizers.scale_by_one_evaluation(clip=None).update(jnp.asarray(-r), state)
    beta = optimizers.dai_yuan(*map(jnp.asarray, (-r, -r_old, p)))
    np.testing.assert_allclose(state.direction, r + beta * p, rtol=1e-12)


def test_clipped_it_goes_far_below_gradient_descent_and_unclipped_it_diverges(x64):
    """On Rosenbrock's function in four dimensions, 3,000 steps at three rates."""
    rates = jnp.array([3e-4, 1e-4, 3e-5])

    def ends(make):
        def run(rate):
            optimizer = make(rate)

            def step(at, _):
                x, state = at
                updates, state = optimizer.update(jax.grad(rosenbrock)(x), state)
                return (x + updates, state), None

            x = jnp.array(START)
            return rosenbrock(jax.lax.scan(step, (x, optimizer.init(x)), length=3000)[0][0])

        return np.asarray(jax.jit(jax.vmap(run))(rates))

    descent = ends(optax.sgd)
    clipped = ends(optimizers.one_evaluation_conjugate_gradient)
    literal = ends(lambda rate: optimizers.one_evaluation_conjugate_gradient(rate, clip=None))
    assert np.all(clipped < 1e-3 * descent)
    assert np.all(~(literal < 1e3))


def test_bad_settings():
    for clip in ((1.0, 0.0), 1.0, (None, 1.0), (0.0, 0.5, 1.0)):
        with pytest.raises(ValueError, match=r"clip must be \(least, largest\) or None for the literal formula, got"):
            optimizers.one_evaluation_conjugate_gradient(0.1, clip=clip)
    with pytest.raises(ValueError, match="renew_every must be a whole number of at least 1, got 0"):
        optimizers.one_evaluation_conjugate_gradient(0.1, renew_every=0)
