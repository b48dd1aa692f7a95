"""What every local rule owes its user, whatever it is."""

import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nl_jax as nl
from nl_jax import rules
from nl_jax.rules.local_learning import local_learning
from nl_jax.rules.rule import ChangeFn, InitFn
from tests.registry import RULES

KEY = jax.random.key(0)
TANH = nl.activations.tanh()
# Lateral connections for the rule that needs them; to all others they are one more parameter.
LATERAL = nl.connections.lateral_dense(lateral_init=jax.nn.initializers.normal(0.3))
NETWORK = nl.network(
    nl.Layer("input", 4),
    nl.Layer("low", 4, nl.connections.dense(), TANH),
    nl.Layer("middle", 4, LATERAL, TANH),
    nl.Layer("high", 3, nl.connections.dense(), TANH),
)
PARAMS = jax.jit(NETWORK.init)(jax.random.key(1))
INPUTS = np.random.default_rng(2).normal(size=(6, 4)).astype(np.float32)
SIGNS = np.sign(np.random.default_rng(3).normal(size=(6, 7))).astype(np.float32)
TARGETS = {"middle": SIGNS[:, :4], "high": SIGNS[:, 4:]}
EAGER = "soft_hebb", "bcm", "delta"
"""Those that are also run without `jax.jit`: one without a state, one with it, one with a teacher."""


@pytest.fixture(scope="module", params=RULES)
def case(request):
    """A rule at work in the middle layer, compiled once for all tests here; its name last."""
    estimator = local_learning(NETWORK.apply, {"middle": RULES[request.param]()})
    traces = []

    @jax.jit
    def estimate(key, state, params, batch):
        traces.append(1)
        return estimator.estimate(key, state, params, batch)

    return RULES[request.param](), estimator, estimator.init(KEY, PARAMS), estimate, traces, request.param


@pytest.mark.slow
def test_follows_the_contract(case):
    rule, estimator, state, estimate, traces, name = case
    assert isinstance(rule, rules.Rule)
    assert isinstance(estimator, nl.GradientEstimator)
    for function, protocol in ((rule.init, InitFn), (rule.change, ChangeFn)):
        assert list(inspect.signature(function).parameters) == list(inspect.signature(protocol.__call__).parameters)[1:]
    grads, next_state, info = estimate(KEY, state, PARAMS, (INPUTS, TARGETS))
    chex.assert_trees_all_equal_shapes_and_dtypes(grads, PARAMS)
    chex.assert_trees_all_equal_shapes_and_dtypes(next_state, state)
    chex.assert_tree_all_finite((grads, info))
    np.testing.assert_allclose(info.loss, sum(np.sum(np.asarray(g) ** 2) for g in jax.tree.leaves(grads)), rtol=1e-5)
    assert info.evaluations.dtype == jnp.int32
    if name in EAGER:
        eager = estimator.estimate(KEY, state, PARAMS, (INPUTS, TARGETS))
        chex.assert_trees_all_close(eager, (grads, next_state, info), rtol=1e-4, atol=1e-6)
    again = estimate(jax.random.key(9), next_state, PARAMS, (INPUTS, TARGETS))
    if not jax.tree.leaves(state):
        chex.assert_trees_all_equal(again, (grads, next_state, info))
    assert len(traces) == 1


def test_changes_its_own_layer_and_sees_nothing_above(case):
    rule, _, state, estimate, *_ = case
    grads, _, _ = estimate(KEY, state, PARAMS, (INPUTS, TARGETS))
    for name in ("low", "high"):
        chex.assert_trees_all_equal(grads[name], jax.tree.map(np.zeros_like, PARAMS[name]))
    assert np.linalg.norm(grads["middle"]["weight"]) > 1e-3
    above = jax.tree.map(lambda w: np.asarray(w) + 1, PARAMS["high"])
    other, _, _ = estimate(KEY, state, {**PARAMS, "high": above}, (INPUTS, {**TARGETS, "high": -TARGETS["high"]}))
    chex.assert_trees_all_equal(other, grads)
    # The same functions with the layer's own targets reversed: whoever asks for a teacher hears it, nobody else.
    taught, _, _ = estimate(KEY, state, PARAMS, (INPUTS, {**TARGETS, "middle": -TARGETS["middle"]}))
    same = all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(taught), jax.tree.leaves(grads), strict=True))
    assert same != rule.supervised


@pytest.fixture(scope="module")
def steps():
    """A step of two optimizers on one estimate, compiled once for all rules."""

    def learners(estimated):
        estimator = nl.GradientEstimator(lambda key, params: (), lambda *_: estimated)
        return [nl.learner(estimator, optimizer) for optimizer in (optax.sgd(0.1), optax.adam(0.1))]

    starts = [learner.init(KEY, PARAMS) for learner in learners(None)]
    return starts, jax.jit(
        lambda estimated: [x.step(KEY, start, INPUTS) for x, start in zip(learners(estimated), starts, strict=True)]
    )


@pytest.mark.usefixtures("lenient")  # optax.adam's own arithmetic
def test_learns_by_any_optimizer(case, steps):
    _, _, state, estimate, *_ = case
    grads, _, info = estimate(KEY, state, PARAMS, (INPUTS, TARGETS))
    starts, step = steps
    for start, (after, _) in zip(starts, step((grads, (), info)), strict=True):
        chex.assert_trees_all_equal_shapes_and_dtypes(after, start)
        moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(), after.params, PARAMS)
        assert moved["middle"]["weight"] > 1e-4
        assert max(jax.tree.leaves([moved["low"], moved["high"]])) == 0


def test_sgd_adds_the_change():
    learner = nl.learner(local_learning(NETWORK.apply, {"low": rules.hebb()}), optax.sgd(0.1))
    own = jax.tree.map(np.asarray, PARAMS["low"])
    state, _ = jax.jit(lambda x: learner.step(KEY, learner.init(KEY, PARAMS), x))(INPUTS)
    expected = own["weight"] + 0.1 * INPUTS.T @ np.tanh(INPUTS @ own["weight"] + own["bias"]) / 6
    np.testing.assert_allclose(state.params["low"]["weight"], expected, rtol=1e-5, atol=1e-6)
