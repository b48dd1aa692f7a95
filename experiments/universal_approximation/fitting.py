"""Fits one hidden layer of sigmoid units to functions, from many initialisations."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.linalg  # noqa: F401 - JAX's LAPACK: there before its threads are limited

import nl_jax as nl
from experiments.harness.failure import ExperimentError


class Target(NamedTuple):
    """A continuous function g on [0, 1]^p."""

    formula: str
    dimensions: int
    function: Callable[[jax.Array], jax.Array]
    """`function(points [points, p]) -> [points]`."""


TARGETS = {
    "smooth": Target("$1 / (1 + 25 (2x - 1)^2)$", 1, lambda x: 1 / (1 + 25 * (2 * x[:, 0] - 1) ** 2)),
    "kink": Target("$|x - 1/2|$", 1, lambda x: jnp.abs(x[:, 0] - 0.5)),
    "oscillating": Target(r"$\sin 6\pi x$", 1, lambda x: jnp.sin(6 * jnp.pi * x[:, 0])),
    "surface": Target(
        r"$\sin \pi x_1 \, \cos \pi x_2$", 2, lambda x: jnp.sin(jnp.pi * x[:, 0]) * jnp.cos(jnp.pi * x[:, 1])
    ),
}

TRAINING_POINTS = {1: 201, 2: 17}  # along each dimension
TEST_POINTS = {1: 2001, 2: 101}
STEEPNESS = 2.0, 60.0  # |w| of the initial units: from nearly linear to a step within a tenth of the cube
RIDGE = 1e-8  # of read-outs: far below the fitted values, far above rounding


class Fit(NamedTuple):
    """One function fitted with M units, from all initialisations; errors are on the fine grid."""

    sup: np.ndarray
    """max |G − g|, [restarts]."""
    rms: np.ndarray
    """√mean (G − g)², [restarts]."""
    best: np.ndarray
    """G of the run with the best fit to the training points, [points of the fine grid]."""
    best_index: int
    largest_weight: float
    """max |v_m| of that run."""


def grid(dimensions: int, points: int) -> jax.Array:
    """All points of [0, 1]^p with coordinates k / (points − 1), [points^p, p]."""
    axis = jnp.linspace(0, 1, points)
    return jnp.stack([x.ravel() for x in jnp.meshgrid(*[axis] * dimensions, indexing="ij")], axis=1)


def fine_grid(target: Target) -> jax.Array:
    """The points at which errors are measured, between the training points as well as on them."""
    return grid(target.dimensions, TEST_POINTS[target.dimensions])


class Approximation(NamedTuple):
    """G with M units on [0, 1]^p, and its learner; shared by all functions, so that it is compiled once."""

    init: Callable[[jax.Array], Any]
    objective: Callable[..., jax.Array]
    learner: nl.Learner
    outputs: Callable[[Any, nl.base.Batch, jax.Array], tuple[Any, jax.Array]]
    """`outputs(params, batch, x) -> (params with the best read-out, G(x))`, for many params at once."""


@functools.cache
def _approximation(p: int, M: int, updates: int, learning_rate: float) -> Approximation:
    network = nl.mlp([p, M, 1], activation=nl.activations.sigmoid())
    fit = nl.supervised(network.apply, nl.losses.half_squared_error)

    def init(key: jax.Array) -> Any:
        """Initialises units that rise through a random point of the cube, in a random direction."""
        params_key, direction_key, point_key, steepness_key = jax.random.split(key, 4)
        direction = jax.random.normal(direction_key, (p, M))
        low, high = np.log(STEEPNESS)
        steepness = jnp.exp(jax.random.uniform(steepness_key, (M,), minval=low, maxval=high))
        weight = steepness * direction / jnp.linalg.norm(direction, axis=0)
        bias = -jnp.sum(weight * jax.random.uniform(point_key, (p, M)), axis=0)
        return network.init(params_key, weight.dtype) | {"hidden1": {"weight": weight, "bias": bias}}

    def solved(params: Any, batch: nl.base.Batch) -> Any:
        """Solves for the best read-out of the current hidden units; the constant unit's weight is the bias."""
        x, y = batch
        hidden = network.axons(params, x)["hidden1"]
        design = jnp.concatenate([jnp.ones_like(hidden[:, :1]), hidden], axis=1)
        # A small ridge, since similar units would get huge weights of opposite signs.
        q, r = jnp.linalg.qr(jnp.concatenate([design, RIDGE * jnp.eye(M + 1)]))
        v = jax.scipy.linalg.solve_triangular(r, q[: len(x)].T @ y)
        return params | {"output": {"weight": v[1:], "bias": v[0]}}

    def objective(params: Any, batch: nl.base.Batch, propagate: Any = nl.propagation.feedforward) -> jax.Array:
        # At its minimum over v the loss has zero gradient in v, so v is held constant while the hidden units' gradient
        # is taken (variable projection, Golub & Pereyra 1973).
        readout = jax.lax.stop_gradient(solved(params, batch))["output"]
        return fit(params | {"output": readout}, batch, propagate)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None, None))
    def outputs(params: Any, batch: nl.base.Batch, x: jax.Array) -> tuple[Any, jax.Array]:
        params = solved(params, batch)
        return params, network.apply(params, x)[:, 0]

    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, updates))
    return Approximation(jax.jit(init), jax.jit(objective), nl.learner(nl.backprop(objective), optimizer), outputs)


def fitted(target: Target, M: int, *, restarts: int, updates: int, learning_rate: float) -> Fit:
    """Fits a function with M units from all initialisations.

    Raises:
      ExperimentError: if all runs diverge.
    """
    p = target.dimensions
    approximation = _approximation(p, M, updates, learning_rate)
    x = grid(p, TRAINING_POINTS[p])
    batch = x, target.function(x)[:, None]
    try:
        found = nl.restarts(
            approximation.learner, jax.random.key(0), approximation.init, batch,
            score=lambda params: jnp.mean(approximation.objective(params, batch)),
            num_restarts=restarts, num_steps=updates, steps_per_dispatch=updates, progress=False,
        )  # fmt: skip
    except nl.Diverged as stopped:
        raise ExperimentError(f"{M} units: {stopped} (--learning-rate)") from stopped
    fine = fine_grid(target)
    params, outputs = jax.tree.map(np.asarray, approximation.outputs(found.states.params, batch, fine))
    errors = outputs - np.asarray(target.function(fine))
    return Fit(
        sup=np.max(np.abs(errors), axis=1),
        rms=np.sqrt(np.mean(errors**2, axis=1)),
        best=outputs[found.best_index],
        best_index=found.best_index,
        largest_weight=float(np.max(np.abs(params["output"]["weight"][found.best_index]))),
    )
