"""Trains a sigmoid unit from many initialisations and finds the minima that it ends in."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.nn import initializers

import nl_jax as nl
from experiments.restarts.theory import INPUTS, TARGETS, Settings, landscape

CONVERGED = 1e-3  # largest distance of weights from a minimum


class Runs(NamedTuple):
    """Where the runs of one optimizer ended.

    Attributes:
      minimum: the minimum as D binary digits, 1 where a weight is in the worse minimum, [restarts].
      loss: summed over examples, [restarts].
      distance: largest distance of any weight from that minimum's, [restarts].
      gradient: norm of the gradient, [restarts].
      curvature: smallest eigenvalue of the Hessian, [restarts].
    """

    minimum: np.ndarray
    loss: np.ndarray
    distance: np.ndarray
    gradient: np.ndarray
    curvature: np.ndarray

    @property
    def misses(self) -> np.ndarray:
        """Number of weights in the worse minimum, [restarts]."""
        return np.bitwise_count(self.minimum)

    @property
    def converged(self) -> np.ndarray:
        """Whether each run is at a minimum, [restarts]."""
        return (self.distance < CONVERGED) & (self.curvature > 0)


def train(optimizer: optax.GradientTransformation, steps: int, settings: Settings) -> Runs:
    """Trains all restarts at once and finds their minima."""
    D, sigmoid = settings.inputs, nl.activations.sigmoid()
    net = nl.mlp([D, 1], activation=sigmoid, weight_init=initializers.normal(settings.spread), bias=False,
                 output_activation=sigmoid)  # fmt: skip
    x = jnp.concatenate([along * jnp.eye(D) for along in INPUTS])
    data = x, jnp.repeat(jnp.array(TARGETS), D)[:, None]
    objective = nl.supervised(net.apply, nl.losses.half_squared_error)

    def total(params: Any) -> jax.Array:
        return jnp.sum(objective(params, data))

    found = nl.restarts(
        nl.learner(nl.backprop(objective), optimizer), jax.random.key(0),
        functools.partial(net.init, dtype=float), data, score=total, num_restarts=settings.restarts, num_steps=steps,
        record=lambda state, info: (),
    )  # fmt: skip
    w = found.states.params["output"]["weight"]

    @jax.jit
    @jax.vmap
    def derivatives(w: jax.Array) -> tuple[jax.Array, jax.Array]:
        def of(flat: jax.Array) -> jax.Array:
            return total({"output": {"weight": flat[:, None]}})

        flat = w[:, 0]
        return jnp.linalg.norm(jax.grad(of)(flat)), jnp.linalg.eigvalsh(jax.hessian(of)(flat))[0]

    gradient, curvature = map(np.asarray, derivatives(w))
    weights, here = np.asarray(w)[:, :, 0], landscape()
    missed = weights > here.barrier
    distance = np.abs(weights - np.where(missed, here.worse, here.best)).max(axis=1)
    return Runs(missed @ (1 << np.arange(D)), np.asarray(found.scores), distance, gradient, curvature)
