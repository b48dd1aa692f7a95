"""What a learner hands to an optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nl_jax as nl
from tests import problems

KEY = jax.random.key(4)


def asked(estimator, problem, at):
    """`value`, `grad`, and value and gradient of `value_fn` at other parameters, as an optimizer gets them."""
    got = {}

    def update(updates, state, params=None, *, value, grad, value_fn):
        del params
        got.update(value=value, grad=grad, there=jax.value_and_grad(value_fn)(at))
        return updates, state

    optimizer = optax.GradientTransformationExtraArgs(lambda params: (), update)
    learner = nl.learner(estimator, optimizer)
    learner.step(KEY, learner.init(KEY, problem.params), problem.batch)
    return got


def test_an_optimizer_may_ask_for_the_loss_elsewhere_with_the_same_key_and_batch():
    problem = problems.chain()
    estimator = nl.node_perturbation(problem.objective, num_samples=2)
    moved = jax.tree.map(lambda w: w + 0.1, problem.params)
    got = asked(estimator, problem, moved)
    for params, (value, grad) in ((problem.params, (got["value"], got["grad"])), (moved, got["there"])):
        grads, _, info = estimator.estimate(KEY, (), params, problem.batch)
        np.testing.assert_allclose(value, info.loss, rtol=1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), grad, grads)


def test_a_search_needs_no_derivative_that_the_estimator_does_not_need():
    problem = problems.chain()
    network = nl.mlp([4, 5, 3], activation=nl.activations.sign())
    objective = nl.supervised(network.apply, nl.losses.cross_entropy)
    problem = problem._replace(objective=objective, params=network.init(KEY))
    got = asked(nl.node_perturbation(objective, sigma=0.5), problem, problem.params)
    assert np.isfinite(got["there"][0])
    assert max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(got["there"][1])) > 0
