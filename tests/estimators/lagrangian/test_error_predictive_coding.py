"""ePC: predictive coding's equilibrium, reached by way of the errors."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nl_jax as nl
from nl_jax.propagation import displace, record
from tests import problems

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)
MOMENTUM = optax.sgd(0.1, momentum=0.8)
CONVERGED = {"optimizer": MOMENTUM, "num_steps": 4000, "tolerance": 1e-10}


def _run(problem, *estimators):
    """Estimates as (gradient, state, info), compiled together."""
    run = jax.jit(lambda *at: [estimator.estimate(KEY, (), *at) for estimator in estimators])
    return jax.device_get(run(problem.params, problem.batch))


BOTH = nl.error_predictive_coding, nl.predictive_coding


def _apart(a, b):
    """‖a − b‖/‖b‖ of the leaf where it is largest."""
    norm = lambda x: np.linalg.norm(np.asarray(x, np.float64))
    return max(jax.tree.leaves(jax.tree.map(lambda a, b: norm(a - b) / max(norm(b), 1e-12), a, b)))


@pytest.mark.parametrize("name", ["skip", "tied", "recurrent", "depth"])
def test_rests_where_predictive_coding_does(name, x64):
    """Axons, multipliers and ∂F/∂W; on branches, tied weights and loops over time and depth.

    Not of max pooling, where the minimum of F lies on a kink and neither settles.
    """
    problem = getattr(problems, name)()
    settled = [make(problem.objective, **CONVERGED) for make in BOTH]
    soon = nl.error_predictive_coding(problem.objective, num_steps=2, tolerance=0.0)
    (grads, _, info), (expected, _, there), (early, _, _) = _run(problem, *settled, soon)
    assert _apart(grads, expected) < 1e-6
    chex.assert_trees_all_close(info.residuals.primal, there.residuals.primal, rtol=1e-6, atol=1e-9)
    assert max(map(float, info.residuals.dual.values())) < 1e-7
    np.testing.assert_allclose(info.loss, there.loss, rtol=1e-12)
    # Not at its equilibrium it is something else, and so is backprop.
    assert _apart(early, expected) > 1e-3


def test_credit_is_that_of_predictive_coding(x64):
    problem = problems.chain()
    both = jax.jit(lambda *at: [make(problem.objective, **CONVERGED).credit(KEY, (), *at) for make in BOTH])
    ours, theirs = both(problem.params, problem.batch)
    chex.assert_trees_all_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_a_step_is_the_formula_s(x64):
    """e ← e − η ∂F/∂e/μ twice, by `jax.grad` of the energy written out for a chain; then δ = −μ e f'."""
    problem, mu, eta = problems.chain(), 3.0, 0.2
    settings = {"penalty": mu, "optimizer": optax.sgd(eta), "num_steps": 2, "tolerance": 0.0}
    estimator = nl.error_predictive_coding(problem.objective, **settings)

    @jax.jit
    def run(params, batch):
        (x, labels), own, above = batch, params["hidden1"], params["output"]
        f = jnp.tanh(x @ own["weight"] + own["bias"][None, :])

        def energy(above, e):
            losses = nl.losses.cross_entropy((f + e) @ above["weight"] + above["bias"][None, :], labels)
            return jnp.sum(losses) + mu / 2 * jnp.sum(e**2)

        e = jnp.zeros_like(f)
        for _ in range(2):
            e = e - eta * jax.grad(energy, argnums=1)(above, e) / mu
        hidden = -mu * x.T @ (e * (1 - f**2)) / len(labels)
        output = jax.grad(energy)(above, e)["weight"] / len(labels)
        return estimator.estimate(KEY, (), params, batch), hidden, output

    (grads, _, info), hidden, output = run(problem.params, problem.batch)
    np.testing.assert_allclose(grads["hidden1"]["weight"], hidden, rtol=1e-10)
    np.testing.assert_allclose(grads["output"]["weight"], output, rtol=1e-10)
    assert int(info.evaluations) == 3 + 2 * 2


def test_a_large_penalty_is_backprop_in_float32():
    """Where predictive coding's errors are lost in the rounding of its axons, and its estimate with them."""
    problem = problems.chain()
    settings = {"penalty": 1e6, "optimizer": optax.sgd(0.5), "num_steps": 40, "tolerance": 0.0}
    made = [make(problem.objective, **settings) for make in BOTH]
    (ours, _, _), (theirs, _, _), (exact, _, _) = _run(problem, *made, nl.backprop(problem.objective))
    assert _apart(ours, exact) < 1e-4
    assert _apart(theirs, exact) > 1e-3


def test_all_layers_hear_at_once():
    """After one step every layer has an error; by predictive coding the last hidden layer alone."""
    network = nl.mlp([3] * 6, activation=nl.activations.tanh())
    objective = nl.supervised(network.apply, nl.losses.half_squared_error)
    inputs = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    problem = problems.Problem(objective, jax.jit(network.init)(KEY), (inputs, np.ones_like(inputs)), network.apply)
    made = [make(objective, num_steps=1, tolerance=0.0) for make in BOTH]
    ours, theirs = (info.residuals.primal for _, _, info in _run(problem, *made))
    assert [name for name, r in ours.items() if r == 0] == ["output"]
    assert [name for name, r in theirs.items() if r > 0] == ["hidden4"]


def test_displaced_layers_are_those_of_the_program():
    problem = problems.recurrent()

    @jax.jit
    def both(params, x):
        outputs, axons = record(problem.forward)(params, x)
        nothing = jax.tree.map(jnp.zeros_like, axons)
        return displace(problem.forward)(params, x, nothing), (outputs, axons)

    chex.assert_trees_all_equal(*both(problem.params, problem.batch[0]))


def test_divergence_names_the_optimizer():
    problem = problems.chain()
    estimator = nl.error_predictive_coding(problem.objective, optimizer=optax.sgd(50.0))
    with pytest.raises(FloatingPointError, match="diverged at optimizer's step size: choose a smaller one"):
        estimator.estimate(KEY, (), problem.params, problem.batch)
    _, _, info = jax.jit(estimator.estimate)(KEY, (), problem.params, problem.batch)
    with pytest.raises(FloatingPointError, match="optimizer's step size"):
        nl.raise_if_failed(info.failures)


def test_bad_settings_are_refused():
    objective = lambda params, batch, propagate: batch
    make = functools.partial(nl.error_predictive_coding, objective)
    with pytest.raises(ValueError, match="penalty must be a finite Python number above 0, got -1"):
        make(penalty=-1)
    with pytest.raises(ValueError, match="tolerance must be below 1"):
        make(tolerance=1.0)
    with pytest.raises(ValueError, match="error_predictive_coding needs to reach the layers of the network"):
        nl.error_predictive_coding(lambda params, batch: batch)
