"""Compares four estimators' credit on digits, and node perturbation's with theory."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import nl_jax as nl
from experiments.harness.data import digits
from nl_jax.theory import perturbation


class Comparison(NamedTuple):
    """Credit δ on one batch; for node perturbation, that of the first estimate.

    Attributes:
      delta: credit by estimator and layer, [images, units].
      cosine: cosine of δ to backprop's δ, by estimator, [layers].
      size: norm of δ over that of backprop's δ, by estimator, [layers].
      law: node perturbation's expected relative error ‖δ̂ − δ‖²/‖δ‖² by theory, [layers].
      error: its measured relative error, [estimates, layers].
      slope: ⟨δ̂, δ⟩/‖δ‖², 1 on average for an unbiased estimate, [estimates, layers].
    """

    delta: dict[str, dict[str, np.ndarray]]
    cosine: dict[str, np.ndarray]
    size: dict[str, np.ndarray]
    law: np.ndarray
    error: np.ndarray
    slope: np.ndarray

    @property
    def deviation(self) -> float:
        """Largest deviation of errors from theory and of slopes from 1, in standard errors."""
        return max(_deviation(self.error, self.law), _deviation(self.slope, 1.0))


def compare(*, units: int, depth: int, images: int, samples: int, estimates: int) -> Comparison:
    """Compares four estimators' credit on digits, at the initial weights.

    Args:
      units, depth: of the network's hidden layers.
      images: digits in the batch.
      samples: K, noisy passes of an estimate by node perturbation.
      estimates: its number of estimates.
    """
    train = digits().train
    batch = train.images[:images].astype(float), train.labels[:images]
    net = nl.mlp([64, *[units] * depth, 10], activation=nl.activations.tanh())
    params = jax.jit(net.init, static_argnums=1)(jax.random.key(0), jnp.float64)
    objective = nl.supervised(net.apply, nl.losses.cross_entropy)
    estimators = {
        "backprop": nl.backprop(objective),
        "feedback alignment": nl.feedback_alignment(objective),
        "predictive coding": nl.predictive_coding(objective),
        "node perturbation": nl.node_perturbation(objective, num_samples=samples),
    }

    def shown(estimator: nl.GradientEstimator, count: int) -> dict[str, np.ndarray]:
        """Returns δ by layer, [estimates, images, units]."""
        state = estimator.init(jax.random.key(2), params)

        def one(key: nl.base.Key) -> dict[str, nl.base.Array]:
            return {name: of.delta for name, of in estimator.credit(key, state, params, batch).items()}

        keys = jax.random.split(jax.random.key(3), count)
        found = jax.jit(lambda keys: jax.lax.map(one, keys))(keys)
        return {name: np.asarray(found[name]) for name in list(net.shapes)[1:]}

    every = {name: shown(of, estimates if name == "node perturbation" else 1) for name, of in estimators.items()}
    delta = {name: {layer: of[layer][0] for layer in of} for name, of in every.items()}
    right, noisy = delta["backprop"], every["node perturbation"]
    power = _inner(right, right)
    off = {name: of - right[name] for name, of in noisy.items()}
    size = {name: np.sqrt(_inner(of, of) / power) for name, of in delta.items()}
    cosine = {name: _inner(of, right) / power / size[name] for name, of in delta.items()}
    expected = np.asarray(law(right, samples)) / power
    return Comparison(delta, cosine, size, expected, _inner(off, off) / power, _inner(noisy, right) / power)


def _inner(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns ⟨a, b⟩ of each layer, stacked along a last axis."""
    return np.stack([np.sum(a[name] * b[name], axis=(-2, -1)) for name in a], axis=-1)


@functools.partial(jax.jit, static_argnums=1)
def law(delta: Mapping[str, nl.base.Array], samples: int) -> nl.base.Array:
    """Returns E ‖δ̂ − δ‖² by layer, Σ_n (units ‖δ_n‖² + ‖δ_nl‖²)/K, with ‖δ_n‖² over all nodes of example n."""
    of_all = jnp.sum(jnp.stack([jnp.sum(of**2, axis=1) for of in delta.values()]), axis=0)
    one = jnp.ones((1, 1))  # δ is the gradient with respect to a weight whose input is 1
    variance = functools.partial(perturbation.node_variance, one, K=samples, kurtosis=3)
    return jnp.stack([jnp.sum(jax.vmap(variance)(of[:, None], of_all[:, None])) for of in delta.values()])


def _deviation(values: np.ndarray, expected: Any) -> float:
    error = values.std(axis=0, ddof=1) / len(values) ** 0.5
    return float(np.max(np.abs(values.mean(axis=0) - expected) / error))
