"""The student–teacher's recursions against steps and curves of the library's own estimators."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nl_jax as nl
from nl_jax.theory import student_teacher as theory

pytestmark = pytest.mark.slow

M, N = 2, 3
NETWORK = nl.mlp([N, M], activation=nl.activations.tanh(), bias=False)  # no hidden layer, a linear output
OBJECTIVE = nl.supervised(NETWORK.apply, nl.losses.half_squared_error)
TEACHER = np.array([[1.0, -0.5], [0.3, 0.8], [-0.7, 0.2]], np.float32)
START = float(np.sum(TEACHER**2))


def errors(estimator, batch, steps, key, rate):
    """‖Δ_t‖² of a student that starts from zero, [steps]."""

    def step(state, key):
        inputs_key, key = jax.random.split(key)
        x = jax.random.normal(inputs_key, (batch, N))
        state, _ = learner.step(key, state, (x, x @ TEACHER))
        return state, jnp.sum((state.params["output"]["weight"] - TEACHER) ** 2)

    learner = nl.learner(estimator, optax.sgd(rate))
    state = learner.init(key, {"output": {"weight": jnp.zeros((N, M))}})
    return jax.lax.scan(step, state, jax.random.split(key, steps))[1]


WHOLE = nl.supervised(NETWORK.apply, lambda outputs, targets: jnp.sum((outputs - targets) ** 2, axis=-1))


def test_without_the_half_the_rate_is_half_as_large():
    """Seed 000's own loss: the same path at half the rate."""
    rate = theory.backprop(N).best_rate

    @jax.jit
    def run(key):
        makes = nl.backprop, nl.node_perturbation, nl.weight_perturbation
        return [[errors(make(of), 1, 20, key, r) for make in makes] for of, r in ((OBJECTIVE, rate), (WHOLE, rate / 2))]

    np.testing.assert_allclose(*run(jax.random.key(1)), rtol=1e-4)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def many(estimator, batch, steps, runs, rate):
    keys = jax.random.split(jax.random.key(4), runs)
    return jax.vmap(lambda key: errors(estimator, batch, steps, key, rate))(keys)


def deviation(samples, predicted):
    """Of the mean, in its own standard errors, along the first axis."""
    samples = np.asarray(samples, np.float64)
    return np.max(np.abs(samples.mean(axis=0) - predicted) / (samples.std(axis=0, ddof=1) / len(samples) ** 0.5))


class Case(NamedTuple):
    """An estimator and what theory is told of it."""

    make: object
    theory: object
    loss_noise: object
    noise: theory.Noise
    num_samples: int
    batch: int
    baseline: object


LAWS = {theory.GAUSSIAN: nl.directions.gaussian(), theory.RADEMACHER: nl.directions.rademacher()}
SPACES = {
    "nodes": (nl.node_perturbation, theory.node_perturbation, theory.node_loss_noise),
    "weights": (nl.weight_perturbation, theory.weight_perturbation, theory.weight_loss_noise),
}
CASES = {
    f"{space} {name}": Case(*SPACES[space], *settings)
    for space in SPACES
    for name, settings in {
        "clean Gaussian": (theory.GAUSSIAN, 1, 1, nl.baselines.clean),
        "clean signs": (theory.RADEMACHER, 3, 2, nl.baselines.clean),
        "antithetic": (theory.GAUSSIAN, 2, 2, nl.baselines.antithetic),
        "no baseline": (theory.RADEMACHER, 2, 2, nl.baselines.none),
    }.items()
    if (space, name) not in (("weights", "clean Gaussian"), ("nodes", "clean signs"))  # of those the curves tell
}
SIGMA = 0.8  # large enough for all its terms to matter


def second_moment(case, **changed):
    """E‖ĝ‖² by theory."""
    baseline = changed.pop("baseline", case.baseline)
    settings = {"sigma": SIGMA, "num_samples": case.num_samples, "batch": case.batch, "noise": case.noise} | changed
    gained = case.loss_noise(-TEACHER.T, **settings) if baseline is nl.baselines.none else 0.0
    if baseline is nl.baselines.antithetic:
        settings["sigma"] = 0.0
    recursion = case.theory(M, N, **settings)
    return recursion.contraction * START + recursion.noise + float(gained)


@pytest.mark.parametrize("name", CASES)
def test_one_step_is_as_predicted(name):
    """At η = 1, E‖Δ′‖² = E‖ĝ‖² − ‖Δ‖²; and each setting counts."""
    case = CASES[name]
    estimator = case.make(
        OBJECTIVE,
        sigma=SIGMA,
        num_samples=case.num_samples,
        directions=LAWS[case.noise],
        baseline=case.baseline(),
        chunk=case.num_samples,
    )
    samples = many(estimator, case.batch, 1, 100_000, 1.0)[:, 0]
    assert deviation(samples, second_moment(case) - START) < 4
    other_noise = {theory.GAUSSIAN: theory.RADEMACHER, theory.RADEMACHER: theory.GAUSSIAN}[case.noise]
    other_baseline = nl.baselines.antithetic if case.baseline is nl.baselines.clean else nl.baselines.clean
    twins = {"num_samples": case.num_samples + 1, "batch": case.batch + 1, "noise": other_noise}
    for setting, wrong in (twins | {"baseline": other_baseline}).items():
        assert deviation(samples, second_moment(case, **{setting: wrong}) - START) > 5, setting


