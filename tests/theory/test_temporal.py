"""The laws of node and weight perturbation over time against many single trials of the library's own estimators."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nl_jax as nl
from nl_jax.theory import temporal

T, n, N, M = 5, 3, 4, 2  # the last input is always 0
TRIALS = 40_000
RATE, SIGMA = 0.1, 1.0

LAWS = {
    "weights": (nl.weight_perturbation, temporal.weight_perturbation, SIGMA),
    "nodes": (nl.node_perturbation, temporal.node_perturbation, temporal.equal_sigma(SIGMA, temporal.fresh(T, n))),
}
laws = pytest.mark.parametrize("rule", LAWS)
inputs = pytest.mark.parametrize("kind", [temporal.fresh, temporal.repeated], ids=["fresh", "repeated"])


def output(weight, x, propagate=nl.propagation.feedforward):
    return propagate("output", lambda w, x: x @ w, lambda nu: nu, weight, x)


def trial_error(y, target):
    return nl.losses.half_squared_error(y, target) / T


@functools.cache
def one_trial(rule):
    """|Δ′|² along the n directions after a trial each from Δ = start: [TRIALS]."""
    make, _, sigma = LAWS[rule]
    estimator = make(nl.supervised(output, trial_error), sigma=sigma)

    @jax.jit
    @jax.vmap
    def walk(key, x, residual, start):
        grads, _, _ = estimator.estimate(key, (), start, (x[None], residual[None]))
        return jnp.sum((start - RATE * grads)[:n] ** 2)

    return walk


@functools.cache
def trials(kind):
    """Inputs [TRIALS, T, N] and residuals d [TRIALS, T, M] of |d_t|² = 1 on average."""
    keys = jax.random.split(jax.random.key(3))
    if kind is temporal.fresh:
        x = jax.random.normal(keys[0], (TRIALS, T, n))
        d = jax.random.normal(keys[1], (TRIALS, T, M)) / M**0.5
    else:
        basis = jnp.linalg.qr(jax.random.normal(keys[0], (T, T)))[0]
        x = jnp.broadcast_to(T**0.5 * basis[:, :n], (TRIALS, T, n))
        d = jnp.broadcast_to((T / M / (T - n)) ** 0.5 * basis[:, n:] @ jnp.eye(T - n, M), (TRIALS, T, M))
        d = d * (T / jnp.sum(d[0] ** 2)) ** 0.5
    return jnp.pad(x, ((0, 0), (0, 0), (0, N - n))), d


def predicted(law, size, residual):
    decay = 1 - 2 * RATE + RATE**2 * law.gain
    return decay * size + RATE**2 * (SIGMA**2 * law.curvature_noise / 4 + residual * law.residual_noise)


def _twin(rule, kind):
    """(zᵀa)² and zᵀAz taken for independent of one another; of nodes, d for a function of the inputs, ρ = 1."""
    _, _, c, s, rho = kind(T, n)
    return {
        "weights": temporal.Law(M * n * c, M**3 * n**2 * s, M * n**2 * rho),
        "nodes": temporal.Law(M * s, n * M**3 * T, n * (M + 2)),
    }[rule]


@pytest.mark.slow
@laws
@inputs
@pytest.mark.parametrize("part", ["gain", "curvature_noise", "residual_noise"])
def test_one_trial(rule, kind, part):
    """Each coefficient by itself: the others' terms are 0 or too small to matter."""
    x, d = trials(kind)
    size, residual = {"gain": (1e6, 0.0), "curvature_noise": (0.0, 0.0), "residual_noise": (0.0, 1e6)}[part]
    start = jnp.broadcast_to(jnp.eye(N, M) * (size / M) ** 0.5, (TRIALS, N, M))
    keys = jax.random.split(jax.random.key(8), TRIALS)
    measured = np.asarray(one_trial(rule)(keys, x, residual**0.5 * d, start), float)
    standard_error = max(measured.std(ddof=1) / TRIALS**0.5, 1e-4)
    law, sigma_law = LAWS[rule][1](kind(T, n), M), LAWS[rule][2]
    law = law._replace(curvature_noise=law.curvature_noise * (sigma_law / SIGMA) ** 2)
    assert abs(measured.mean() - predicted(law, size, residual)) < 5 * standard_error
    if getattr(law, part):
        twin = law._replace(**{part: getattr(_twin(rule, kind), part)})
        assert abs(measured.mean() - predicted(twin, size, residual)) > 5 * standard_error


