"""The three exact estimators are one gradient, seen three ways."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nl_jax as nl
from nl_jax.propagation import record
from tests import problems
from tests.problems import PROBLEMS

KEY = jax.random.key(0)
LAYERED = [nl.backprop_recursion, nl.lagrangian_backprop]
ALL = [nl.backprop, *LAYERED]


def _gradient(problem):
    return jax.jit(jax.grad(lambda p: jnp.mean(problem.objective(p, problem.batch))))(problem.params)


@pytest.mark.parametrize("name", PROBLEMS)
def test_equals_autodiff(name, x64):
    problem = PROBLEMS[name]()

    @jax.jit
    def run(params, batch):
        found = {make.__name__: make(problem.objective).estimate(KEY, (), params, batch) for make in ALL}
        return found, jax.value_and_grad(lambda params: jnp.mean(problem.objective(params, batch)))(params)

    found, (loss, expected) = run(problem.params, problem.batch)
    for grads, _, info in found.values():
        chex.assert_trees_all_close(grads, expected, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(info.loss, loss, rtol=1e-12)


@pytest.mark.parametrize("make", LAYERED)
def test_examples_may_interact(make, x64):
    """With examples coupled through the batch's mean, the sweep still finds the whole gradient."""

    def centred(params, x):
        nu = x @ params["weight"]
        return nu - jnp.mean(nu, axis=0, keepdims=True)

    def forward(params, x, propagate=nl.propagation.feedforward):
        hidden = propagate("hidden", centred, jnp.tanh, params["hidden"], x)
        return propagate("output", centred, jnp.tanh, params["output"], hidden)

    rng = np.random.default_rng(0)
    params = {"hidden": {"weight": rng.normal(size=(4, 5))}, "output": {"weight": rng.normal(size=(5, 2))}}
    batch = rng.normal(size=(6, 4)), np.ones((6, 2))
    problem = problems.Problem(nl.supervised(forward, nl.losses.half_squared_error), params, batch, forward)
    grads, _, _ = jax.jit(make(problem.objective).estimate)(KEY, (), params, batch)
    chex.assert_trees_all_close(grads, _gradient(problem), rtol=1e-10, atol=1e-12)


def _flops(function, *arguments) -> float:
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


def test_backprop_costs_what_autodiff_costs():
    problem = problems.chain()

    def by_hand(params, batch):
        return jax.value_and_grad(lambda p: jnp.mean(problem.objective(p, batch)))(params)

    def ours(params, batch):
        grads, _, info = nl.backprop(problem.objective).estimate(KEY, (), params, batch)
        return info.loss, grads

    assert _flops(ours, problem.params, problem.batch) == _flops(by_hand, problem.params, problem.batch)


@pytest.mark.slow
@pytest.mark.parametrize("make", LAYERED)
def test_layered_sweeps_cost_little_more(make):
    """No product is done twice: on a network of wide layers the sweep costs the FLOPs of autodiff."""
    network = nl.mlp([64, 64, 64, 64, 8], activation=nl.activations.tanh())
    objective = nl.supervised(network.apply, nl.losses.cross_entropy)
    params = jax.eval_shape(network.init, KEY)
    batch = jax.ShapeDtypeStruct((32, 64), jnp.float32), jax.ShapeDtypeStruct((32,), jnp.int32)

    def cost(make):
        def grads_and_loss(params, batch):
            grads, _, info = make(objective).estimate(KEY, (), params, batch)
            return grads, info.loss  # residuals unread, so unspent

        return _flops(grads_and_loss, params, batch)

    assert cost(make) < 1.05 * cost(nl.backprop)


@pytest.mark.slow
def test_recursion_uses_the_derivative_from_the_value():
    """A wrong derivative-from-value must show: the sweep does not fall back on autodiff."""
    wrong = nl.activations.Activation(jnp.tanh, lambda x: 2 * (1 - x**2), surrogate=True)
    network = nl.mlp([4, 5, 3], activation=wrong)
    objective = nl.supervised(network.apply, nl.losses.cross_entropy)
    batch = np.ones((2, 4), np.float32), np.zeros(2, np.int32)

    @jax.jit
    def both():
        params = network.init(KEY)
        return [make(objective).estimate(KEY, (), params, batch)[0] for make in (nl.backprop_recursion, nl.backprop)]

    swept, exact = both()
    np.testing.assert_allclose(swept["hidden1"]["weight"], 2 * exact["hidden1"]["weight"], rtol=1e-5)
    np.testing.assert_allclose(swept["output"]["weight"], exact["output"]["weight"], rtol=1e-5)


