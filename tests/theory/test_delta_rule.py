"""Seed 001's own formulas against the estimators that should be them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nl_jax as nl
from nl_jax.theory import delta_rule
from tests import problems

KEY = jax.random.key(0)
EXACT = nl.backprop, nl.backprop_recursion


def _with_constant(x):
    return jnp.concatenate([jnp.ones_like(x[:, :1]), x], axis=1)


def _weights(layer):
    """Biases as the weights of the constant, which comes first."""
    return jnp.concatenate([layer["bias"][None], layer["weight"]])


def _estimates(objective, params, batch):
    return [make(objective).estimate(KEY, (), params, batch)[0] for make in EXACT]


def _mean_over(examples, gradient, *weights):
    """What an estimator returns: the mean over examples of seed 001's ∇f_i."""
    per_example = jax.vmap(lambda x, y: gradient(*weights, x, y))(*examples)
    return jax.tree.map(lambda g: jnp.mean(g, axis=0), per_example)


def test_one_layer(x64):
    """∇f_i = δ x with δ = (ŷ − y) ŷ (1 − ŷ) (seed 001 §1)."""
    network = nl.mlp([4, 3], activation=nl.activations.sigmoid(), output_activation=nl.activations.sigmoid())
    objective = nl.supervised(network.apply, nl.losses.half_squared_error)

    @jax.jit
    def run(x, y):
        params = network.init(KEY, jnp.float64)
        expected = _mean_over((_with_constant(x), y), delta_rule.gradient, _weights(params["output"]))
        return expected, [_weights(grads["output"]) for grads in _estimates(objective, params, (x, y))]

    expected, estimates = run(*problems.one_layer().batch)
    for found in estimates:
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_two_layers(x64):
    """γ_m = Σ_k δ_k v_km h_m (1 − h_m) (seed 001 §2)."""
    sigmoid = nl.activations.sigmoid()
    network = nl.mlp([4, 5, 3], activation=sigmoid, output_activation=sigmoid)
    objective = nl.supervised(network.apply, nl.losses.half_squared_error)

    @jax.jit
    def run(x, y):
        params = network.init(KEY, jnp.float64)
        v, w = _weights(params["output"]), _weights(params["hidden1"])
        found = [(_weights(g["output"]), _weights(g["hidden1"])) for g in _estimates(objective, params, (x, y))]
        return _mean_over((_with_constant(x), y), delta_rule.two_layer_gradients, v, w), found

    (by_v, by_w), estimates = run(*problems.one_layer().batch)
    for found_v, found_w in estimates:
        np.testing.assert_allclose(found_v, by_v, rtol=1e-12)
        np.testing.assert_allclose(found_w, by_w, rtol=1e-12)


def test_one_unit_is_a_layer_of_one(x64):
    w, x, y = np.array([0.5, -1.0]), np.array([1.0, 2.0]), np.array(0.25)
    run = jax.jit(lambda w, x, y: (delta_rule.gradient(w, x, y), delta_rule.gradient(w[:, None], x, y[None])[:, 0]))
    alone, layer = run(w, x, y)
    np.testing.assert_allclose(alone, layer, rtol=1e-15)
    output = 1 / (1 + np.exp(1.5))
    np.testing.assert_allclose(alone, (output - 0.25) * output * (1 - output) * x, rtol=1e-14)


def test_other_shapes_are_refused():
    w = jnp.zeros([2, 3])
    for x, y in (([5, 2], [5, 3]), ([2], [1]), ([2], []), ([3], [3])):
        with pytest.raises(ValueError, match=r"x must be of shape \[2\] and y of \[3\].*jax\.vmap"):
            delta_rule.gradient(w, jnp.zeros(x), jnp.zeros(y))