def test_single_steps_are_werfel_s():
    """T = 1: K = (M + 2)(N + 2) and (MN + 2)(N + 2), F = M(M + 2)(M + 4)N and M(M + 2)(MN + 4)N(N + 2)."""
    M, N = 3, 7
    nodes, weights = (
        make(temporal.fresh(1, N), M) for make in (temporal.node_perturbation, temporal.weight_perturbation)
    )
    assert (nodes.gain, nodes.curvature_noise) == ((M + 2) * (N + 2), M * (M + 2) * (M + 4) * N)
    assert (weights.gain, weights.curvature_noise) == (
        (M * N + 2) * (N + 2),
        M * (M + 2) * (M * N + 4) * N * (N + 2),
    )


def _ratio(trials, M, **noise):
    """Floor of node over weight perturbation, of noise equally strong, at one slow rate."""
    sigma = noise.pop("sigma")
    weights = temporal.floor(temporal.weight_perturbation(trials, M), rate=1e-6, sigma=sigma, **noise)
    nodes = temporal.node_perturbation(trials, M)
    return temporal.floor(nodes, rate=1e-6, sigma=temporal.equal_sigma(sigma, trials), **noise) / weights


@pytest.mark.parametrize("dimension", [1, 4, 9])
@pytest.mark.parametrize("M", [2, 5])
def test_the_trial_s_length_against_the_inputs_dimension_decides(dimension, M):
    repeated = [_ratio(temporal.repeated(T, dimension), M, sigma=1.0) for T in (dimension, 20, 2000, 4000)]
    assert repeated[0] == pytest.approx(1)
    assert min(repeated) > 1 - 1e-9
    assert repeated[3] == pytest.approx(2 * repeated[2], rel=1e-2)
    fresh = [_ratio(temporal.fresh(T, dimension), M, sigma=0.0, irreducible=1.0) for T in (dimension, 20)]
    assert fresh[0] == pytest.approx(1, abs=1e-3)
    assert fresh[1] == pytest.approx((20 * M + 2) / (dimension * M + 2), rel=1e-3)
    if dimension > 1:
        assert _ratio(temporal.fresh(1, dimension), M, sigma=0.0, irreducible=1.0) < 1
    laws = [
        make(temporal.fresh(50, dimension), M) for make in (temporal.weight_perturbation, temporal.node_perturbation)
    ]
    assert laws[0].gain - laws[1].gain == pytest.approx(M * (dimension - 1) * (dimension + 2) / 50)


def test_learning_curve_is_the_recursion(x64):
    law = temporal.node_perturbation(temporal.fresh(T, n), M)
    rate, sigma, irreducible, error = 0.7 * temporal.best_rate(law), 0.3, 0.2, 5.0
    walked = [error]
    for _ in range(60):
        noise = sigma**2 * law.curvature_noise / 4 + 2 * irreducible * law.residual_noise
        error = (1 - 2 * rate + rate**2 * law.gain) * error + rate**2 * noise / 2
        walked.append(error)
    settings = {"rate": rate, "sigma": sigma, "irreducible": irreducible}
    curve = temporal.learning_curve(law, jnp.arange(61), 5.0, **settings)
    np.testing.assert_allclose(curve, walked, rtol=1e-12)
    late = temporal.learning_curve(law, jnp.array(10_000), 5.0, **settings)
    np.testing.assert_allclose(late, temporal.floor(law, **settings), rtol=1e-12)


def test_the_best_rate_and_the_largest():
    law = temporal.weight_perturbation(temporal.fresh(T, n), M)
    best = temporal.best_rate(law)
    after = [float(temporal.learning_curve(law, jnp.array(1), 1.0, rate=c * best, sigma=0.0)) for c in (0.99, 1, 1.01)]
    assert after[1] == pytest.approx(1 - 1 / law.gain) == min(after)
    assert temporal.floor(law, rate=2 * best, sigma=0.1) == math.inf
    with pytest.raises(ValueError, match="rate must be below 2/K"):
        temporal.learning_curve(law, jnp.arange(3), 1.0, rate=2 * best, sigma=0.1)


def test_bad_input_is_told():
    with pytest.raises(ValueError, match="5 steps span at most as many dimensions, got dimension = 6"):
        temporal.repeated(5, 6)
    for name, call in (
        ("steps", lambda: temporal.fresh(0, 2)),
        ("dimension", lambda: temporal.repeated(3, 0)),
        ("outputs", lambda: temporal.weight_perturbation(temporal.fresh(3, 2), 0)),
    ):
        with pytest.raises(ValueError, match=f"{name} must be a finite number of at least 1, got 0"):
            call()
    law, good = temporal.node_perturbation(temporal.fresh(3, 2), 1), {"rate": 0.1, "sigma": 1.0, "irreducible": 0.0}
    for wrong in ({"rate": 0.0}, {"sigma": -1.0}, {"irreducible": math.nan}):
        (name,) = wrong
        with pytest.raises(ValueError, match=f"{name} must be a finite number"):
            temporal.floor(law, **(good | wrong))
