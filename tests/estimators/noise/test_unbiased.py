"""What unbiased needs, and how much single estimates vary; that every estimator is, test_conformance tells."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nl_jax as nl
from nl_jax.evaluation.conformance.subject import flat, sampler
from nl_jax.propagation import inject, local
from nl_jax.theory import perturbation as theory
from tests import problems
from tests.deviation import largest_deviation

pytestmark = pytest.mark.slow

NUM_KEYS = 3000
KEYS = jax.random.split(jax.random.key(11), NUM_KEYS)
signs, normal = nl.directions.rademacher(), nl.directions.gaussian()


def estimates(estimator, params, batch, keys=KEYS) -> np.ndarray:
    """Gradients for all keys, [keys, parameters]."""
    state = estimator.init(jax.random.key(0), params)
    return sampler(estimator, problems.Problem(None, params, batch, None))(keys, state)


@functools.cache
def _gradient(objective):
    """Compiled once for all tests of an objective."""
    return jax.jit(jax.grad(lambda params, batch: jnp.mean(objective(params, batch))))


def exact(objective, params, batch) -> np.ndarray:
    return flat(_gradient(objective)(params, batch))


def test_shared_noise_across_examples_is_biased(x64):
    """mean(δ) ⊗ mean(x) is not mean(δ ⊗ x): a node perturbation with one noise for all examples must fail."""
    problem = problems.chain()

    def estimate(key, state, params, batch):
        losses, preactivations, _, pull = local(problem.objective)(params, batch)
        one = jax.tree.map(lambda nu: nu[:1], preactivations)
        noise = jax.tree.map(lambda xi, nu: jnp.broadcast_to(xi, nu.shape), normal(key, 0, one), preactivations)
        change = (inject(problem.objective)(params, batch, jax.tree.map(lambda x: 1e-4 * x, noise)) - losses) / 1e-4
        credit = jax.tree.map(lambda xi: jnp.mean(change) * xi / len(losses), noise)
        return pull(jnp.zeros_like(losses), credit), state, None

    twin = nl.GradientEstimator(lambda key, params: (), estimate)
    samples = estimates(twin, problem.params, problem.batch)
    assert largest_deviation(samples, exact(problem.objective, problem.params, problem.batch)) > 5


@pytest.mark.parametrize("make", [nl.weight_perturbation, nl.node_perturbation])
def test_no_baseline_is_unbiased_too(make, x64):
    """Seed 000: E is independent of the noise, so that ⟨Ẽ Ω⟩/σ² is the gradient; exactly, for a linear error."""

    def affine(params, x):
        return x @ params["weight"]

    def objective(params, batch, propagate=nl.propagation.feedforward):
        return 3.0 + propagate("output", affine, lambda nu: nu, params, batch)[:, 0]

    params = {"weight": np.array([[0.5], [-1.0], [2.0]])}
    batch = np.random.default_rng(1).normal(size=(2, 3))
    g = exact(objective, params, batch)
    keys = jax.random.split(jax.random.key(12), 20_000)
    samples = estimates(make(objective, sigma=1.0, baseline=nl.baselines.none()), params, batch, keys)
    assert largest_deviation(samples, g) < 5
    assert largest_deviation(samples + 0.5 * np.abs(g), g) > 5
    with_baseline = estimates(make(objective, sigma=1.0), params, batch, keys)
    assert with_baseline.var() < samples.var() / 2


def test_examples_that_interact_need_batch_credit(x64):
    """Through the batch's own mean every example's noise reaches every loss."""

    def centred(params, x):
        nu = x @ params["weight"]
        return nu - jnp.mean(nu, axis=0, keepdims=True)

    def spread(params, x):  # no parameters of its own, but it couples examples
        return x - 2.0 * jnp.roll(x, 1, axis=0)

    def forward(params, x, propagate=nl.propagation.feedforward):
        hidden = propagate("hidden", centred, jnp.tanh, params["hidden"], x)
        mixed = propagate("mixed", spread, jnp.tanh, {}, hidden)
        return propagate("output", lambda p, x: x @ p["weight"], lambda nu: nu, params["output"], mixed)

    rng = np.random.default_rng(2)
    params = {"hidden": {"weight": rng.normal(size=(3, 2))}, "output": {"weight": rng.normal(size=(2, 1))}}
    batch = rng.normal(size=(4, 3)), np.ones((4, 1))
    objective = nl.supervised(forward, nl.losses.half_squared_error)
    g = exact(objective, params, batch)
    make = functools.partial(nl.node_perturbation, objective, num_samples=4)
    assert largest_deviation(estimates(make(credit=nl.spaces.per_batch_credit()), params, batch), g) < 5
    assert largest_deviation(estimates(make(), params, batch), g) > 5


@pytest.mark.parametrize(
    ("directions", "kurtosis", "num_samples"), [(normal, 3, 1), (signs, 1, 4)], ids=["gaussian", "rademacher"]
)
def test_weight_space_variance_law(directions, kurtosis, num_samples, x64):
    """E‖ĝ − g‖²/‖g‖² = (P ± 1)/K."""
    problem = problems.chain()
    estimator = nl.weight_perturbation(problem.objective, sigma=1e-5, num_samples=num_samples, directions=directions)
    g = exact(problem.objective, problem.params, problem.batch)
    squares = ((estimates(estimator, problem.params, problem.batch) - g) ** 2).sum(axis=1) / (g**2).sum()
    error = squares.std(ddof=1) / NUM_KEYS**0.5
    sampler = functools.partial(theory.relative_variance, theory.independent(g.size, kurtosis=kurtosis))
    assert abs(squares.mean() - sampler(num_samples)) < 5 * error
    assert abs(squares.mean() - sampler(num_samples + 1)) > 5 * error


@pytest.mark.parametrize(("directions", "kurtosis"), [(normal, 3), (signs, 1)], ids=["gaussian", "rademacher"])
def test_node_space_variance_law(directions, kurtosis, x64):
    """Var ĝ_ba = Σ_n x_nb² (‖δ_n‖² ± δ_na²) / (B² K), with ‖δ_n‖² over all nodes of example n; and of all layers."""
    problem = problems.chain()
    x, _ = problem.batch

    @jax.jit
    def in_theory(params, batch):
        """The variance of each weight of the lower layer, the second moment of all, and δ."""
        _, preactivations, _, _ = local(problem.objective)(params, batch)
        zeros = jax.tree.map(jnp.zeros_like, preactivations)
        delta = jax.grad(lambda o: jnp.sum(inject(problem.objective)(params, batch, o)))(zeros)
        power = sum(jnp.sum(d**2, axis=1) for d in delta.values())
        _, axons = nl.propagation.record(problem.forward)(params, x)
        ones = jnp.ones((len(x), 1))
        below = {name: jnp.hstack([pre, ones]) for name, pre in zip(axons, [x, *axons.values()], strict=False)}
        s = theory.nodes({name: (below[name], delta[name]) for name in axons}, kurtosis=kurtosis)
        return theory.node_variance(x, delta["hidden1"], power, 2, kurtosis=kurtosis), s, delta

    predicted, s, delta = jax.tree.map(np.asarray, in_theory(problem.params, problem.batch))
    estimator = nl.node_perturbation(problem.objective, sigma=1e-5, num_samples=2, directions=directions)
    grads = jax.jit(jax.vmap(lambda key: estimator.estimate(key, (), problem.params, problem.batch)[0]))(KEYS)
    deviations = np.asarray(grads["hidden1"]["weight"])
    squares = (deviations - deviations.mean(axis=0)) ** 2
    error = squares.std(axis=0, ddof=1) / NUM_KEYS**0.5
    assert np.max(np.abs(squares.mean(axis=0) - predicted) / error) < 5
    assert np.max(np.abs(squares.mean(axis=0) - 2 * predicted) / error) > 5

    samples = np.concatenate([np.reshape(leaf, (NUM_KEYS, -1)) for leaf in jax.tree.leaves(grads)], axis=1)
    g = exact(problem.objective, problem.params, problem.batch)
    off = ((samples - g) ** 2).sum(axis=1) / (g**2).sum()
    error = off.std(ddof=1) / NUM_KEYS**0.5
    assert abs(off.mean() - theory.relative_variance(s, 2)) < 5 * error
    number = sum(d.shape[1] for d in delta.values())  # of nodes, were all layers alike
    for wrong in (s + 1, theory.independent(number, kurtosis=kurtosis)):
        assert abs(off.mean() - theory.relative_variance(wrong, 2)) > 5 * error


def test_perturbation_tends_to_the_forward_gradient(x64):
    """As σ → 0 the difference quotient is the derivative, with the same directions; antithetic faster."""
    problem = problems.chain()

    @jax.jit
    def run(sigma, params, batch):
        at = jax.random.key(5), (), params, batch
        baselines = (nl.baselines.clean(), nl.baselines.antithetic())
        make = functools.partial(nl.weight_perturbation, problem.objective, num_samples=4, sigma=sigma)
        found = [make(baseline=baseline).estimate(*at)[0] for baseline in baselines]
        return nl.forward_gradient(problem.objective, num_samples=4).estimate(*at)[0], found

    def distances(sigma):
        limit, found = run(jnp.asarray(sigma), problem.params, problem.batch)
        return np.array([np.linalg.norm(flat(grads) - flat(limit)) for grads in found])

    first, second = distances(1e-2) / distances(1e-3)
    np.testing.assert_allclose([first, second], [10, 100], rtol=0.1)
