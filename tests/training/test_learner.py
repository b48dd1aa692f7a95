"""What a learner hands to an optimizer."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nl_jax as nl
from tests import problems

pytestmark = pytest.mark.slow

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

    @jax.jit
    def step(params):
        learner.step(KEY, learner.init(KEY, params), problem.batch)
        return got

    return step(problem.params)


def test_an_optimizer_may_ask_for_the_loss_elsewhere_with_the_same_key_and_batch(x64):
    problem = problems.chain()
    estimator = nl.node_perturbation(problem.objective, num_samples=2)
    moved = jax.tree.map(lambda w: np.asarray(w) + 0.1, problem.params)
    got = asked(estimator, problem, moved)
    estimate = jax.jit(estimator.estimate)
    for params, (value, grad) in ((problem.params, (got["value"], got["grad"])), (moved, got["there"])):
        grads, _, info = estimate(KEY, (), params, problem.batch)
        np.testing.assert_allclose(value, info.loss, rtol=1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), grad, grads)


def test_a_search_needs_no_derivative_that_the_estimator_does_not_need():
    problem = problems.chain()
    network = nl.mlp([4, 5, 3], activation=nl.activations.sign())
    objective = nl.supervised(network.apply, nl.losses.cross_entropy)
    problem = problem._replace(objective=objective, params=jax.jit(network.init)(KEY))
    got = asked(nl.node_perturbation(objective, sigma=0.5), problem, problem.params)
    assert np.isfinite(got["there"][0])
    assert max(np.max(np.abs(g)) for g in jax.tree.leaves(got["there"][1])) > 0


def test_a_search_that_stores_its_gradient():
    estimator = nl.backprop(lambda w, x: x * jnp.sum(w**2))
    search = optax.scale_by_backtracking_linesearch(10, store_grad=True)
    learner = nl.learner(estimator, optax.chain(optax.sgd(1.0), search))
    state, _ = learner.step(KEY, learner.init(KEY, jnp.ones(2)), jnp.ones(4))
    np.testing.assert_allclose(optax.tree.get(state.optimizer, "grad"), 2 * state.params)


def test_gradients_accumulated_over_steps(lenient):
    """optax.MultiSteps bare: four steps of a quarter of the batch are one of the whole."""
    problem = problems.chain()
    whole = nl.learner(nl.backprop(problem.objective), optax.sgd(0.1))
    quarters = nl.learner(nl.backprop(problem.objective), optax.MultiSteps(optax.sgd(0.1), every_k_schedule=4))
    batch = jax.tree.map(lambda x: np.concatenate([x] * 4)[: 4 * (len(x) // 2)], problem.batch)
    size = len(jax.tree.leaves(batch)[0]) // 4
    expected, _ = jax.jit(whole.step)(KEY, whole.init(KEY, problem.params), batch)
    state, step = quarters.init(KEY, problem.params), jax.jit(quarters.step)
    for t in range(4):
        state, _ = step(KEY, state, jax.tree.map(lambda x, t=t: x[t * size : (t + 1) * size], batch))
        moved = any(not np.array_equal(a, b) for a, b in _pairs(state.params, problem.params))
        assert moved is (t == 3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state.params, expected.params)


def _pairs(a, b):
    return zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)


@pytest.mark.parametrize(
    ("made_for", "used_with", "differs"),
    [
        (optax.adam(0.1), optax.sgd(0.1), "has '0/count' too much"),
        (optax.sgd(0.1), optax.adam(0.1), "lacks '0/count'"),
        (optax.sgd(0.1), optax.chain(optax.sgd(0.1), optax.identity()), "has other nodes"),
    ],
)
def test_a_state_of_another_optimizer(made_for, used_with, differs):
    problem = problems.chain()
    state = nl.learner(nl.backprop(problem.objective), made_for).init(KEY, problem.params)
    message = f"state.optimizer is of another optimizer, it {differs}: make the state with learner.init"
    with pytest.raises(ValueError, match=re.escape(message)):
        jax.jit(nl.learner(nl.backprop(problem.objective), used_with).step)(KEY, state, problem.batch)


def test_a_model_that_holds_functions_is_told_to_be_divided():
    import equinox as eqx

    model = eqx.nn.MLP(2, 1, 3, 1, key=jax.random.key(0))
    own = nl.learner(nl.backprop(lambda model, x: jax.vmap(model)(x)[:, 0] ** 2), optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"activation' that is no array.*eqx.partition"):
        own.init(jax.random.key(1), model)
