"""What every estimator owes its user, whatever it is."""

import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nl_jax as nl
from nl_jax.base import EstimateFn, EstimatorInitFn
from tests import problems
from tests.registry import ESTIMATORS, OPTIMIZERS

KEY = jax.random.key(3)


@pytest.fixture(scope="module", params=ESTIMATORS)
def case(request):
    """An estimator with its jitted estimate, compiled once for all tests here."""
    entry = ESTIMATORS[request.param]
    problem = problems.chain()
    estimator = entry.make(problem.objective)
    traces = []

    @jax.jit
    def estimate(key, state, params, batch):
        traces.append(1)
        return estimator.estimate(key, state, params, batch)

    state = estimator.init(jax.random.key(0), problem.params)
    return entry, problem, estimator, state, estimate, traces


def test_follows_the_contract(case):
    entry, problem, estimator, state, estimate, _ = case
    assert isinstance(estimator, nl.GradientEstimator)
    for function, protocol in ((estimator.init, EstimatorInitFn), (estimator.estimate, EstimateFn)):
        expected = list(inspect.signature(protocol.__call__).parameters)[1:]
        assert list(inspect.signature(function).parameters) == expected
    grads, next_state, info = estimate(KEY, state, problem.params, problem.batch)
    chex.assert_trees_all_equal_shapes_and_dtypes(grads, problem.params)
    chex.assert_trees_all_equal_structs(next_state, state)
    chex.assert_tree_all_finite((grads, info))
    assert isinstance(info, nl.Info)
    assert info.loss.shape == ()
    assert info.evaluations.dtype == jnp.int32
    assert int(info.evaluations) == entry.evaluations


def test_loss_is_the_mean_loss(case):
    _, problem, _, state, estimate, _ = case
    loss = estimate(KEY, state, problem.params, problem.batch)[2].loss
    # Estimators without a clean pass report the loss they saw, at noise of 0.1 or less.
    np.testing.assert_allclose(loss, jnp.mean(problem.objective(problem.params, problem.batch)), rtol=0.1)


def test_eager_jit_and_vmap_agree_and_a_key_decides(case):
    entry, problem, estimator, state, estimate, _ = case
    at = state, problem.params, problem.batch
    jitted = estimate(KEY, *at)
    chex.assert_trees_all_close(estimator.estimate(KEY, *at), jitted, rtol=2e-4, atol=2e-4)
    chex.assert_trees_all_equal(estimate(KEY, *at), jitted)
    keys = jnp.stack([KEY, jax.random.key(4)])
    mapped = jax.jit(jax.vmap(estimator.estimate, in_axes=(0, None, None, None)))(keys, *at)
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[0], mapped), jitted, rtol=2e-4, atol=2e-4)
    other = estimate(jax.random.key(4), *at)[0]
    same = all(
        bool(jnp.allclose(a, b)) for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(jitted[0]), strict=True)
    )
    assert same != entry.random


def test_compiles_once(case):
    _, problem, _, state, estimate, traces = case
    for seed in range(3):
        _, state, _ = estimate(jax.random.key(seed), state, problem.params, problem.batch)
    assert len(traces) == 1


@pytest.fixture(scope="module")
def all_optimizers():
    """One step of every optimizer on one estimate, compiled once for all estimators; with their states and traces."""
    params, traces = problems.chain().params, []

    def learners(estimated):
        estimator = nl.GradientEstimator(lambda key, params: (), lambda *_: estimated)
        return {name: nl.learner(estimator, make()) for name, make in OPTIMIZERS.items()}

    @jax.jit
    def step(key, states, estimated, batch):
        traces.append(1)
        return {name: learner.step(key, states[name], batch) for name, learner in learners(estimated).items()}

    return step, {name: learner.init(KEY, params) for name, learner in learners(None).items()}, traces


