"""Recurrent programs that the rules of learning while time goes on are tested on."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

import nl_jax as nl
from nl_jax.evaluation.conformance.problem import Problem
from nl_jax.propagation import feedforward
from tests.equations import count


def affine(params, x):
    return x @ params["weight"] + params["bias"][None, :]


def connected(params, x, hidden):
    return x @ params["weight"] + hidden @ params["recurrent"] + params["bias"][None, :]


def _weights(key, inputs, units, recurrent=True):
    keys = jax.random.split(key, 2)
    own = {"weight": jax.random.normal(keys[0], (inputs, units)) / 2, "bias": jnp.full(units, 0.1)}
    return own | ({"recurrent": jax.random.normal(keys[1], (units, units)) / 2} if recurrent else {})


@functools.cache
def leaky(steps=5, summed=True, x64=True, connection=connected):
    """Leaky rate units with a read-out in the loop, its loss summed there; or one from the stacked trace, after it."""
    del x64

    def objective(params, batch, propagate=feedforward):
        xs, targets = (jnp.swapaxes(leaf, 0, 1) for leaf in batch)

        def step(carry, slices, propagate):
            (hidden, loss), (x, target) = carry, slices
            fed = propagate("hidden", connection, jnp.tanh, params["hidden"], x, hidden)
            hidden = 0.7 * hidden + 0.3 * fed
            output = propagate("output", affine, lambda nu: nu, params["output"], hidden)
            error = jnp.sum((output - target) ** 2, axis=1)
            return (hidden, loss + error if summed else loss), None if summed else error

        start = jnp.zeros((xs.shape[1], 3), xs.dtype), jnp.zeros(xs.shape[1], xs.dtype)
        (_, loss), errors = nl.scan("time", step, start, (xs, targets), propagate)
        return loss if summed else jnp.sum(errors, axis=0)

    @jax.jit
    def drawn():
        keys = jax.random.split(jax.random.key(0), 4)
        params = {"hidden": _weights(keys[0], 2, 3), "output": _weights(keys[1], 3, 2, recurrent=False)}
        return params, (jax.random.normal(keys[2], (4, steps, 2)), jax.random.normal(keys[3], (4, steps, 2)))

    return Problem(objective, *drawn(), None)


@functools.cache
def gated(x64=True):
    """Two layers a step, one the other's gate; a counter and indices in the carry and among what is read."""
    del x64

    def objective(params, batch, propagate=feedforward):
        xs, labels = jnp.swapaxes(batch[0], 0, 1), batch[1]

        def step(carry, slices, propagate):
            (hidden, count), (x, index) = carry, slices
            gate = propagate("gate", connected, jax.nn.sigmoid, params["gate"], x, hidden)
            fed = propagate("candidate", connected, jnp.tanh, params["candidate"], x, gate * hidden)
            hidden = gate * hidden + (1 - gate) * fed * (1 + index[:, None].astype(fed.dtype))
            return (hidden, count + 1), hidden

        start = jnp.zeros((xs.shape[1], 3), xs.dtype), jnp.int32(0)
        (hidden, count), trace = nl.scan("time", step, start, (xs, jnp.ones(xs.shape[:2], int)), propagate)
        outputs = propagate(
            "output", affine, lambda nu: nu, params["output"], trace.mean(axis=0) + hidden / count.astype(hidden.dtype)
        )
        return nl.losses.cross_entropy(outputs, labels)

    @jax.jit
    def drawn():
        keys = jax.random.split(jax.random.key(1), 4)
        params = {"gate": _weights(keys[0], 2, 3), "candidate": _weights(keys[1], 2, 3)}
        params |= {"output": _weights(keys[2], 3, 3, recurrent=False)}
        return params, (jax.random.normal(keys[3], (5, 4, 2)), jnp.arange(5) % 3)

    return Problem(objective, *drawn(), None)


def by_step(problem):
    """The batch with its steps first."""
    return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), problem.batch)


class Cost(NamedTuple):
    """What an estimate takes: compiled temporary bytes, but for copies of the batch, rearranged; traced equations."""

    temporaries: float
    equations: int


def cost(make, steps, copies=1.0):
    """What an estimate on so many steps takes."""
    problem = leaky(steps)
    estimator = make(problem.objective)
    state = jax.eval_shape(estimator.init, jax.random.key(1), problem.params)
    traced = jax.jit(estimator.estimate).trace(jax.random.key(0), state, problem.params, problem.batch)
    temporary = traced.lower().compile().memory_analysis().temp_size_in_bytes
    return Cost(temporary - copies * sum(leaf.nbytes for leaf in problem.batch), count(traced.jaxpr))