RULES = {
    "backprop": (nl.backprop(OBJECTIVE), theory.backprop(N)),
    "nodes": (nl.node_perturbation(OBJECTIVE, sigma=0.1), theory.node_perturbation(M, N, sigma=0.1)),
    "weights": (nl.weight_perturbation(OBJECTIVE, sigma=0.1), theory.weight_perturbation(M, N, sigma=0.1)),
}


@pytest.mark.parametrize("name", RULES)
def test_learning_curves(name):
    """The whole curve lies on the theory at its best rate, and not on that of another rate or another N."""
    estimator, recursion = RULES[name]
    best, steps = recursion.best_rate, 1 + np.arange(30)
    measured = many(estimator, 1, 30, 10_000, best)
    assert deviation(measured, recursion.curve(START, best, steps)) < 4.5
    for wrong in (recursion.curve(START, 1.3 * best, steps), recursion.curve(START, best, steps + 1)):
        assert deviation(measured, wrong) > 5


@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 7), (5, 1), (4, 6)])
def test_werfel_xie_and_seung(m, n):
    """Gaussian noise, one sample, one example: the paper's constants."""
    sigma = 0.3
    assert theory.backprop(n).contraction == pytest.approx(n + 2)
    nodes, weights = (rule(m, n, sigma=sigma) for rule in (theory.node_perturbation, theory.weight_perturbation))
    assert nodes.contraction == pytest.approx((m + 2) * (n + 2))
    assert weights.contraction == pytest.approx((m * n + 2) * (n + 2))
    assert nodes.noise == pytest.approx(sigma**2 / 4 * m * (m + 2) * (m + 4) * n)
    assert weights.noise == pytest.approx(sigma**2 / 4 * m * (m + 2) * (m * n + 4) * n * (n + 2))


def test_many_samples_are_backprop():
    for rule in (theory.node_perturbation, theory.weight_perturbation):
        for batch in (1, 5):
            limit = rule(4, 6, sigma=0.3, num_samples=10**12, batch=batch)
            assert limit.contraction == pytest.approx(theory.backprop(6, batch=batch).contraction)
            assert limit.noise == pytest.approx(0, abs=1e-7)
    assert theory.backprop(6, batch=10**12).contraction == pytest.approx(1)


def test_one_weight_is_one_node():
    """M = 1 of one input: the weights' noise is the node's times x."""
    for noise in LAWS:
        nodes, weights = (
            rule(1, 1, sigma=0.3, noise=noise) for rule in (theory.node_perturbation, theory.weight_perturbation)
        )
        assert nodes.contraction == pytest.approx(weights.contraction)
        assert weights.noise == pytest.approx(3 * nodes.noise)  # E x⁴ for E x²


def test_rates():
    """The best rate minimises the factor, twice it is where learning stops, and a curve ends at its floor."""
    for _, recursion in RULES.values():
        best, limit = recursion.best_rate, recursion.stability_limit
        rates = best * np.linspace(0, 2, 201)
        factors = recursion.factor(rates)
        assert np.argmin(factors) == 100
        assert factors[100] == pytest.approx(1 - 1 / recursion.contraction)
        np.testing.assert_allclose(factors[[0, -1]], 1)
        assert limit == pytest.approx(2 * best)
        ends = {rate: float(recursion.curve(1.0, rate, 100_000)) for rate in (0.5 * best, best, 1.9 * best)}
        for rate, end in ends.items():
            assert end == pytest.approx(recursion.floor(rate), abs=1e-12)
        assert recursion.curve(1.0, 2.01 * best, 100_000) > 1e20
        assert recursion.floor(limit) == recursion.floor(2.01 * best) == np.inf
        walked = 1.0
        for _ in range(7):
            walked = recursion.factor(0.3 * best) * walked + (0.3 * best) ** 2 * recursion.noise
        assert recursion.curve(1.0, 0.3 * best, 7) == pytest.approx(walked, rel=1e-12)


def test_on_the_limit_the_error_grows_by_the_noise_alone():
    recursion = theory.Recursion(4.0, 3.0)
    np.testing.assert_allclose(recursion.curve(1.0, 0.5, np.arange(4)), 1 + 0.75 * np.arange(4))


def test_bad_numbers_are_told():
    good = {"M": 2, "N": 3, "sigma": 0.1, "num_samples": 1, "batch": 1}
    for rule in (theory.node_perturbation, theory.weight_perturbation):
        for wrong in ({"M": 0}, {"N": 0}, {"sigma": -0.1}, {"num_samples": 0}, {"batch": 0}, {"sigma": np.inf}):
            (name,) = wrong
            with pytest.raises(ValueError, match=f"{name} must be a finite number of at least"):
                rule(**(good | wrong))
    with pytest.raises(ValueError, match="batch must be a finite number of at least 1, got 0"):
        theory.backprop(3, batch=0)
    with pytest.raises(ValueError, match="steps must be whole numbers of at least 0, got -1"):
        theory.backprop(3).curve(1.0, 0.1, [0, -1])
    for gained in (theory.node_loss_noise, theory.weight_loss_noise):
        with pytest.raises(ValueError, match="sigma must be a finite number above 0, got 0"):
            gained(jnp.ones((2, 3)), sigma=0.0)
        for name in ("num_samples", "batch"):
            with pytest.raises(ValueError, match=f"{name} must be a finite number of at least 1, got 0"):
                gained(jnp.ones((2, 3)), sigma=0.1, **{name: 0})
