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


def _gradient(problem):
    return jax.jit(jax.grad(lambda p: jnp.mean(problem.objective(p, problem.batch))))(problem.params)


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("make", [nl.backprop, *LAYERED])
def test_equals_autodiff(make, name, x64):
    problem = PROBLEMS[name]()
    grads, _, info = jax.jit(make(problem.objective).estimate)(KEY, (), problem.params, problem.batch)
    chex.assert_trees_all_close(grads, _gradient(problem), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(info.loss, jnp.mean(problem.objective(problem.params, problem.batch)), rtol=1e-12)


@pytest.mark.parametrize("make", LAYERED)
def test_examples_may_interact(make, x64):
    """With examples coupled through the batch's mean, the sweep still finds the whole gradient."""

    def centred(params, x):
        nu = x @ params["weight"]
        return nu - jnp.mean(nu, axis=0, keepdims=True)

    def forward(params, x, propagate=nl.propagation.feedforward):
        hidden = propagate("hidden", centred, jnp.tanh, params["hidden"], x)
        return propagate("output", centred, jnp.tanh, params["output"], hidden)

    keys = jax.random.split(KEY, 3)
    params = {
        "hidden": {"weight": jax.random.normal(keys[0], (4, 5))},
        "output": {"weight": jax.random.normal(keys[1], (5, 2))},
    }
    batch = jax.random.normal(keys[2], (6, 4)), jnp.ones((6, 2))
    problem = problems.Problem(nl.supervised(forward, nl.losses.half_squared_error), params, batch, forward)
    grads, _, _ = make(problem.objective).estimate(KEY, (), params, batch)
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


@pytest.mark.parametrize("make", LAYERED)
def test_layered_sweeps_cost_little_more(make):
    """No product is done twice: on a network of wide layers the sweep costs the FLOPs of autodiff."""
    network = nl.mlp([64, 64, 64, 64, 8], activation=nl.activations.tanh())
    objective = nl.supervised(network.apply, nl.losses.cross_entropy)
    params, batch = network.init(KEY), (jnp.ones((32, 64)), jnp.zeros(32, int))

    def cost(make):
        def grads_and_loss(params, batch):
            grads, _, info = make(objective).estimate(KEY, (), params, batch)
            return grads, info.loss  # residuals unread, so unspent

        return _flops(grads_and_loss, params, batch)

    assert cost(make) < 1.05 * cost(nl.backprop)


def test_recursion_uses_the_derivative_from_the_value():
    """A wrong derivative-from-value must show: the sweep does not fall back on autodiff."""
    wrong = nl.activations.Activation(jnp.tanh, lambda x: 2 * (1 - x**2), surrogate=True)
    network = nl.mlp([4, 5, 3], activation=wrong)
    objective = nl.supervised(network.apply, nl.losses.cross_entropy)
    params, batch = network.init(KEY), (jnp.ones((2, 4)), jnp.zeros(2, int))
    swept, _, _ = nl.backprop_recursion(objective).estimate(KEY, (), params, batch)
    exact, _, _ = nl.backprop(objective).estimate(KEY, (), params, batch)
    np.testing.assert_allclose(swept["hidden1"]["weight"], 2 * exact["hidden1"]["weight"], rtol=1e-5)
    np.testing.assert_allclose(swept["output"]["weight"], exact["output"]["weight"], rtol=1e-5)


def test_perceptron_rule_is_descent_on_the_sign_unit():
    """Seed 001: with the constant surrogate, the gradient is (sign(w·x) − y) x."""
    sign = nl.activations.sign(surrogate=jnp.ones_like)
    network = nl.mlp([3, 1], activation=sign, output_activation=sign, bias=False)
    objective = nl.supervised(network.apply, nl.losses.half_squared_error)
    params = {"output": {"weight": jnp.array([[1.0], [-1.0], [0.5]])}}
    x, y = jnp.array([[1.0, 2.0, -1.0]]), jnp.array([[1.0]])
    for make in (nl.backprop, *LAYERED):
        grads, _, _ = make(objective).estimate(KEY, (), params, (x, y))
        np.testing.assert_allclose(grads["output"]["weight"], (-1 - 1) * x.T)


def test_multipliers_are_minus_the_credit(x64):
    """At the stationary point λ_l = −∂C/∂x_l, and all of the Lagrangian's own residuals vanish."""
    problem = problems.skip()
    estimate = nl.lagrangian_backprop(problem.objective).estimate
    grads, _, info = estimate(KEY, (), problem.params, problem.batch)
    assert set(info.residuals.primal) == set(info.residuals.dual) == {"low", "high", "output"}
    for residual in jax.tree.leaves((info.residuals.primal, info.residuals.dual)):
        assert residual < 1e-14
    norms = jax.tree.map(lambda g: jnp.sqrt(jnp.sum(g**2)), grads)
    chex.assert_trees_all_close(info.residuals.gradient, norms)  # the third condition holds where learning ends


def test_lagrangian_is_stationary_only_at_the_solution(x64):
    """Away from the forward pass and its adjoint the three gradients are not zero: the residuals can fail."""
    problem = problems.chain()
    evaluate = nl.lagrangian(problem.objective)
    _, axons = record(problem.objective)(problem.params, problem.batch)
    zeros = jax.tree.map(jnp.zeros_like, axons)
    losses = evaluate(problem.params, axons, zeros, problem.batch)
    np.testing.assert_allclose(losses, problem.objective(problem.params, problem.batch))

    def total(axons, multipliers):
        return jnp.sum(evaluate(problem.params, axons, multipliers, problem.batch))

    dual, primal = jax.grad(total, argnums=(0, 1))(axons, zeros)
    assert jnp.linalg.norm(dual["output"]) > 0.1  # λ = 0 does not balance ∂C/∂x
    np.testing.assert_allclose(primal["hidden1"], 0, atol=1e-15)
    moved = {**axons, "hidden1": axons["hidden1"] + 0.5}
    np.testing.assert_allclose(jax.grad(total, argnums=1)(moved, zeros)["hidden1"], 0.5)


def test_a_lagrangian_is_per_example():
    def objective(params, batch, propagate=nl.propagation.feedforward):
        return batch @ propagate("constant", lambda p: p * 2, lambda nu: nu, params)

    with pytest.raises(
        ValueError, match=r"layer 'constant' has axons of shape \(3,\), whose first axis is not the batch"
    ):
        nl.lagrangian_backprop(objective).estimate(KEY, (), jnp.ones(3), jnp.ones((2, 3)))
    swept, _, _ = nl.backprop_recursion(objective).estimate(KEY, (), jnp.ones(3), jnp.ones((2, 3)))
    np.testing.assert_allclose(swept, [2, 2, 2])


def test_sign_refuses_derivatives():
    network = nl.mlp([3, 2, 2], activation=nl.activations.sign())
    objective = nl.supervised(network.apply, nl.losses.cross_entropy)
    batch = jnp.ones((2, 3)), jnp.zeros(2, int)
    params = network.init(KEY)
    for make in (nl.backprop, *LAYERED, nl.forward_gradient):
        with pytest.raises(ValueError, match="the sign unit has no useful derivative"):
            make(objective).estimate(KEY, (), params, batch)
    nl.node_perturbation(objective).estimate(KEY, (), params, batch)
