"""What the rules converge to, beside numpy's eigenvectors and scikit-learn's principal components."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from nl_jax import rules
from nl_jax.networks.connections import lateral_dense
from nl_jax.rules.rule import mean_outer, unsupervised

pytestmark = pytest.mark.usefixtures("x64")

UNITS = 3


def random_inputs():
    """Five inputs of well separated variances, turned at random."""
    rng = np.random.default_rng(0)
    turn, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    x = rng.normal(size=(60, 5)) * np.sqrt([1.0, 0.7, 0.4, 0.2, 0.1]) @ turn
    return x - x.mean(axis=0)


def digits():
    x = load_digits().data / 16
    return x - x.mean(axis=0)


DATA = {"random": random_inputs, "digits": digits}


@functools.cache
def principal(data):
    """The first eigenvectors of the covariance, in order, as columns."""
    x = DATA[data]()
    _, V = np.linalg.eigh(x.T @ x / len(x))
    return V[:, ::-1][:, :UNITS]


def linear(params, x):
    return x @ params["weight"]


LATERAL = lateral_dense(bias=False).join((1,), (UNITS,)).apply


def taught(rule, data, steps, connection=linear):
    """A linear layer after `steps` full-batch steps of size ½ from a random start, without C at first."""
    x = jnp.asarray(DATA[data]())
    params = {"weight": jax.random.normal(jax.random.key(0), (x.shape[1], UNITS)) / 8}
    if connection is not linear:
        params["lateral"] = jnp.zeros((UNITS, UNITS))

    @jax.jit
    def walk(x, params):
        # Linear units see the inputs by their second moment alone; x = C^{1/2} has it in few rows.
        lam, V = jnp.linalg.eigh(x.T @ x / len(x))
        root = jnp.sqrt(len(lam) * jnp.maximum(lam, 0))[:, None] * V.T

        def step(_, params):
            change, _ = rule.change((), params, root, connection(params, root), None)
            return params | {name: params[name] + 0.5 * delta for name, delta in change.items()}

        return jax.lax.fori_loop(0, steps, step, params)

    return walk(x, params)


def cosines(W, V):
    """Of columns with columns, whatever their sign."""
    W = np.asarray(W)
    return np.abs((W / np.linalg.norm(W, axis=0)).T @ V)


@pytest.mark.slow
@pytest.mark.parametrize("data", DATA)
def test_hebb_grows_without_bound_along_the_first_eigenvector(data):
    before, after = (taught(rules.hebb(), data, steps)["weight"] for steps in (800, 801))
    np.testing.assert_allclose(cosines(after, principal(data)[:, :1]), 1, atol=1e-9)
    x = DATA[data]()
    largest = np.linalg.eigvalsh(x.T @ x / len(x))[-1]
    np.testing.assert_allclose(after, (1 + 0.5 * largest) * before, atol=1e-9 * np.abs(after).max())
    assert np.linalg.norm(after) > 1e50


@pytest.mark.parametrize("data", DATA)
def test_oja_finds_the_first_eigenvector(data):
    W = taught(rules.oja(), data, 1500)["weight"]
    np.testing.assert_allclose(cosines(W, principal(data)[:, :1]), 1, atol=1e-10)
    np.testing.assert_allclose(np.linalg.norm(W, axis=0), 1, atol=1e-10)


@pytest.mark.parametrize("data", DATA)
def test_subspace_finds_the_principal_subspace_in_no_order(data):
    W, V = np.asarray(taught(rules.subspace(), data, 1500)["weight"]), principal(data)
    np.testing.assert_allclose(W @ W.T, V @ V.T, atol=1e-10)
    np.testing.assert_allclose(W.T @ W, np.eye(UNITS), atol=1e-10)
    assert np.diag(cosines(W, V)).min() < 0.9


@pytest.mark.parametrize("data", DATA)
def test_sanger_finds_the_eigenvectors_in_order(data):
    W = taught(rules.sanger(), data, 3000)["weight"]
    np.testing.assert_allclose(cosines(W, principal(data)), np.eye(UNITS), atol=1e-8)
    components = PCA(UNITS).fit(DATA[data]()).components_
    np.testing.assert_allclose(cosines(W, components.T), np.eye(UNITS), atol=1e-8)
    np.testing.assert_allclose(np.linalg.norm(W, axis=0), 1, atol=1e-8)


@pytest.mark.parametrize("data", DATA)
def test_apex_finds_them_too_and_then_inhibits_nothing(data):
    params = taught(rules.apex(), data, 3000, LATERAL)
    np.testing.assert_allclose(cosines(params["weight"], principal(data)), np.eye(UNITS), atol=1e-8)
    np.testing.assert_allclose(params["lateral"], 0, atol=1e-8)


def sanger_unmasked(params, x, y):
    return {"weight": mean_outer(x, y) - params["weight"] @ mean_outer(y, y)}


def sanger_upside_down(params, x, y):
    return {"weight": mean_outer(x, y) - params["weight"] @ jnp.tril(mean_outer(y, y))}


@pytest.mark.parametrize("wrong", [sanger_unmasked, sanger_upside_down])
def test_without_the_triangle_there_is_no_order(wrong):
    W = taught(unsupervised(wrong), "random", 3000)["weight"]
    assert np.diag(cosines(W, principal("random"))).min() < 0.9
