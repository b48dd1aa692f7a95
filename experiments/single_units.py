"""Units that learn from one example after the other, and what becomes of the exclusive or (seeds 000, 001)."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nl_jax as nl

CORNERS = np.array([[1.0, -1.0, -1.0], [1.0, -1.0, 1.0], [1.0, 1.0, -1.0], [1.0, 1.0, 1.0]])  # after a constant 1
EXCLUSIVE_OR = np.array([0.0, 1.0, 1.0, 0.0])
LOOKED_AT = 30  # passes, in which the perceptron's weights have to come back
PERCEPTRON, UNIT, LAYERS = "perceptron", "sigmoid unit, delta rule", "two layers, backprop"


class Learner(NamedTuple):
    """A network, how it learns, and when an output is wrong."""

    network: nl.Network
    step: nl.Learner
    wrong: Callable[[jax.Array, jax.Array], jax.Array]
    """Of output and target, for one example."""


def perceptron(inputs: int) -> Learner:
    """A sign unit without bias, whose targets are ±1."""
    sign = nl.activations.sign()
    network = nl.mlp([inputs, 1], activation=sign, output_activation=sign, bias=False)
    rule = nl.local_learning(network.apply, nl.rules.perceptron())
    return Learner(network, nl.learner(rule, optax.sgd(1.0)), lambda output, target: output != target)


def sigmoid_unit() -> Learner:
    """One sigmoid unit that learns by the delta rule (seed 001 §1); its first input is the constant 1."""
    sigmoid = nl.activations.sigmoid()
    network = nl.mlp([3, 1], activation=sigmoid, output_activation=sigmoid, bias=False)
    rule = nl.local_learning(network.apply, nl.rules.delta(derivative=sigmoid.derivative))
    return Learner(network, nl.learner(rule, optax.sgd(0.1)), _other_half)


def two_layers() -> Learner:
    """Four sigmoid units below it, and backprop (seed 001 §2)."""
    sigmoid = nl.activations.sigmoid()
    network = nl.mlp([3, 4, 1], activation=sigmoid, output_activation=sigmoid)
    objective = nl.supervised(network.apply, nl.losses.half_squared_error)
    return Learner(network, nl.learner(nl.backprop(objective), optax.sgd(1.0)), _other_half)


def _other_half(output: jax.Array, target: jax.Array) -> jax.Array:
    return (output - 0.5) * (target - 0.5) <= 0


def passes_of(learner: Learner) -> Callable[..., tuple[Any, jax.Array]]:
    """`one_pass(params, x, y) -> (params, wrong)`: every example once, in order; how many were wrong when they came."""

    def one(params: Any, example: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
        x, y = example[0][None], example[1][None, None]
        output = learner.network.apply(params, x)
        key = jax.random.key(0)  # nothing is drawn
        state, _ = learner.step.step(key, learner.step.init(key, params), (x, y))
        return state.params, jnp.squeeze(learner.wrong(output, y))

    def one_pass(params: Any, x: jax.Array, y: jax.Array) -> tuple[Any, jax.Array]:
        params, wrong = jax.lax.scan(one, params, (x, y))
        return params, jnp.sum(wrong, dtype=jnp.int32)

    return one_pass


class Failure(NamedTuple):
    """What becomes of the exclusive or.

    Attributes:
      wrong: by learner, how many of the four examples it had wrong when it met them, [passes, runs]. Single units see
        the examples in all 24 orders, one in each run; of the two-layer network a run is a beginning.
      before, period: passes until the perceptron's weights are some that come back, and after how many they do, [runs];
        the period is 0 where they never did.
      outputs: of the sigmoid unit in the end, [runs, examples].
      losses: in the end, the mean of ½(ŷ − y)², by learner that has one, [runs].
    """

    wrong: dict[str, np.ndarray]
    before: np.ndarray
    period: np.ndarray
    outputs: np.ndarray
    losses: dict[str, np.ndarray]


def exclusive_or(passes: int, seeds: int) -> Failure:
    """The perceptron from random whole numbers, the sigmoid unit from 0, two layers from `seeds` beginnings."""
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
    """After how many steps weights [steps, …] first are some that come back, and how much later; (0, 0) for never.

    To the last bit: what made the step from the one to the other will make it again, for ever.
    """
    seen: dict[bytes, int] = {}
    for step, at in enumerate(weights):
        before = seen.setdefault((at + 0.0).tobytes(), step)  # −0 is 0
        if before < step:
            return before, step - before
    return 0, 0
