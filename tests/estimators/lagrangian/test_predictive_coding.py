"""Predictive coding and the method of auxiliary coordinates: where they come to rest, and how far from backprop."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nl_jax as nl
from nl_jax.estimators.lagrangian.freedom import free_axons
from nl_jax.estimators.lagrangian.penalty import energy, infer
from nl_jax.estimators.lagrangian.relaxation import Relaxation
from nl_jax.propagation import feedforward, record
from nl_jax.theory.predictive_coding import equilibrium_energy
from tests import problems

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)
PENALTIES = jnp.array([1.0, 1000.0, 2000.0])
CONVERGED = {"num_steps": 1000, "tolerance": 1e-11}


@pytest.mark.parametrize("sizes", [[3, 4, 3, 4, 2]])
def test_linear_networks_rest_at_the_closed_form(sizes, x64):
    """F = ½ rᵀS⁻¹r at several μ, and the estimate is its derivative, by `jax.grad` of the closed form."""
    network = nl.mlp(sizes, activation=nl.activations.identity(), bias=False)
    objective = nl.supervised(network.apply, nl.losses.half_squared_error)
    params = jax.jit(network.init, static_argnums=1)(KEY, jnp.float64)
    rng = np.random.default_rng(0)
    batch = rng.normal(size=(5, 3)), rng.normal(size=(5, 2))
    settings = {"optimizer": optax.sgd(0.15, momentum=0.5)}
    long = {"num_steps": 3000, "tolerance": 1e-13}

    def theory(params, penalty):
        weights = [params[name]["weight"] for name in params]
        return jax.vmap(lambda x, y: equilibrium_energy(weights, x, y, penalty))(*batch)

    @jax.jit
    @jax.vmap
    def run(penalty):
        grads, _, _ = nl.predictive_coding(objective, penalty=penalty, **settings, **long).estimate(
            KEY, (), params, batch
        )
        _, start = record(objective)(params, batch)
        freedom = free_axons("test", objective, params, batch, start)
        del start["output"]
        hidden = infer(
            objective, params, start, batch, freedom, penalty=penalty, relaxation=Relaxation(**long), **settings
        ).carry
        energies = energy(objective, penalty=penalty)(params, hidden, batch)
        expected = theory(params, penalty), jax.grad(lambda params: jnp.mean(theory(params, penalty)))(params)
        return (energies, grads), expected

    found, expected = run(jnp.array([0.5, 1.0, 10.0]))
    chex.assert_trees_all_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.fixture(scope="module")
def tanh_chain():
    """Estimates on a nonlinear chain, by name, the exact gradient among them; compiled together."""
    with jax.enable_x64(True):
        problem = problems.chain()

        @jax.jit
        def run(params, batch):
            def coding(objective=problem.objective, **settings):
                return nl.predictive_coding(objective, **{**CONVERGED, **settings}).estimate(KEY, (), params, batch)

            def scaled(params, batch, propagate):
                return problem.objective(params, batch, propagate=propagate) / 50

            def path(**settings):
                estimator = nl.auxiliary_coordinates(problem.objective, penalties=(1, 10, 100), **settings)
                return estimator.estimate(KEY, (), params, batch)

            return {
                "exact": nl.lagrangian_backprop(problem.objective).estimate(KEY, (), params, batch),
                "penalties": jax.lax.map(lambda penalty: coding(penalty=penalty), PENALTIES),
                "one": coding(),
                "more steps": coding(num_steps=2000),
                "from zeros": coding(start=lambda axons: jax.tree.map(jnp.zeros_like, axons)),
                "a hundred": coding(penalty=100.0),
                "fifty": coding(penalty=50.0),
                "one fiftieth": coding(scaled),
                "path": path(**CONVERGED),
                "short path": path(num_steps=10, tolerance=0.0),
            }

        return jax.device_get(run(problem.params, problem.batch))  # numpy's, to be judged outside x64


def _flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def _error(estimate, exact):
    return np.linalg.norm(_flat(estimate[0]) - _flat(exact[0])) / np.linalg.norm(_flat(exact[0]))


def _at(estimates, index):
    return jax.tree.map(lambda x: x[index], estimates)


def _cosine(a, b):
    return np.vdot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b))


def test_equilibrium_is_not_backprop(tanh_chain):
    """Stationary in the axons, not feasible, and pointing elsewhere."""
    grads, _, info = tanh_chain["one"]
    exact = tanh_chain["exact"][0]
    assert max(map(float, info.residuals.dual.values())) < 1e-11
    assert float(info.residuals.primal["hidden1"]) > 0.2
    assert float(info.residuals.primal["output"]) == 0  # the last layer is what it computes
    cosines = [_cosine(_flat(grads[layer]), _flat(exact[layer])) for layer in ("hidden1", "output")]
    assert 0.2 < min(cosines) < 0.8


def test_a_large_penalty_is_backprop_up_to_its_inverse(tanh_chain):
    """The error halves when μ doubles, and so does the violated constraint."""
    weak, strong, stronger = (_at(tanh_chain["penalties"], index) for index in range(3))
    chex.assert_trees_all_close(weak, tanh_chain["one"], rtol=1e-9, atol=1e-11)  # μ may be an array
    exact = tanh_chain["exact"]
    assert _error(strong, exact) < 5e-3
    assert _error(stronger, exact) / _error(strong, exact) == pytest.approx(0.5, rel=5e-3)
    ratio = stronger[2].residuals.primal["hidden1"] / strong[2].residuals.primal["hidden1"]
    assert float(ratio) == pytest.approx(0.5, rel=5e-3)


def test_a_small_output_energy_is_a_large_penalty(tanh_chain):
    """(α C + ½ Σ ‖r‖²)/α has μ = 1/α: the limit α → 0 is backprop (Millidge et al. 2022)."""
    scaled = jax.tree.map(lambda g: 50 * g, tanh_chain["one fiftieth"][0])
    chex.assert_trees_all_close(scaled, tanh_chain["fifty"][0], rtol=1e-10, atol=1e-12)


def test_once_converged_more_steps_change_nothing(tanh_chain):
    chex.assert_trees_all_equal(tanh_chain["more steps"], tanh_chain["one"])
    assert 3 + 2 * 50 < int(tanh_chain["one"][2].evaluations) < 3 + 2 * 1000


def test_the_start_does_not_matter_to_the_end(tanh_chain):
    chex.assert_trees_all_close(tanh_chain["from zeros"][0], tanh_chain["one"][0], rtol=1e-7, atol=1e-9)
    assert int(tanh_chain["from zeros"][2].evaluations) != int(tanh_chain["one"][2].evaluations)


def test_several_outputs_are_one(x64):
    """Two heads of a hidden layer are a single output layer in two parts: none of them is free."""

    def forward(joined, params, x, propagate=feedforward):
        own = lambda w, x: x @ w
        hidden = propagate("hidden", own, jnp.tanh, params["hidden"], x)
        if joined:
            return propagate("output", own, jnp.sin, jnp.concatenate([params["a"], params["b"]], axis=1), hidden)
        heads = [propagate(name, own, jnp.sin, params[name], hidden) for name in "ab"]
        return jnp.concatenate(heads, axis=1)

    sizes = {"hidden": (3, 4), "a": (4, 2), "b": (4, 3)}
    rng = np.random.default_rng(0)
    params = {name: rng.normal(size=size) for name, size in sizes.items()}

    @jax.jit
    def both(params, batch):
        found = []
        for joined in (True, False):
            objective = nl.supervised(functools.partial(forward, joined), nl.losses.half_squared_error)
            estimator = nl.predictive_coding(objective, num_steps=5, tolerance=0.0)
            found.append(estimator.estimate(KEY, (), params, batch)[0])
        return found

    chex.assert_trees_all_close(*both(params, (rng.normal(size=(5, 3)), np.ones((5, 5)))), rtol=1e-10)


def test_the_path_of_penalties_ends_at_the_last(tanh_chain):
    """And begins each stage near its end: unmoved, the axons of μ = 10 would be ten times too far off at μ = 100."""
    chex.assert_trees_all_close(tanh_chain["path"][0], tanh_chain["a hundred"][0], rtol=1e-7, atol=1e-9)
    assert int(tanh_chain["short path"][2].evaluations) == 3 + 2 * 3 * 10
    assert _error(tanh_chain["short path"], tanh_chain["a hundred"]) < 0.1


def test_divergence_names_the_optimizer_also_in_training():
    problem = problems.chain()
    learner = nl.learner(nl.predictive_coding(problem.objective, optimizer=optax.sgd(10.0)), optax.sgd(0.1))
    state = learner.init(KEY, problem.params)
    with pytest.raises(nl.Diverged, match=r"at step 0 .*diverged at optimizer's step size: choose a smaller one"):
        nl.fit(learner, KEY, state, problem.batch, num_steps=2, progress=False)


@pytest.mark.parametrize("make", [nl.predictive_coding, nl.error_predictive_coding, nl.auxiliary_coordinates])
def test_bad_settings_are_refused(make):
    objective = lambda params, batch, propagate: batch
    with pytest.raises(ValueError, match=r"optimizer must be an optax optimizer such as optax\.sgd\(0\.1\), got 0\.1"):
        make(objective, optimizer=0.1)
    with pytest.raises(ValueError, match="num_steps must be a whole number"):
        make(objective, num_steps=0)


def test_bad_penalties_are_refused():
    objective = lambda params, batch, propagate: batch
    with pytest.raises(ValueError, match="penalty must be a finite Python number above 0, got 0"):
        nl.predictive_coding(objective, penalty=0)
    for penalties, message in (
        ((), "penalties must be a sequence of at least one number"),
        (3.0, "penalties must be a sequence of at least one number, got 3.0"),
        ((1, 0.0), "each of penalties must be a finite Python number above 0, got 0.0"),
        ((1, 10, 10), r"penalties must rise from each to the next, got \(1, 10, 10\): sort them"),
    ):
        with pytest.raises(ValueError, match=message):
            nl.auxiliary_coordinates(objective, penalties=penalties)
