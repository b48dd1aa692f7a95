"""Dual propagation: backprop where units are linear between their two states, an error of order β² elsewhere."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nl_jax as nl
from nl_jax.propagation import feedforward
from tests import problems

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)


def _run(problem, *settings):
    """Estimates with several settings as (gradient, state, info), and the exact gradient; compiled together."""

    @jax.jit
    def run(*at):
        estimators = [nl.dual_propagation(problem.objective, **own) for own in settings]
        exact = jax.grad(lambda p: jnp.mean(problem.objective(p, at[1])))(at[0])
        return *(estimator.estimate(KEY, (), *at) for estimator in estimators), exact

    return jax.device_get(run(problem.params, problem.batch))


def _error(grads, exact):
    off = sum(np.sum((a - b) ** 2) for a, b in zip(*map(jax.tree.leaves, (grads, exact)), strict=True))
    return float(np.sqrt(off / sum(np.sum(leaf**2) for leaf in jax.tree.leaves(exact))))


def _relu(looped=False):
    """Two paths of relu units that meet, and a relu layer twice in a row, in a loop or not; cross-entropy."""

    def forward(params, x, propagate=feedforward):
        own = lambda w, x: x @ w + 0.1  # or silent units below would put those above on their kinks
        both = lambda w, x, y: x @ w[0] + y @ w[1]
        relu = nl.activations.relu()
        low = propagate("low", own, relu, params["low"], x)
        high = propagate("high", own, relu, params["high"], low)
        again = lambda x, w, propagate, n="": (propagate(f"again{n}", own, relu, w, x), None)
        if looped:
            high, _ = nl.scan("depth", again, high, params["again"], propagate)
        else:
            for n, w in enumerate(params["again"]):
                high, _ = again(high, w, propagate, n)
        return propagate("output", both, nl.activations.identity(), params["output"], low, high)

    rng = np.random.default_rng(0)
    shapes = {"low": (4, 5), "high": (5, 5), "again": (2, 5, 5), "output": (2, 5, 3)}
    params = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    batch = rng.normal(size=(6, 4)), np.arange(6) % 3
    return problems.Problem(nl.supervised(forward, nl.losses.cross_entropy), params, batch, forward)


@pytest.mark.parametrize("looped", [False, True])
def test_of_relu_units_it_is_backprop(looped, x64):
    """To rounding, unless a kink lies between two states: then it is not, and β is to blame."""
    problem = _relu(looped)
    few = 1, 4
    *found, (crossed, _, _), exact = _run(problem, *({"beta": 1e-3, "num_steps": n} for n in few), {"beta": 3.0})
    for steps, (grads, _, info) in zip(few, found, strict=True):
        chex.assert_trees_all_close(grads, exact, rtol=1e-9, atol=1e-11)
        assert 3 <= int(info.evaluations) <= 1 + 2 * steps
        assert max(map(float, jax.tree.leaves((info.residuals.primal, info.residuals.dual)))) < 1e-9
    assert _error(crossed, exact) > 1e-2


@pytest.mark.parametrize("name", ["one_layer", "tied", "closed_over", "recurrent"])
def test_its_error_is_of_order_beta_squared(name, x64):
    """Half the β is a quarter of the error, at rest and after one sweep; of a first-order rule it would be half."""
    problem = getattr(problems, name)()
    pairs = [(beta, steps) for steps in (1, 12) for beta in (0.1, 0.05)]

    @jax.jit
    def run(params, batch):
        def estimate(pair):
            beta, steps = pair
            estimator = nl.dual_propagation(problem.objective, beta=beta, num_steps=steps)
            return estimator.estimate(KEY, (), params, batch)[0]

        exact = jax.grad(lambda params: jnp.mean(problem.objective(params, batch)))(params)
        betas, steps = zip(*pairs, strict=True)
        return jax.lax.map(estimate, (jnp.asarray(betas), jnp.asarray(steps, jnp.int32))), exact

    found, exact = jax.device_get(run(problem.params, problem.batch))
    errors = [_error(jax.tree.map(lambda g, i=i: g[i], found), exact) for i in range(len(pairs))]
    for coarse, fine in (errors[:2], errors[2:]):
        assert coarse > 1e-6
        assert coarse / fine == pytest.approx(4, rel=0.05)


def test_rests_at_the_paper_s_equations(x64):
    """s^± = f(W s̄ ± ½ u), u_l = (s⁺ − s⁻)_{l+1} Wᵀ, iterated layer by layer in numpy, of tanh units at a large β."""
    beta = 0.7
    network = nl.mlp([3, 4, 4, 2], activation=nl.activations.tanh(), bias=False)
    params = jax.jit(network.init, static_argnums=1)(KEY, jnp.float64)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(5, 3)), rng.normal(size=(5, 2))
    objective = nl.supervised(network.apply, nl.losses.half_squared_error)
    W1, W2, W3 = (np.asarray(layer["weight"]) for layer in params.values())
    u1, u2 = np.zeros((5, 4)), np.zeros((5, 4))

    def states(nu, u, f=np.tanh):
        up, down = f(nu + u / 2), f(nu - u / 2)
        return (up + down) / 2, up - down

    for _ in range(200):
        s1, d1 = states(x @ W1, u1)
        s2, d2 = states(s1 @ W2, u2)
        _, d3 = states(s2 @ W3, -beta * (s2 @ W3 - y), lambda nu: nu)
        u1, u2 = d2 @ W2.T, d3 @ W3.T
    expected = [-low.T @ d / (beta * len(x)) for low, d in ((x, d1), (s1, d2), (s2, d3))]

    @jax.jit
    def run(*at):
        settled = nl.dual_propagation(objective, beta=beta, num_steps=200, tolerance=1e-13)
        once = nl.dual_propagation(objective, beta=beta)
        return settled.estimate(KEY, (), *at), once.estimate(KEY, (), *at)[0], settled.credit(KEY, (), *at)

    (grads, _, info), once, shown = jax.device_get(run(params, (x, y)))
    for found, formula in zip(jax.tree.leaves(grads), expected, strict=True):
        np.testing.assert_allclose(found, formula, rtol=1e-9, atol=1e-11)
    assert int(info.evaluations) < 1 + 2 * 200
    assert _error(once, grads) > 1e-4  # the means have moved
    np.testing.assert_allclose(shown["hidden2"].axons, s2, rtol=1e-9)
    np.testing.assert_allclose(shown["hidden2"].delta, -d2 / beta, rtol=1e-8, atol=1e-11)
    np.testing.assert_allclose(shown["hidden2"].z, -u2 / beta, rtol=1e-8, atol=1e-11)


def test_sweeps_that_diverge_say_so():
    """Feedback without bound, of units that grow faster than linearly."""
    network = nl.mlp([2, 3, 3, 1], activation=lambda nu: nu**3, weight_init=jax.nn.initializers.constant(0.4))
    objective = nl.supervised(network.apply, nl.losses.half_squared_error)
    at = KEY, (), jax.jit(network.init)(KEY), (np.ones((2, 2), np.float32), np.zeros((2, 1), np.float32))
    _, _, info = jax.jit(nl.dual_propagation(objective, beta=5.0, num_steps=50).estimate)(*at)
    with pytest.raises(FloatingPointError, match=r"diverged at beta=5\.0: choose a smaller one"):
        nl.raise_if_failed(info.failures)


def test_bad_settings_are_refused():
    objective = lambda params, batch, propagate: batch
    with pytest.raises(ValueError, match="beta must be a finite Python number above 0, got 0"):
        nl.dual_propagation(objective, beta=0)
    with pytest.raises(ValueError, match="num_steps must be a whole number"):
        nl.dual_propagation(objective, num_steps=0)
    with pytest.raises(ValueError, match="dual_propagation needs to reach the layers of the network"):
        nl.dual_propagation(lambda params, batch: batch)
