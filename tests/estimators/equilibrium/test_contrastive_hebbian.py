"""Two phases of Hebb's rule, and backprop in the limit of weak feedback."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nl_jax as nl
from nl_jax.propagation import feedforward
from tests import problems

KEY = jax.random.key(0)


def distance(a, b):
    return float(sum(np.sum((x - y) ** 2) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)) ** 0.5)


@pytest.fixture(scope="module")
def case():
    """Estimates of any γ on a network of two hidden layers and linear outputs, and the gradient."""
    with jax.enable_x64(True):
        network = nl.mlp([3, 4, 3, 2], activation=nl.activations.tanh())
        objective = nl.supervised(network.apply, nl.losses.half_squared_error)
        keys = jax.random.split(KEY, 2)
        params = jax.jit(network.init, static_argnums=1)(KEY, jnp.float64)
        batch = jax.random.normal(keys[0], (5, 3)), jax.random.normal(keys[1], (5, 2))

        @jax.jit
        def estimate(gamma):
            estimator = nl.contrastive_hebbian(objective, feedback_strength=gamma, num_steps=200)
            return estimator.estimate(KEY, (), params, batch)

        return lambda gamma: estimate(jnp.float64(gamma)), params, batch, nl.backprop(objective)


@pytest.mark.slow
def test_error_is_of_the_order_of_the_feedback(case, x64):
    estimate, params, batch, backprop = case
    exact, _, _ = jax.jit(backprop.estimate)(KEY, (), params, batch)
    coarse, fine = (distance(estimate(gamma)[0], exact) for gamma in (2e-3, 1e-3))
    np.testing.assert_allclose(coarse / fine, 2, rtol=0.02)


def test_is_the_rule_of_xie_and_seung(case, x64):
    """ΔW_l = γ^{l−L} (x̂_l x̂_{l−1} − x_l x_{l−1}), the outputs clamped to the target, with strong feedback."""
    estimate, params, (inputs, targets), _ = case
    gamma = 0.5

    @jax.jit
    def by_hand(params):
        (w1, b1), (w2, b2), (w3, b3) = ((params[l]["weight"], params[l]["bias"][None, :]) for l in params)

        def rest(x, clamped):
            def step(_, x):
                first, second, third = x
                return (
                    jnp.tanh(inputs @ w1 + b1 + gamma * second @ w2.T),
                    jnp.tanh(first @ w2 + b2 + gamma * third @ w3.T),
                    targets if clamped else second @ w3 + b3,
                )

            return jax.lax.fori_loop(0, 200, step, x)

        free = rest((jnp.zeros((5, 4)), jnp.zeros((5, 3)), jnp.zeros((5, 2))), False)
        clamped = rest(free, True)
        grads = {}
        for l, layer in enumerate(params):
            below, below_clamped = (inputs, inputs) if l == 0 else (free[l - 1], clamped[l - 1])
            scale = -(gamma ** (l - 2)) / 5
            grads[layer] = {
                "weight": scale * (below_clamped.T @ clamped[l] - below.T @ free[l]),
                "bias": scale * jnp.sum(clamped[l] - free[l], axis=0),
            }
        return grads

    chex.assert_trees_all_close(estimate(gamma)[0], by_hand(params), rtol=1e-11, atol=1e-13)


@pytest.mark.slow
def test_one_layer_has_no_feedback_and_is_backprop(x64):
    """Outputs that are not linear are clamped to x − ∂C/∂ν, not to their target."""
    problem = problems.one_layer()

    @jax.jit
    def estimates(params):
        make = (nl.contrastive_hebbian, nl.backprop)
        return [m(problem.objective).estimate(KEY, (), params, problem.batch)[0] for m in make]

    chex.assert_trees_all_close(*estimates(problem.params), rtol=1e-12, atol=1e-14)


def test_certificate_shows_what_weak_feedback_leaves(case, x64):
    """The free phase is at rest; the multipliers miss the adjoint's by what clamping ignores, of order γ."""
    estimate, *_ = case
    coarse, fine = (estimate(gamma)[2].residuals for gamma in (2e-3, 1e-3))
    assert max(jax.tree.leaves(fine.primal)) < 1e-14
    for layer in ("hidden1", "output"):
        np.testing.assert_allclose(coarse.dual[layer] / fine.dual[layer], 2, rtol=0.02)
    assert fine.dual["hidden2"] < 1e-3 * fine.dual["output"]  # its force comes from the clamped outputs alone


def test_losses_of_lower_layers_are_refused():
    def objective(params, x, propagate=feedforward):
        low = propagate("low", lambda w, x: x @ w, jnp.tanh, params["low"], x)
        high = propagate("high", lambda w, x: x @ w, jnp.tanh, params["high"], low)
        return jnp.sum(low, axis=1) + jnp.sum(high, axis=1)

    params = {"low": jnp.eye(2), "high": jnp.eye(2)}
    with pytest.raises(ValueError, match=r"the loss reads the axons of layer 'low'.*equilibrium_propagation"):
        nl.contrastive_hebbian(objective).estimate(KEY, (), params, jnp.ones((3, 2)))