@pytest.mark.usefixtures("lenient")  # optax.adam's own arithmetic
def test_every_optimizer_takes_its_estimates(case, all_optimizers):
    entry, problem, _, state, estimate, _ = case
    step, states, traces = all_optimizers
    grads, _, info = estimate(KEY, state, problem.params, problem.batch)
    estimated = grads, (), info._replace(residuals=())
    for _ in range(2):
        stepped = step(KEY, states, estimated, problem.batch)
        after = {name: state for name, (state, _) in stepped.items()}
        chex.assert_trees_all_equal_shapes_and_dtypes(states, after)
        for name, (_, info) in stepped.items():
            moved = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), after[name].params, states[name].params)
            assert 0 < max(jax.tree.leaves(moved)) < np.inf, name
            assert int(info.evaluations) == entry.evaluations
        states = after
    assert len(traces) == 1


@pytest.mark.parametrize("name", [name for name, entry in ESTIMATORS.items() if entry.random])
def test_result_does_not_depend_on_the_chunk(name, x64):
    problem = problems.chain()

    def grads(chunk):
        estimator = ESTIMATORS[name].make(problem.objective, chunk=chunk)
        state = estimator.init(KEY, problem.params)
        return jax.jit(estimator.estimate)(KEY, state, problem.params, problem.batch)[0]

    # 3 samples: one by one, or 2 and a rest of 1.
    chex.assert_trees_all_close(grads(2), grads(1), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", [name for name, entry in ESTIMATORS.items() if entry.layers])
def test_layers_are_asked_for_by_name(name):
    def layerless(params, batch):
        return (batch @ params) ** 2

    with pytest.raises(ValueError, match=r"takes no argument `propagate`.*backprop, weight_perturbation"):
        ESTIMATORS[name].make(layerless)


@pytest.mark.parametrize("name", [name for name, entry in ESTIMATORS.items() if not entry.layers])
def test_the_others_take_any_function(name):
    estimator = ESTIMATORS[name].make(lambda params, batch: (batch @ params) ** 2)
    params, batch = jnp.ones(3), jnp.ones((2, 3))
    grads, _, _ = estimator.estimate(KEY, estimator.init(KEY, params), params, batch)
    chex.assert_equal_shape([grads, params])


@pytest.mark.parametrize("name", [name for name, entry in ESTIMATORS.items() if not entry.derivative])
def test_gradient_free_is_gradient_free(name):
    @jax.custom_jvp
    def rough(nu):
        return jnp.tanh(nu)

    @jax.custom_jvp
    def rough_loss(outputs, targets):
        return jnp.sum((outputs - targets) ** 2, axis=1)

    def refuse(*_):
        raise AssertionError("differentiated")

    rough.defjvp(refuse)
    rough_loss.defjvp(refuse)
    network = nl.mlp([4, 5, 3], activation=rough, output_activation=rough)
    objective = nl.supervised(network.apply, rough_loss)
    batch = jnp.ones((2, 4)), jnp.zeros((2, 3))
    params = network.init(KEY)
    estimator = ESTIMATORS[name].make(objective)
    state = estimator.init(KEY, params)
    chex.assert_tree_all_finite(estimator.estimate(KEY, state, params, batch)[0])
    with pytest.raises(AssertionError, match="differentiated"):
        nl.backprop(objective).estimate(KEY, (), params, batch)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_untyped_keys_and_averaged_losses_are_refused(name):
    entry, problem = ESTIMATORS[name], problems.chain()

    def averaged(params, batch, propagate=nl.propagation.feedforward):
        return jnp.mean(problem.objective(params, batch, propagate=propagate))

    estimator = entry.make(averaged)
    with pytest.raises(ValueError, match=r"one loss per example, shape \[batch\]"):
        estimator.estimate(KEY, estimator.init(KEY, problem.params), problem.params, problem.batch)
    if entry.random:
        estimator = entry.make(problem.objective)
        with pytest.raises(ValueError, match=r"key must be a typed key made by jax\.random\.key"):
            estimator.estimate(
                jnp.zeros(2, jnp.uint32), estimator.init(KEY, problem.params), problem.params, problem.batch
            )
