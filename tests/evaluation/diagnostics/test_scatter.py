"""What a random candidate scatters by itself: sizes, quadrature, and probabilities right as often as they say."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

import nl_jax as nl
from nl_jax.evaluation.diagnostics import Trajectory, identify
from nl_jax.evaluation.diagnostics.identify import evidence
from nl_jax.evaluation.diagnostics.scatter import Scatter, scatter, scattered_evidence

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)
NET = nl.mlp([4, 3], activation=nl.activations.identity(), bias=False)
OBJECTIVE = nl.supervised(NET.apply, nl.losses.half_squared_error)
CANDIDATES = {
    "backprop": nl.backprop(OBJECTIVE),
    "weight perturbation": nl.weight_perturbation(OBJECTIVE),
    "node perturbation": nl.node_perturbation(OBJECTIVE),
}
STEPS, SIGMA, FARTHEST, DRAWS = 4, 0.1, 2.5, 100


def test_sizes_of_one_sample_are_those_of_its_projection(x64):
    """(gᵀξ) ξ has c = λ/⟨λ⟩ = (gᵀξ)²/‖g‖²; of independent normal weights λ hardly varies."""
    g = np.linspace(0.5, 2, 150)
    xi = np.random.default_rng(0).normal(size=(20_000, 150))
    of = jax.jit(scatter)
    found = jax.device_get(of((xi @ g)[:, None] * xi))
    sizes = (xi @ g)[:64] ** 2 / np.sum(g**2)
    np.testing.assert_allclose(found.along, sizes, rtol=0.3, atol=0.1)
    np.testing.assert_allclose(found.spread, sizes, rtol=0.5, atol=0.1)
    assert np.std(of(g[None] + xi).spread) < 0.05 < np.std(found.spread)


def made_up():
    """Two steps of two weights, in three mixtures."""
    rng = np.random.default_rng(0)
    d = rng.normal(size=(2, 2))
    sizes = rng.uniform(0.5, 1.5, (2, 2, 3))
    return d, Scatter(rng.normal(size=(2, 2)), rng.uniform(0.2, 0.5, (2, 2)), *np.moveaxis(sizes, 1, 0))


def density(eta, sigma, d, g):
    """∏_t mean over j of N(d_t; η c_j m_t, η² λ_j v_t + σ²), by scipy."""
    total = 1.0
    for t in range(len(d)):
        scale = np.sqrt(eta**2 * g.spread[t][:, None] * g.variance[t][None] + sigma**2)
        of_each = scipy.stats.norm.pdf(d[t][None], eta * g.along[t][:, None] * g.mean[t][None], scale)
        total *= np.mean(np.prod(of_each, axis=1))
    return total


def test_evidence_is_the_integral(x64):
    """Over A = η L, and with prior 1/σ over σ; with the constants of rules that are not random."""
    d, g = made_up()
    arrays = jax.tree.map(jnp.asarray, (d, g))
    L, n = float(jnp.sqrt(arrays[1].power)), jnp.asarray(4.0)
    sigma = 0.3
    expected = scipy.integrate.quad(lambda A: density(A / L, sigma, d, g), 0, 40, limit=200)[0]
    constant = (2 * np.pi * sigma**2) ** 2 / (np.sqrt(2 * np.pi) * sigma)
    of_scatter = jax.jit(scattered_evidence)
    found, rate = of_scatter(arrays[0], n, arrays[1], jnp.asarray(sigma))
    np.testing.assert_allclose(found, np.log(expected * constant), atol=0.01)
    etas = np.geomspace(0.01, 10, 2000)
    best = etas[np.argmax([density(eta, sigma, d, g) for eta in etas])]
    np.testing.assert_allclose(rate, best, rtol=0.05)
    gone = arrays[1]._replace(variance=1e-9 * arrays[1].variance, along=jnp.ones((2, 3)))
    a = jnp.vdot(arrays[0], gone.mean) / jnp.linalg.norm(gone.mean)
    for sigma in (0.3, None):  # without scatter the closed form
        known = None if sigma is None else jnp.asarray(sigma)
        closed = evidence(jnp.vdot(*[arrays[0]] * 2), a, n, known)
        np.testing.assert_allclose(of_scatter(arrays[0], n, gone, known)[0], closed, atol=0.03)


def simulated(key):
    """A rule drawn from the prior moved the weights by A on average: noisy readings, and which rule it was."""
    keys = jax.random.split(key, 6)
    W = 0.7 * jax.random.normal(keys[0], (STEPS, 4, 3))
    batch = jax.random.normal(keys[1], (STEPS, 5, 4)), jax.random.normal(keys[2], (STEPS, 5, 3))
    which = jax.random.randint(keys[3], (), 0, len(CANDIDATES))
    observed = jax.random.bernoulli(keys[4], 0.8, W.shape)

    def estimates(estimator, key):
        def step(key, W, batch):
            one = lambda k: estimator.estimate(k, (), {"output": {"weight": W}}, batch)[0]["output"]["weight"]
            return jax.vmap(one)(jax.random.split(key, 60))

        return jax.vmap(step)(jax.random.split(key, STEPS), W, batch)

    drawn = jnp.stack([estimates(one, keys[5]) for one in CANDIDATES.values()])[which]
    drawn = jnp.where(observed[:, None], drawn, 0)
    power = jnp.sum(drawn**2) / drawn.shape[1]
    noise_key, size_key = jax.random.split(keys[5])
    A = FARTHEST * jax.random.uniform(size_key)
    change = -A * drawn[:, 0] / jnp.sqrt(power) + SIGMA * jax.random.normal(noise_key, W.shape)
    change = jnp.where(observed, change, jnp.nan)
    tree = lambda x: {"output": {"weight": x}}
    return Trajectory(tree(W), batch, tree(change), tree(observed)), which


@functools.cache
def cases(num_samples, count=400):
    def case(key):
        trajectory, which = simulated(key)
        found = identify(trajectory, CANDIDATES, jax.random.fold_in(key, 1), noise=SIGMA, num_samples=num_samples)
        return jnp.stack(list(found.posterior.values())), which

    run = jax.jit(lambda keys: jax.lax.map(case, keys, batch_size=50))
    return jax.tree.map(np.asarray, run(jax.random.split(jax.random.key(1), count)))


def off(posterior, which, low, high):
    """How far the fraction right is from the mean probability of candidates given `low` to `high`, in its errors."""
    right = np.arange(posterior.shape[1])[None] == which[:, None]
    given = (posterior >= low) & (posterior < high)
    assert given.sum() > 30
    p = posterior[given]
    return (np.sum(right[given]) - np.sum(p)) / np.sqrt(np.sum(p * (1 - p)))


def test_random_rules_are_found_as_often_as_stated():
    posterior, which = cases(DRAWS)
    assert max(abs(off(posterior, which, *bounds)) for bounds in [(0.02, 0.2), (0.2, 0.5), (0.5, 0.8), (0.8, 0.97)]) < 4
    assert np.mean(posterior.argmax(axis=1) == which) > 0.6


def test_by_single_estimates_random_rules_are_missed():
    """The twin without scatter: what it holds for improbable is true far more often."""
    posterior, which = cases(1)
    assert off(posterior, which, 0.001, 0.2) > 6
    assert np.mean(posterior.argmax(axis=1) == which) < 0.6


def test_rules_that_are_not_random_keep_their_closed_form():
    """More estimates of them change nothing."""
    trajectory, _ = jax.jit(simulated)(jax.random.key(3))
    fixed = {"backprop": CANDIDATES["backprop"], "hebb": _hebb()}
    run = jax.jit(lambda trajectory: [identify(trajectory, fixed, KEY, num_samples=count) for count in (1, 3)])
    one, several = run(trajectory)
    for field in ("log_evidence", "rate"):
        for name in fixed:
            np.testing.assert_allclose(getattr(one, field)[name], getattr(several, field)[name], rtol=1e-4, atol=1e-5)


def _hebb():
    rule = nl.local_learning(NET.apply, nl.rules.hebb())
    return rule._replace(estimate=lambda key, state, params, batch: rule.estimate(key, state, params, batch[0]))
