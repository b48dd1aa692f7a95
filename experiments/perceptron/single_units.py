"""Units that learn from one example at a time, and their results on the exclusive or (seeds 000, 001)."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nl_jax as nl

CORNERS = np.array([[1.0, -1.0, -1.0], [1.0, -1.0, 1.0], [1.0, 1.0, -1.0], [1.0, 1.0, 1.0]])  # constant 1 first
EXCLUSIVE_OR = np.array([0.0, 1.0, 1.0, 0.0])
LOOKED_AT = 30  # passes within which the perceptron's weights have to repeat
PERCEPTRON, UNIT, LAYERS = "perceptron", "sigmoid unit, delta rule", "two layers, backprop"


class Learner(NamedTuple):
    """A network, its learner, and the criterion for a wrong output."""

    network: nl.Network
    step: nl.Learner
    wrong: Callable[[jax.Array, jax.Array], jax.Array]
    """`wrong(output, target)` for one example."""


def perceptron(inputs: int) -> Learner:
    """A sign unit without bias; its targets are ±1."""
    sign = nl.activations.sign()
    network = nl.mlp([inputs, 1], activation=sign, output_activation=sign, bias=False)
    rule = nl.local_learning(network.apply, nl.rules.perceptron())
    return Learner(network, nl.learner(rule, optax.sgd(1.0)), lambda output, target: output != target)


def sigmoid_unit() -> Learner:
    """One sigmoid unit with the delta rule (seed 001 §1); its first input is the constant 1."""
    sigmoid = nl.activations.sigmoid()
    network = nl.mlp([3, 1], activation=sigmoid, output_activation=sigmoid, bias=False)
    rule = nl.local_learning(network.apply, nl.rules.delta(derivative=sigmoid.derivative))
    return Learner(network, nl.learner(rule, optax.sgd(0.1)), _other_half)


def two_layers() -> Learner:
    """A sigmoid unit above four sigmoid units, trained by backprop (seed 001 §2)."""
    sigmoid = nl.activations.sigmoid()
    network = nl.mlp([3, 4, 1], activation=sigmoid, output_activation=sigmoid)
    objective = nl.supervised(network.apply, nl.losses.half_squared_error)
    return Learner(network, nl.learner(nl.backprop(objective), optax.sgd(1.0)), _other_half)


def _other_half(output: jax.Array, target: jax.Array) -> jax.Array:
    return (output - 0.5) * (target - 0.5) <= 0


def passes_of(learner: Learner) -> Callable[..., tuple[Any, jax.Array]]:
    """`one_pass(params, x, y) -> (params, wrong)`: learns each example once; counts those wrong beforehand."""

    def one(params: Any, example: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
        x, y = example[0][None], example[1][None, None]
        output = learner.network.apply(params, x)
        key = jax.random.key(0)  # unused: no random numbers are drawn
        state, _ = learner.step.step(key, learner.step.init(key, params), (x, y))
        return state.params, jnp.squeeze(learner.wrong(output, y))

    def one_pass(params: Any, x: jax.Array, y: jax.Array) -> tuple[Any, jax.Array]:
        params, wrong = jax.lax.scan(one, params, (x, y))
        return params, jnp.sum(wrong, dtype=jnp.int32)

    return one_pass


class Failure(NamedTuple):
    """Results on the exclusive or.

    Attributes:
      wrong: by learner, how many of the four examples were wrong before their update, [passes, runs]. Each run of a
        single unit has one of the 24 orders of the examples; each run of the two-layer network is an initialisation.
      before, period: passes before the perceptron's first weights that return, and passes until they do, [runs];
        the period is 0 if they never did.
      outputs: final outputs of the sigmoid unit, [runs, examples].
      losses: final mean of ½(ŷ − y)², by learner that has a loss, [runs].
    """

    wrong: dict[str, np.ndarray]
    before: np.ndarray
    period: np.ndarray
    outputs: np.ndarray
    losses: dict[str, np.ndarray]


def exclusive_or(passes: int, seeds: int) -> Failure:
    """The perceptron from random integers, the sigmoid unit from 0, two layers from `seeds` initialisations."""
    orders = np.array(list(itertools.permutations(range(4))))
    x, y = CORNERS[orders], EXCLUSIVE_OR[orders]

    one_pass = jax.jit(jax.vmap(passes_of(perceptron(3))))
    weight = np.random.default_rng(0).integers(-3, 4, (len(orders), 3, 1)).astype(float)
    params: Any = {"output": {"weight": jnp.asarray(weight)}}
    met, walked = [weight], []
    for _ in range(LOOKED_AT):
        params, errors = one_pass(params, x, 2 * y - 1)
        met.append(np.asarray(params["output"]["weight"]))
        walked.append(np.asarray(errors))
    wrong, outputs, losses = {PERCEPTRON: np.stack(walked)}, {}, {}

    zeros: Any = {"output": {"weight": jnp.zeros((len(orders), 3, 1))}}
    keys = jax.random.split(jax.random.key(0), seeds)
    beginnings = jax.vmap(lambda key: two_layers().network.init(key, jnp.float64))(keys)
    for name, learner, start, at in (
        (UNIT, sigmoid_unit(), zeros, np.arange(len(orders))),
        (LAYERS, two_layers(), beginnings, np.arange(seeds) % len(orders)),
    ):
        ended, errors = jax.jit(jax.vmap(_many(passes_of(learner), passes)))(start, x[at], y[at])
        wrong[name] = np.asarray(errors).T
        outputs[name] = np.asarray(jax.vmap(learner.network.apply)(ended, jnp.asarray(x[at])))[..., 0]
        losses[name] = np.mean((outputs[name] - y[at]) ** 2 / 2, axis=1)
    before, period = np.array([cycle(weights) for weights in np.stack(met, axis=1)]).T
    return Failure(wrong, before, period, outputs[UNIT], losses)


def _many(one_pass: Callable[..., tuple[Any, jax.Array]], passes: int) -> Callable[..., tuple[Any, jax.Array]]:
    def walk(params: Any, x: jax.Array, y: jax.Array) -> tuple[Any, jax.Array]:
        return jax.lax.scan(lambda params, _: one_pass(params, x, y), params, length=passes)

    return walk


def cycle(weights: np.ndarray) -> tuple[int, int]:
    """First step whose weights [steps, …] return later, and the number of steps until then; (0, 0) for never.

    Weights are compared bit by bit: identical weights make identical further steps, so the cycle never ends.
    """
    seen: dict[bytes, int] = {}
    for step, at in enumerate(weights):
        before = seen.setdefault((at + 0.0).tobytes(), step)  # −0 is 0
        if before < step:
            return before, step - before
    return 0, 0
