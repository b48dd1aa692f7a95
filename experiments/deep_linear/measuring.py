"""Trains deep linear networks of one depth at three step sizes and measures the modes, beside their theory."""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.nn.initializers import lecun_uniform

import nl_jax as nl
from experiments.harness import extrapolation
from nl_jax.base import Params
from nl_jax.theory import deep_linear

LEARNED = 0.98  # fraction of the weakest mode's strength at which a run ends
MOMENTS = 200  # number of times at which a run is measured, equally spaced
REFINEMENTS = (1, 2, 4)  # steps of η, η/2 and η/4


class Settings(NamedTuple):
    """The settings of `Config` that the parts share."""

    strengths: tuple[float, ...]
    start: float
    inputs: int
    hidden: int
    steps: int
    seeds: int


@dataclass(frozen=True)
class Course:
    """Measurements at one depth; u is [modes, moments], times are in units of τ."""

    depth: int
    rates: np.ndarray
    """η, η/2 and η/4."""
    time: np.ndarray
    law: np.ndarray
    measured: extrapolation.Limit
    errors: np.ndarray
    """Largest |u − law| at each rate."""
    loss: np.ndarray
    """Loss at steps of η/4, [moments]."""
    random: np.ndarray
    """The same loss from random weights, [seeds, moments]."""

    @property
    def deviation(self) -> float:
        """Largest deviation of a mode's limit from theory, in error bars."""
        return extrapolation.deviation(self.measured, self.law)


def _lesson(settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """Returns whitened inputs, Σ11 = I, and their outputs under a linear map with the given strengths."""
    rng = np.random.default_rng(0)
    N, inputs, outputs = 4 * settings.inputs, settings.inputs, len(settings.strengths)
    x, V, U = (np.linalg.qr(rng.normal(size=size))[0] for size in ((N, inputs), (inputs, outputs), (outputs, outputs)))
    return N**0.5 * x, N**0.5 * x @ V @ np.diag(settings.strengths) @ U.T


def measure(depth: int, settings: Settings) -> Course:
    """Trains networks of one depth at every step size and returns what they measured."""
    x, y = map(jnp.asarray, _lesson(settings))
    hidden = [settings.hidden] * (depth - 1)
    network = nl.mlp(
        [x.shape[1], *hidden, y.shape[1]], activation=nl.activations.identity(), weight_init=lecun_uniform(), bias=False
    )
    objective = nl.supervised(network.apply, lambda output, target: jnp.sum((target - output) ** 2, axis=1))
    layers = list(network.shapes)[1:]
    fractions = np.arange(1, MOMENTS + 1) / MOMENTS

    def small(key: jax.Array) -> Params:
        return jax.tree.map(lambda W: settings.start ** (1 / depth) * W, network.init(key, x.dtype))

    @jax.jit
    def begin(x: jax.Array, y: jax.Array) -> tuple[Any, ...]:
        _, Sigma31 = deep_linear.correlations(x, y)
        U, s, V = deep_linear.modes(Sigma31)
        balanced = deep_linear.balanced_weights(jax.random.key(1), Sigma31, settings.start, hidden)
        random = jax.vmap(small)(jax.random.split(jax.random.key(2), settings.seeds))
        starts = {
            layer: {"weight": jnp.concatenate([W.T[None], random[layer]["weight"]])}
            for layer, W in zip(layers, balanced, strict=True)
        }
        end = deep_linear.learning_time(LEARNED * s[-1], s[-1], settings.start, 1.0, depth)
        law = jax.vmap(lambda s: deep_linear.mode(end * fractions, s, settings.start, 1.0, depth))(s)
        return (U, V), starts, end, law

    directions, starts, end, law = begin(x, y)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, 0))
    def walk(refinement: int, params: Params) -> tuple[jax.Array, jax.Array]:
        """Returns strengths and loss at every moment, from every start."""
        stride = settings.steps * refinement
        rate = end / (2 * MOMENTS * stride)  # τ = 1/(2η) steps, so all runs end at the same time
        learner = nl.learner(nl.backprop(objective), optax.sgd(rate))
        key = jax.random.key(0)  # backprop draws no random numbers

        def look(state: nl.LearnerState, _: None) -> tuple[nl.LearnerState, tuple[jax.Array, jax.Array]]:
            state = jax.lax.fori_loop(0, stride, lambda _, state: learner.step(key, state, (x, y))[0], state)
            weights = [state.params[layer]["weight"].T for layer in layers]
            return state, (deep_linear.strengths(weights, *directions), jnp.mean(objective(state.params, (x, y))))

        return jax.lax.scan(look, learner.init(key, params), length=MOMENTS)[1]

    walks = [jax.tree.map(np.asarray, walk(refinement, starts)) for refinement in REFINEMENTS]
    strengths, end, law = [u[0].T for u, _ in walks], float(end), np.asarray(law)
    return Course(
        depth=depth,
        rates=end / (2 * MOMENTS * settings.steps * np.array(REFINEMENTS)),
        time=end * fractions,
        law=law,
        measured=extrapolation.limit(*strengths),
        errors=np.array([np.abs(u - law).max() for u in strengths]),
        loss=walks[-1][1][0],
        random=walks[-1][1][1:],
    )
