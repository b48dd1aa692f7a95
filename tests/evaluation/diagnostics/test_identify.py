"""The posterior over learning rules is right as often as it says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.integrate

import nl_jax as nl
from nl_jax.evaluation.diagnostics import Trajectory, identify
from nl_jax.evaluation.diagnostics.identify import evidence

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)
NET = nl.mlp([3, 2], activation=nl.activations.identity(), bias=False)
RULES = {"hebb": nl.rules.hebb(), "oja": nl.rules.oja(), "instar": nl.rules.instar()}
CANDIDATES = {name: nl.local_learning(NET.apply, rule) for name, rule in RULES.items()}
SHAPES = (3, 2), (4, 3), (3, 2)
"""Of the weights, a batch and a change."""
STEPS, SIGMA, FARTHEST = 3, 0.2, 2.0


def simulated(key):
    """A rule drawn from the prior that moved the weights by A, its noisy readings, and which rule it was."""
    keys = jax.random.split(key, 6)
    W = 0.7 * jax.random.normal(keys[0], (STEPS, 3, 2))
    x = jax.random.normal(keys[1], (STEPS, 4, 3))
    observed = jax.random.bernoulli(keys[2], 0.6, W.shape)
    changes = jnp.stack(
        [
            jax.vmap(lambda W, x, r=rule: r.change((), {"weight": W}, x, x @ W, None)[0]["weight"])(W, x)
            for rule in RULES.values()
        ]
    )
    which = jax.random.randint(keys[3], (), 0, len(RULES))
    signal = jnp.where(observed, changes[which], 0)
    A = FARTHEST * jax.random.uniform(keys[4])
    change = A * signal / jnp.linalg.norm(signal) + SIGMA * jax.random.normal(keys[5], W.shape)
    change = jnp.where(observed, change, jnp.nan)  # what was not observed must not be looked at
    return Trajectory(
        {"output": {"weight": W}}, x, {"output": {"weight": change}}, {"output": {"weight": observed}}
    ), which


@functools.cache
def cases(noise, count=2000):
    """Posteriors [cases, candidates] and which candidate it was."""

    def case(key):
        trajectory, which = simulated(key)
        return jnp.stack(list(identify(trajectory, CANDIDATES, KEY, noise=noise).posterior.values())), which

    return jax.tree.map(np.asarray, jax.jit(jax.vmap(case))(jax.random.split(jax.random.key(1), count)))


def off(posterior, which, low, high):
    """How far the fraction right is from the mean probability of candidates given `low` to `high`, in its errors."""
    right = np.arange(posterior.shape[1])[None] == which[:, None]
    given = (posterior >= low) & (posterior < high)
    assert given.sum() > 100
    p = posterior[given]
    return (np.sum(right[given]) - np.sum(p)) / np.sqrt(np.sum(p * (1 - p)))


BINS = [(0.05, 0.3), (0.3, 0.6), (0.6, 0.85), (0.85, 0.95)]


@pytest.mark.parametrize("noise", [SIGMA, None], ids=["noise given", "noise open"])
def test_of_cases_given_90_percent_90_percent_are_right(noise):
    assert max(abs(off(*cases(noise), *bounds)) for bounds in BINS) < 4


def test_understated_noise_is_overconfident():
    assert off(*cases(SIGMA / 3), 0.85, 0.95) < -4


def test_evidence_is_the_integral(x64):
    power, n, sigma = 7.0, 6.0, 0.8

    def density(A, sigma, a):
        return np.exp(-(power - 2 * A * a + A**2) / (2 * sigma**2))

    def known(a):
        return scipy.integrate.quad(density, 0, np.inf, (sigma, a))[0]

    def unknown(a):
        return scipy.integrate.dblquad(lambda A, u: density(A, np.exp(u), a) * np.exp(-n * u), -5, 6, 0, 60)[0]

    for integral, given in ((known, np.asarray(sigma)), (unknown, None)):
        of = jax.jit(lambda power, a, n, given=given: evidence(power, a, n, given))
        logs = [np.log(integral(a)) - of(np.asarray(power), np.asarray(a), np.asarray(n)) for a in (-1.5, 0.3, 2.2)]
        np.testing.assert_allclose(logs, logs[0], rtol=1e-4)  # up to a number that is the same for all


def test_a_prior_multiplies_the_evidence():
    priors = None, {"hebb": 1, "oja": 3, "instar": 6}

    @jax.jit
    def run(key):
        trajectory, _ = simulated(key)
        return [identify(trajectory, CANDIDATES, KEY, noise=SIGMA, prior=prior).posterior for prior in priors]

    flat, biased = run(jax.random.key(3))
    biased = {name: biased[name] for name in CANDIDATES}  # compiled functions return names sorted
    expected = np.array([flat["hebb"], 3 * flat["oja"], 6 * flat["instar"]])
    np.testing.assert_allclose(list(biased.values()), expected / expected.sum(), rtol=1e-4)


def test_feedback_and_the_gradient_are_told_from_each_other():
    net = nl.mlp([4, 5, 2], activation=nl.activations.tanh())
    objective = nl.supervised(net.apply, nl.losses.cross_entropy)
    start = jax.jit(net.init)(jax.random.key(4))
    candidates = {
        "backprop": nl.backprop(objective),
        "feedback": nl.feedback_alignment(objective),
        "perturbation": nl.weight_perturbation(objective, num_samples=50),
    }
    inputs = np.random.default_rng(5).normal(size=(12, 6, 4)).astype(np.float32)
    batches = jnp.asarray(inputs), jnp.asarray(np.arange(72).reshape(12, 6) % 2, jnp.int32)
    fixed = jax.jit(candidates["feedback"].init)(jax.random.key(6), start)  # its feedback weights are known
    candidates["feedback"] = candidates["feedback"]._replace(init=lambda key, params: fixed)

    def trajectory(name):
        learner = nl.learner(candidates[name], optax.sgd(0.1))

        def step(state, given):
            after, _ = learner.step(given[0], state, given[1])
            return after, (state.params, jax.tree.map(jnp.subtract, after.params, state.params))

        keys = jax.random.split(jax.random.key(7), 12)
        _, (params, change) = jax.lax.scan(step, learner.init(KEY, start), (keys, batches))
        return Trajectory(params, batches, change)

    for name in ("backprop", "feedback"):
        found = jax.jit(lambda name=name: identify(trajectory(name), candidates, KEY))()
        assert found.posterior[name] > 0.99
        np.testing.assert_allclose(found.rate[name], 0.1, rtol=1e-3)


@pytest.mark.parametrize("noise", [0.05, None], ids=["noise given", "noise open"])
def test_half_precision_is_weighed_in_single(noise):
    """The sum of squares is too large for float16, and the wrong rule would be certain."""

    @jax.jit
    def found(key):
        W, x, error = (jax.random.normal(k, (400, *s)) for k, s in zip(jax.random.split(key, 3), SHAPES, strict=True))
        grown = lambda W, x: RULES["oja"].change((), {"weight": W}, x, x @ W, None)[0]["weight"]
        change = 0.1 * jax.vmap(grown)(W, x) + 0.05 * error
        half = [a.astype(jnp.float16) for a in (W, x, change)]
        trajectory = Trajectory({"output": {"weight": half[0]}}, half[1], {"output": {"weight": half[2]}})
        return identify(trajectory, CANDIDATES, KEY, noise=noise)

    identified = found(KEY)
    assert identified.posterior["oja"] > 0.99
    np.testing.assert_allclose(identified.rate["oja"], 0.1, rtol=0.05)


def test_bad_input_is_refused():
    trajectory, _ = jax.eval_shape(simulated, KEY)
    with pytest.raises(ValueError, match="candidates must map at least two names"):
        identify(trajectory, {"hebb": CANDIDATES["hebb"]}, KEY)
    with pytest.raises(ValueError, match="prior must give each of hebb, oja, instar a finite number above 0"):
        identify(trajectory, CANDIDATES, KEY, prior={"hebb": 1.0})
    with pytest.raises(ValueError, match="noise must be a finite Python number above 0"):
        identify(trajectory, CANDIDATES, KEY, noise=0.0)
    with pytest.raises(ValueError, match=r"trajectory.change must be a tree of the shapes of trajectory.params"):
        identify(trajectory._replace(change={}), CANDIDATES, KEY)
    with pytest.raises(ValueError, match=r"trajectory.batch must have the same number of steps.*\(3,\) .*\(4, 3\)"):
        identify(trajectory._replace(batch=jnp.ones((4, 3))), CANDIDATES, KEY)
    with pytest.raises(ValueError, match="key must be a typed key"):
        identify(trajectory, CANDIDATES, 0)
