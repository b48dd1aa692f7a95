"""Takes one step of backprop by seed 001's formulas, and by estimators."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nl_jax as nl

RATE = 0.5  # α of the one step


class Step(NamedTuple):
    """One step on one example, by the seed's formulas.

    Attributes:
      h, y: values of the hidden units and the outputs.
      delta, gamma: credit of the outputs' and the hidden units' pre-activations.
      v, w: the weights after the step; those of the constant unit 0 come first.
    """

    h: np.ndarray
    y: np.ndarray
    delta: np.ndarray
    gamma: np.ndarray
    v: np.ndarray
    w: np.ndarray


def seed_network() -> tuple[nl.Network, Any, np.ndarray, np.ndarray]:
    """Returns seed 001's three-level network of sigmoid units, p = 3, M = 4, q = 2, its parameters and one example."""
    sigmoid = nl.activations.sigmoid()
    wide = jax.nn.initializers.normal(2.0)
    net = nl.mlp([3, 4, 2], activation=sigmoid, output_activation=sigmoid, weight_init=wide)
    params = net.init(jax.random.key(1), jnp.float64)
    for layer in params.values():
        layer["bias"] = jnp.linspace(-1, 1, layer["bias"].size)
    return net, params, np.array([0.8, -0.4, 0.3]), np.array([1.0, 0.0])


def by_formula(params: Any, x: np.ndarray, target: np.ndarray) -> Step:
    """Returns h, ŷ, δ, γ and the new weights of seed 001 §2, sum by sum; unit 0 of both layers is constantly 1."""
    w, v = (_with_bias(params[name]) for name in ("hidden1", "output"))  # [0 … p, M], [0 … M, q]
    sigma = lambda z: 1 / (1 + np.exp(-z))
    (p, M), q = (w.shape[0] - 1, w.shape[1]), v.shape[1]
    x = np.array([1.0, *x])
    h = np.array([1.0, *(sigma(sum(w[j, m] * x[j] for j in range(p + 1))) for m in range(M))])
    y = np.array([sigma(sum(v[m, k] * h[m] for m in range(M + 1))) for k in range(q)])
    delta = np.array([(y[k] - target[k]) * y[k] * (1 - y[k]) for k in range(q)])
    gamma = np.array([sum(delta[k] * v[m, k] * h[m] * (1 - h[m]) for k in range(q)) for m in range(1, M + 1)])
    return Step(h[1:], y, delta, gamma, v - RATE * np.outer(h, delta), w - RATE * np.outer(x, gamma))


def _with_bias(layer: Mapping[str, Any]) -> np.ndarray:
    return np.concatenate([np.asarray(layer["bias"])[None, :], np.asarray(layer["weight"])])


def distance(make: Any, net: nl.Network, params: Any, x: np.ndarray, target: np.ndarray, step: Step) -> float:
    """Returns the largest difference of an estimator's credit and step from the formulas, in units of rounding."""
    estimator = make(nl.supervised(net.apply, nl.losses.half_squared_error))
    key, batch = jax.random.key(0), (jnp.asarray(x)[None, :], jnp.asarray(target)[None, :])
    learner = nl.learner(estimator, optax.sgd(RATE))
    state = learner.init(key, params)
    credit = jax.jit(estimator.credit)(key, state.estimator, params, batch)
    after = jax.jit(learner.step)(key, state, batch)[0].params
    hidden, output = credit["hidden1"], credit["output"]
    weights = _with_bias(after["output"]), _with_bias(after["hidden1"])
    ours = hidden.axons[0], output.axons[0], output.delta[0], hidden.delta[0], *weights
    apart = (np.abs(np.asarray(a) - b).max() / np.abs(b).max() for a, b in zip(ours, step, strict=True))
    return float(max(apart) / np.finfo(float).eps)
