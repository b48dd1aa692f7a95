"""Small problems the tests share: each a network, an objective on it and a batch."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

import nl_jax as nl
from nl_jax.evaluation.conformance.problem import Problem
from nl_jax.propagation import feedforward


def _once(make: Callable[[], Problem]) -> Callable[[], Problem]:
    """The same problem for all tests of one precision, so that what they compile is compiled once."""
    cached = functools.cache(lambda x64: compiled(make))
    return functools.wraps(make)(lambda: cached(jax.config.jax_enable_x64))


def compiled(make: Callable[[], Problem]) -> Problem:
    """The problem, its arrays made by one program instead of one for each operation."""
    made = []

    @jax.jit
    def arrays():
        made.append(make())
        return made[0].params, made[0].batch

    params, batch = arrays()
    return made[0]._replace(params=_ordered(made[0].params, params), batch=batch)


def _ordered(like, values):
    """Dictionaries in the order of others', which JAX returns sorted."""
    return {name: _ordered(like[name], values[name]) for name in like} if isinstance(like, dict) else values


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


@_once
def chain() -> Problem:
    network = nl.mlp([4, 5, 3], activation=nl.activations.tanh())
    return _labelled(network.apply, network.init(jax.random.key(1), _dtype()), _inputs(6, 4), 3)


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
    params = network.init(jax.random.key(3), _dtype())
    for layer in ("low", "high"):  # not ones and zeros, where a wrong γ or β could hide
        params[layer] |= {"gamma": jnp.linspace(0.7, 1.5, params[layer]["gamma"].size, dtype=_dtype())}
        params[layer] |= {"beta": jnp.linspace(-0.3, 0.4, params[layer]["beta"].size, dtype=_dtype())}
    params["output"]["weight"] *= 3  # so that much hangs on what the examples do to one another
    return _labelled(network.apply, params, _inputs(4, 2), 2)


STEPS = 3


def _recurrent(looped: bool) -> Problem:
    """A recurrent network whose activation closes over a state of the loop, the cell's leak; one layer a step."""

    def connected(params, x, hidden):
        return x @ params["weight"] + hidden @ params["recurrent"] + params["bias"][None, :]

    def forward(params, xs, propagate=feedforward):
        def step(carry, x, propagate, name="hidden"):
            hidden, v = carry
            hidden = propagate(name, connected, lambda nu: jnp.tanh(nu + 0.8 * v), params["hidden"], x, hidden)
            v = 0.8 * v + hidden
            return (hidden, v), hidden

        silence = jnp.zeros((xs.shape[0], 3), xs.dtype)
        carry, xs = (silence, silence), jnp.swapaxes(xs, 0, 1)
        if looped:
            (hidden, _), trace = nl.scan("time", step, carry, xs, propagate)
        else:
            trace = []
            for t in range(STEPS):
                carry, y = step(carry, xs[t], propagate, f"hidden{t}")
                trace.append(y)
            (hidden, _), trace = carry, jnp.stack(trace)
        return propagate("output", _affine, lambda nu: nu, params["output"], hidden + trace.sum(axis=0))

    keys = jax.random.split(jax.random.key(5), 3)
    params = {
        "hidden": {
            "weight": jax.random.normal(keys[0], (2, 3)),
            "recurrent": jax.random.normal(keys[1], (3, 3)) / 2,
            "bias": jnp.full(3, 0.1),
        },
        "output": {"weight": jax.random.normal(keys[2], (3, 3)), "bias": jnp.zeros(3)},
    }
    return _labelled(forward, params, _inputs(5, STEPS, 2), 3)


def _depth(looped: bool) -> Problem:
    """Residual blocks of two layers, their parameters stacked."""

    def forward(params, x, propagate=feedforward):
        def block(x, own, propagate, number=""):
            low = propagate(f"low{number}", _affine, nl.activations.tanh(), own["low"], x)
            return x + propagate(f"high{number}", _affine, jnp.sin, own["high"], low), None

        x = propagate("input", _affine, jnp.tanh, params["input"], x)
        if looped:
            x, _ = nl.scan("blocks", block, x, params["blocks"], propagate)
        else:
            for l in range(STEPS):
                x, _ = block(x, jax.tree.map(lambda leaf, l=l: leaf[l], params["blocks"]), propagate, l)
        return propagate("output", _affine, lambda nu: nu, params["output"], x)

    def affine(key, *shape):
        return {"weight": jax.random.normal(key, shape) / 2, "bias": jnp.zeros((*shape[:-2], shape[-1]))}

    keys = jax.random.split(jax.random.key(6), 4)
    params = {
        "input": affine(keys[0], 2, 3),
        "blocks": {"low": affine(keys[1], STEPS, 3, 4), "high": affine(keys[2], STEPS, 4, 3)},
        "output": affine(keys[3], 3, 3),
    }
    return _labelled(forward, params, _inputs(5, 2), 3)


@_once
def recurrent() -> Problem:
    """A loop over time."""
    return _recurrent(looped=True)


@_once
def depth() -> Problem:
    """A loop over depth."""
    return _depth(looped=True)


def unrolled(problem: Problem) -> Problem:
    """The same program without its loop, its layers called by Python one by one."""
    return _unrolled_recurrent() if problem is recurrent() else _unrolled_depth()


@_once
def _unrolled_recurrent() -> Problem:
    return _recurrent(looped=False)


@_once
def _unrolled_depth() -> Problem:
    return _depth(looped=False)


@_once
def learned_start() -> Problem:
    """Parameters that enter a loop as its first carry, in what it reads, and between its layers."""

    def forward(params, xs, propagate=feedforward):
        def step(carry, x, propagate):
            hidden, v = carry
            hidden = propagate("hidden", lambda w, x, h: x + h @ w, jnp.tanh, params["hidden"], x, hidden)
            return (hidden, params["decay"] * v + hidden), None

        xs = propagate("encoder", lambda w, x: x @ w, jnp.tanh, params["encoder"], xs)
        start = jnp.broadcast_to(params["start"], (xs.shape[0], 3))
        carry = nl.scan("time", step, (start, start), jnp.swapaxes(xs, 0, 1), propagate)[0]
        return carry[0] + carry[1]

    keys = jax.random.split(jax.random.key(5), 3)
    params = {
        "encoder": jax.random.normal(keys[0], (2, 3)),
        "hidden": jax.random.normal(keys[1], (3, 3)) / 2,
        "start": jnp.linspace(-1, 1, 3),
        "decay": jnp.asarray(0.7),
    }
    return _labelled(forward, params, _inputs(5, STEPS, 2), 3)


PROBLEMS = {f.__name__: f for f in (one_layer, chain, skip, convolution, tied, closed_over)}
