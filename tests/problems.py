"""Small problems the tests share: each a network, an objective on it and a batch."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

import nl_jax as nl
from nl_jax.conformance import problem as conformance_problem
from nl_jax.conformance.problem import Problem
from nl_jax.propagation import feedforward


def _once(make: Callable[[], Problem]) -> Callable[[], Problem]:
    """The same problem for all tests of one precision, so that what they compile is compiled once."""
    cached = functools.cache(lambda x64: make())
    return functools.wraps(make)(lambda: cached(jax.config.jax_enable_x64))


def _labelled(forward, params, inputs, classes: int) -> Problem:
    labels = jnp.arange(inputs.shape[0]) % classes
    return Problem(nl.supervised(forward, nl.losses.cross_entropy), params, (inputs, labels), forward)


def _inputs(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(7), shape)


def _dtype():
    return jnp.asarray(0.0).dtype


@_once
def one_layer() -> Problem:
    network = nl.mlp([4, 3], activation=nl.activations.tanh(), output_activation=nl.activations.sigmoid())
    objective = nl.supervised(network.apply, nl.losses.half_squared_error)
    targets = jax.random.uniform(jax.random.key(8), (5, 3))
    return Problem(objective, network.init(jax.random.key(1), _dtype()), (_inputs(5, 4), targets), network.apply)


chain = _once(conformance_problem.chain)


@_once
def skip() -> Problem:
    c = nl.connections
    network = nl.network(
        nl.Layer("input", 4),
        nl.Layer("low", 5, c.dense(), nl.activations.sigmoid()),
        nl.Layer("high", 4, c.dense(), nl.activations.relu()),
        nl.Layer("output", 3, [c.dense("high"), c.dense("low", bias=False), c.dense("input", bias=False)]),
    )
    return _labelled(network.apply, network.init(jax.random.key(2), _dtype()), _inputs(6, 4), 3)


@_once
def convolution() -> Problem:
    c = nl.connections
    network = nl.network(
        nl.Layer("image", (6, 6, 2)),
        nl.Layer("features", (4, 4, 3), c.conv(3), nl.activations.tanh()),
        nl.Layer("pooled", None, c.max_pool(2)),
        nl.Layer("vector", None, c.flatten()),
        nl.Layer("output", 3, c.dense()),
    )
    return _labelled(network.apply, network.init(jax.random.key(3), _dtype()), _inputs(4, 6, 6, 2), 3)


def _affine(params, x):
    return x @ params["weight"] + params["bias"][None, :]


@_once
def tied() -> Problem:
    """A hand-written program: a weight used twice, plain activations, glue between layers, a used-up parameter."""

    def transposed(params, x):
        return x @ params["weight"].T

    def forward(params, x, propagate=feedforward):
        code = propagate("encode", _affine, jnp.tanh, params["shared"], x)
        glued = jnp.concatenate([code, params["gain"] * x[:, :1]], axis=1)
        mixed = propagate("mix", _affine, jax.nn.softplus, params["mix"], glued)
        back = propagate("decode", transposed, jnp.tanh, params["shared"], mixed)
        return back * params["scale"][None, :]

    keys = jax.random.split(jax.random.key(4), 3)
    params = {
        "shared": {"weight": jax.random.normal(keys[0], (4, 3)) / 2, "bias": jnp.full(3, 0.1)},
        "mix": {"weight": jax.random.normal(keys[1], (4, 3)) / 2, "bias": jnp.full(3, 0.2)},
        "gain": jnp.asarray(0.7),
        "scale": jax.random.normal(keys[2], (4,)),
    }
    objective = nl.supervised(forward, nl.losses.half_squared_error)
    inputs = _inputs(6, 4)
    return Problem(objective, params, (inputs, inputs), forward)


@_once
def closed_over() -> Problem:
    """Connections and activations that hold parameters of their own accord, not through `propagate`."""

    def forward(params, x, propagate=feedforward):
        def connection(own, x):
            return x @ own + params["shift"]

        def activation(nu):
            return params["gain"] * jnp.tanh(nu)

        hidden = propagate("hidden", connection, activation, params["hidden"], x)
        return propagate("output", connection, activation, params["output"], hidden)

    keys = jax.random.split(jax.random.key(9), 2)
    params = {
        "hidden": jax.random.normal(keys[0], (4, 5)),
        "output": jax.random.normal(keys[1], (5, 3)),
        "shift": jnp.asarray(0.3),
        "gain": jnp.asarray(1.3),
    }
    return _labelled(forward, params, _inputs(6, 4), 3)


@_once
def batch_normed() -> Problem:
    """Examples interact: two normalised layers, the higher of two connections. Not for per-example credit."""
    c = nl.connections
    network = nl.network(
        nl.Layer("input", 2),
        nl.batch_norm(nl.Layer("low", 3, c.dense(bias=False), nl.activations.tanh())),
        nl.batch_norm(
            nl.Layer("high", 2, [c.dense("low", bias=False), c.dense("input")], nl.activations.sigmoid()), epsilon=0.1
        ),
        nl.Layer("output", 2, c.dense()),
    )
    params = jax.jit(network.init, static_argnums=1)(jax.random.key(3), _dtype())
    for layer in ("low", "high"):  # not ones and zeros, where a wrong γ or β could hide
        params[layer] |= {"gamma": jnp.linspace(0.7, 1.5, params[layer]["gamma"].size, dtype=_dtype())}
        params[layer] |= {"beta": jnp.linspace(-0.3, 0.4, params[layer]["beta"].size, dtype=_dtype())}
    params["output"]["weight"] *= 3  # so that much hangs on what the examples do to one another
    return _labelled(network.apply, params, _inputs(4, 2), 2)


PROBLEMS = {f.__name__: f for f in (one_layer, chain, skip, convolution, tied, closed_over)}
