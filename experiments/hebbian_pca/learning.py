"""Teaches digits by Hebb's, Oja's and Sanger's rules, beside their flows."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nl_jax as nl
from experiments.harness import data, extrapolation
from nl_jax.theory import hebbian

MOMENTS = 200  # measurements of a run, evenly spaced in time
REFINEMENTS = (1, 2, 4)  # steps of η, η/2 and η/4
GROWN = 8.0  # Hebb's rule runs until the first component has grown by a factor e^8
TURNED = 5.0  # Oja's rule runs until the ratio of second to first component has fallen by e^-5
SETTLED = 16.0  # Sanger's rule runs until the slowest distance, at the smallest eigenvalue gap, has fallen by e^-16


class Settings(NamedTuple):
    """The settings of `Config` that the parts share."""

    components: int
    units: int
    start: float
    steps: int


class Digits:
    """Centred images, and the eigenvectors of their covariance C, the largest eigenvalue first."""

    def __init__(self) -> None:
        images = data.digits().train.images.astype(np.float64)
        self.x = images - images.mean(axis=0)
        self.C = self.x.T @ self.x / len(self.x)
        values, vectors = np.linalg.eigh(self.C)
        self.values: np.ndarray = values[::-1]
        self.vectors: np.ndarray = vectors[:, ::-1]


@dataclass(frozen=True)
class Followed:
    """Result of a rule that follows a flow; curves are [components, moments]."""

    time: np.ndarray
    rates: np.ndarray
    law: np.ndarray
    measured: extrapolation.Limit
    errors: np.ndarray
    """Largest distance from the flow, at each rate."""

    @property
    def deviation(self) -> float:
        """Largest distance of a curve's extrapolated limit from the flow, in error bars."""
        return extrapolation.deviation(self.measured, self.law)

    @property
    def slopes(self) -> np.ndarray:
        """Mean slope of each curve at η → 0, from start to end."""
        return (self.measured.values[:, -1] - self.measured.values[:, 0]) / (self.time[-1] - self.time[0])


@dataclass(frozen=True)
class Settled:
    """Result of a rule that converges, at one rate."""

    time: np.ndarray
    rate: float
    weights: np.ndarray
    """Final weights, [inputs, units]; each unit has its eigenvector's sign."""
    distance: np.ndarray
    """‖w_j ∓ v_j‖, [units, moments]."""
    left: float
    """Error bar: the largest remaining movement of a unit, estimated from its most recent movement."""

    @property
    def deviation(self) -> float:
        """The largest distance from an eigenvector, in error bars."""
        return float(self.distance[:, -1].max() / self.left)


def _start(digits: Digits, units: int, settings: Settings) -> np.ndarray:
    W = np.random.default_rng(0).normal(size=(digits.x.shape[1], units))
    return settings.start * W / np.linalg.norm(W, axis=0)


def _teach(
    rule: nl.rules.Rule, digits: Digits, start: np.ndarray, end: float, steps: Sequence[int]
) -> list[np.ndarray]:
    """Weights at every moment until `end`, [moments, inputs, units], for each number of steps between moments."""
    network = nl.mlp(start.shape, activation=nl.activations.identity(), bias=False)
    estimator = nl.local_learning(network.apply, rule)
    x, key = jnp.asarray(digits.x), jax.random.key(0)  # the key is unused: the rules are deterministic

    @jax.jit
    def walk(stride: int, W: jax.Array) -> jax.Array:
        learner = nl.learner(estimator, optax.sgd(end / (MOMENTS * stride)))

        def look(state: nl.LearnerState, _: None) -> tuple[nl.LearnerState, jax.Array]:
            state = jax.lax.fori_loop(0, stride, lambda _, state: learner.step(key, state, x)[0], state)
            return state, state.params["output"]["weight"]

        return jax.lax.scan(look, learner.init(key, {"output": {"weight": W}}), length=MOMENTS)[1]

    return [np.asarray(walk(stride, jnp.asarray(start))) for stride in steps]


def _times(end: float) -> np.ndarray:
    return end * np.arange(1, MOMENTS + 1) / MOMENTS


def _follow(
    rule: nl.rules.Rule,
    flow: Callable[..., jax.Array],
    view: Callable[[np.ndarray], np.ndarray],
    digits: Digits,
    end: float,
    settings: Settings,
) -> Followed:
    """Compares one unit with its flow; `view` maps weights [moments, inputs] to curves [components, moments]."""
    start, steps = _start(digits, 1, settings), [settings.steps * refinement for refinement in REFINEMENTS]
    walks = [view(W[..., 0]) for W in _teach(rule, digits, start, end, steps)]
    time = _times(end)
    law = view(np.asarray(jax.jit(jax.vmap(functools.partial(flow, digits.C, start[:, 0])))(time)))
    return Followed(
        time=time,
        rates=end / (MOMENTS * np.array(steps)),
        law=law,
        measured=extrapolation.limit(*walks),
        errors=np.array([np.abs(curves - law).max() for curves in walks]),
    )


def hebb(digits: Digits, settings: Settings) -> Followed:
    """Curves ln |w_i| of each eigen-component w_i: straight lines of slope λ_i."""

    def flow(C: jax.Array, w: jax.Array, t: jax.Array) -> jax.Array:
        return hebbian.hebb_flow(C, w[:, None], t)[:, 0]

    def view(w: np.ndarray) -> np.ndarray:
        return np.log(np.abs(w @ digits.vectors[:, : settings.components])).T

    return _follow(nl.rules.hebb(), flow, view, digits, GROWN / digits.values[0], settings)


def oja(digits: Digits, settings: Settings) -> Followed:
    """Curves of the eigen-components; all but the first decay."""

    def view(w: np.ndarray) -> np.ndarray:
        return (w @ digits.vectors[:, : settings.components]).T

    gap = digits.values[0] - digits.values[1]
    return _follow(nl.rules.oja(), hebbian.oja_flow, view, digits, TURNED / gap, settings)


def sanger(digits: Digits, settings: Settings) -> Settled:
    """Distances of the units from the eigenvectors, in order."""
    gap = np.min(-np.diff(digits.values[: settings.units + 1]))
    end = SETTLED / gap
    # Steps of η λ_1 ≥ 1 make norms oscillate. The path is not judged, so η λ_1 = 1/2 is small enough.
    steps = max(settings.steps, math.ceil(2 * digits.values[0] * end / MOMENTS))
    (W,) = _teach(nl.rules.sanger(), digits, _start(digits, settings.units, settings), end, [steps])
    V = digits.vectors[:, : settings.units]
    W = W * np.sign(np.sum(W[-1] * V, axis=0))
    # While a distance falls to a third, it loses twice what is left.
    before = math.ceil(MOMENTS * math.log(3) / SETTLED)
    return Settled(
        time=_times(end),
        rate=end / (MOMENTS * steps),
        weights=W[-1],
        distance=np.linalg.norm(W - V, axis=1).T,
        left=float(np.linalg.norm(W[-1] - W[-1 - before], axis=0).max()),
    )