def test_perceptron_rule_is_descent_on_the_sign_unit():
    """Seed 001: with the constant surrogate, the gradient is (sign(w·x) − y) x."""
    sign = nl.activations.sign(surrogate=jnp.ones_like)
    network = nl.mlp([3, 1], activation=sign, output_activation=sign, bias=False)
    objective = nl.supervised(network.apply, nl.losses.half_squared_error)
    params = {"output": {"weight": np.float32([[1.0], [-1.0], [0.5]])}}
    x, y = np.float32([[1.0, 2.0, -1.0]]), np.float32([[1.0]])
    run = jax.jit(lambda params: [make(objective).estimate(KEY, (), params, (x, y))[0] for make in ALL])
    for grads in run(params):
        np.testing.assert_allclose(grads["output"]["weight"], (-1 - 1) * x.T)


def test_multipliers_are_minus_the_credit(x64):
    """At the stationary point λ_l = −∂C/∂x_l, and all of the Lagrangian's own residuals vanish."""
    problem = problems.skip()
    estimate = jax.jit(nl.lagrangian_backprop(problem.objective).estimate)
    grads, _, info = estimate(KEY, (), problem.params, problem.batch)
    assert set(info.residuals.primal) == set(info.residuals.dual) == {"low", "high", "output"}
    for residual in jax.tree.leaves((info.residuals.primal, info.residuals.dual)):
        assert residual < 1e-14
    norms = jax.tree.map(lambda g: np.sqrt(np.sum(np.asarray(g) ** 2)), grads)
    chex.assert_trees_all_close(info.residuals.gradient, norms)  # the third condition holds where learning ends


def test_lagrangian_is_stationary_only_at_the_solution(x64):
    """Away from the forward pass and its adjoint the three gradients are not zero: the residuals can fail."""
    problem = problems.chain()
    evaluate = nl.lagrangian(problem.objective)
    _, axons = jax.jit(record(problem.objective))(problem.params, problem.batch)
    zeros = jax.tree.map(np.zeros_like, axons)

    @jax.jit
    def run(axons, multipliers):
        losses = lambda axons, multipliers: evaluate(problem.params, axons, multipliers, problem.batch)
        total = lambda *at: jnp.sum(losses(*at))
        own = problem.objective(problem.params, problem.batch)
        return losses(axons, multipliers), own, jax.grad(total, argnums=(0, 1))(axons, multipliers)

    losses, own, (dual, primal) = run(axons, zeros)
    np.testing.assert_allclose(losses, own)
    assert np.linalg.norm(dual["output"]) > 0.1  # λ = 0 does not balance ∂C/∂x
    np.testing.assert_allclose(primal["hidden1"], 0, atol=1e-15)
    moved = {**axons, "hidden1": np.asarray(axons["hidden1"]) + 0.5}
    np.testing.assert_allclose(run(moved, zeros)[2][1]["hidden1"], 0.5)


def test_a_lagrangian_is_per_example():
    def objective(params, batch, propagate=nl.propagation.feedforward):
        return batch @ propagate("constant", lambda p: p * 2, lambda nu: nu, params)

    at = KEY, (), np.ones(3, np.float32), np.ones((2, 3), np.float32)
    with pytest.raises(
        ValueError, match=r"layer 'constant' has axons of shape \(3,\), whose first axis is not the batch"
    ):
        jax.eval_shape(nl.lagrangian_backprop(objective).estimate, *at)
    swept, _, _ = jax.jit(nl.backprop_recursion(objective).estimate)(*at)
    np.testing.assert_allclose(swept, [2, 2, 2])


def test_sign_refuses_derivatives():
    network = nl.mlp([3, 2, 2], activation=nl.activations.sign())
    objective = nl.supervised(network.apply, nl.losses.cross_entropy)
    batch = np.ones((2, 3), np.float32), np.zeros(2, np.int32)
    params = jax.eval_shape(network.init, KEY)
    for make in (*ALL, nl.forward_gradient):
        with pytest.raises(ValueError, match="the sign unit has no useful derivative"):
            jax.eval_shape(make(objective).estimate, KEY, (), params, batch)
    jax.eval_shape(nl.node_perturbation(objective).estimate, KEY, (), params, batch)
