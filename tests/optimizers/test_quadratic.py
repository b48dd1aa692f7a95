"""Linear conjugate gradients (seed 003 eq. 22–34)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nl_jax as nl
from nl_jax.optimizers import minimum_of_quadratic
from tests.optimizers.test_conjugate_gradient import X0, A, B, N

pytestmark = pytest.mark.slow


def quadratic(x):
    flat = jnp.concatenate([jnp.ravel(x["a"]), x["b"]])
    return 0.5 * flat @ A @ flat - B @ flat + 3.0


def tree(x):
    return {"a": jnp.asarray(x[:4]).reshape(2, 2), "b": jnp.asarray(x[4:])}


def flat(x):
    return np.concatenate([np.ravel(x["a"]), x["b"]])


def test_n_steps_orthogonal_residuals_conjugate_directions(x64):
    after = lambda k: minimum_of_quadratic(quadratic, tree(X0), tol=0.0, max_steps=k)
    x = np.array([X0, *map(flat, jax.jit(lambda: [after(k) for k in range(1, N + 1)])())])
    np.testing.assert_allclose(x[-1], np.linalg.solve(A, B), rtol=1e-11, atol=1e-12)
    r, p = B - x[:-1] @ A, np.diff(x, axis=0)  # p_n up to α_n
    lengths = np.linalg.norm(r, axis=1)
    np.testing.assert_allclose(r @ r.T / np.outer(lengths, lengths), np.eye(N), atol=1e-10)
    energies = p @ A @ p.T
    np.testing.assert_allclose(energies, np.diag(np.diag(energies)), atol=1e-10 * energies.max())
    alpha = (r * r).sum(axis=1)[0] / (r[0] @ A @ r[0])  # eq. 34, p_0 = r_0
    np.testing.assert_allclose(p[0], alpha * r[0], rtol=1e-11)
    assert np.linalg.norm(x[-2] - x[-1]) > 1e-3  # n − 1 steps are not enough


def test_a_linear_network_in_one_call(x64):
    """The mean half squared error of a linear network is quadratic: its least-squares solution."""
    network = nl.mlp([3, 2], activation=nl.activations.identity())
    objective = nl.supervised(network.apply, nl.losses.half_squared_error)
    x, y = (np.random.default_rng(0).normal(size=(9, 5))[:, part] for part in (slice(3), slice(3, 5)))
    start = jax.jit(network.init, static_argnums=1)(jax.random.key(2), jnp.float64)
    found = jax.jit(lambda w: minimum_of_quadratic(lambda w: jnp.mean(objective(w, (x, y))), w, tol=1e-14))(start)
    exact = np.linalg.lstsq(np.column_stack([x, np.ones(9)]), np.asarray(y))[0]
    np.testing.assert_allclose(np.vstack([found["output"]["weight"], found["output"]["bias"]]), exact, rtol=1e-9)


def test_bad_settings():
    for settings, message in (({"tol": -1.0}, "tol must be a number of at least 0"), ({"max_steps": 0}, "max_steps")):
        with pytest.raises(ValueError, match=message):
            minimum_of_quadratic(lambda x: jnp.sum(x**2), jnp.ones(2), **settings)
    with pytest.raises(ValueError, match="not a floating-point array"):
        minimum_of_quadratic(lambda x: jnp.sum(x**2), jnp.ones(2, int))


def test_half_precision_is_solved_in_single():
    """r² is beyond float16."""
    start = jnp.array([300.0, -300.0], jnp.float16)
    found = minimum_of_quadratic(lambda x: jnp.sum(jnp.array([1.0, 2.0]) * (x - 3) ** 2), start)
    assert found.dtype == jnp.float16
    np.testing.assert_allclose(found, 3, rtol=1e-3)


def test_leaves_of_two_dtypes(x64):
    start = {"a": jnp.zeros(2, jnp.float32), "b": jnp.zeros(3)}
    found = minimum_of_quadratic(lambda x: jnp.sum((x["a"] - 1) ** 2) + 2 * jnp.sum((x["b"] - x["a"][0]) ** 2), start)
    assert [leaf.dtype for leaf in jax.tree.leaves(found)] == [jnp.float32, jnp.float64]
    np.testing.assert_allclose(np.concatenate(jax.tree.leaves(found)), 1, rtol=1e-6)


def test_no_gradient_no_minimum():
    found = minimum_of_quadratic(
        lambda x: jnp.sum(x["a"] ** 2) + jnp.nan * x["b"], {"a": jnp.ones(2), "b": jnp.ones([])}
    )
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(found))
