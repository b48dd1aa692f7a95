"""Computes where a single sigmoid unit's runs end: its minima, and how often each is found."""

import math
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit
from scipy.stats import binom, norm

INPUTS = 1.0, 10.0  # of the two examples along each axis
TARGETS = 0.8, 0.3  # their targets, which need weights of opposite signs


class Settings(NamedTuple):
    """The settings of `Config` that the parts share."""

    inputs: int
    restarts: int
    spread: float


class Landscape(NamedTuple):
    """The loss ½ Σ_i (σ(w x_i) − y_i)² of one weight: two minima and the maximum between them.

    Attributes:
      best: weight at the lower minimum.
      barrier: weight at the maximum.
      worse: weight at the higher minimum.
    """

    best: float
    barrier: float
    worse: float


def loss(w: np.ndarray | float) -> np.ndarray:
    """½ Σ_i (σ(w x_i) − y_i)², elementwise."""
    return sum(
        ((expit(np.multiply(w, x)) - y) ** 2 / 2 for x, y in zip(INPUTS, TARGETS, strict=True)), start=np.zeros(())
    )


def landscape() -> Landscape:
    """The zeros of the loss's derivative, between the weights that fit one example each."""

    def slope(w: float) -> float:
        outputs = [expit(w * x) for x in INPUTS]
        return sum((o - y) * o * (1 - o) * x for o, x, y in zip(outputs, INPUTS, TARGETS, strict=True))

    grid = np.linspace(-1, 2, 301)
    signs = np.sign([slope(w) for w in grid])
    turns = [brentq(slope, a, b) for a, b, s, t in zip(grid, grid[1:], signs, signs[1:], strict=False) if s != t]
    return Landscape(*turns)


def law(settings: Settings) -> np.ndarray:
    """P(k of D weights in the worse minimum), [D + 1]: binomial, with the probability of starting beyond the barrier.

    Weights do not interact, since no example has two inputs. With a step below 1/curvature, a weight never moves past a
    stationary point.
    """
    beyond = norm.sf(landscape().barrier / settings.spread)
    return binom.pmf(np.arange(settings.inputs + 1), settings.inputs, beyond)


def needed(fraction: float) -> float:
    """Restarts that find a minimum of this fraction with probability 99 %: log 0.01 / log(1 − fraction), at least 1."""
    return (
        float(np.maximum(1, np.log(0.01) / np.log1p(-fraction)))
        if 0 < fraction < 1
        else (1.0 if fraction else math.inf)
    )


def losses_of_levels(settings: Settings) -> np.ndarray:
    """Loss with k weights in the worse minimum, [D + 1]."""
    here, k = landscape(), np.arange(settings.inputs + 1)
    return k * loss(here.worse) + (settings.inputs - k) * loss(here.best)
