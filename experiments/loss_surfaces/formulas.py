"""Losses of seed 003 and its formulas for their gradients and minima (eq. 13–16)."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

import nl_jax as nl


class Surface(NamedTuple):
    """A loss, the seed's formula for its gradient, and its minimum.

    Attributes:
      loss: `loss(outputs, targets) -> [points]`, both [points, outputs].
      gradient: the seed's formula, in NumPy, [points, outputs].
      least: `least(x̄) -> x`, an x that minimises the loss for targets x̄.
      value: the minimum for targets that sum to 1.
      equation: its number in seed 003.
    """

    loss: Callable[[Any, Any], jax.Array]
    gradient: Callable[[np.ndarray, np.ndarray], np.ndarray]
    least: Callable[[np.ndarray], np.ndarray]
    value: float
    equation: str


def _p_norm_gradient(p: float, x: np.ndarray, target: np.ndarray) -> np.ndarray:
    return np.sign(x - target) * np.abs(x - target) ** (p - 1)


def _kl_gradient(x: np.ndarray, target: np.ndarray) -> np.ndarray:
    return np.log(x / target) + 1


def _normalised(
    gradient: Callable[[np.ndarray, np.ndarray], np.ndarray], x: np.ndarray, target: np.ndarray
) -> np.ndarray:
    """Eq. 13: (∂_i ℓ − C)/X at the shares x/X, C = Σ_j x_j ∂_j ℓ/X."""
    X = x.sum(axis=1, keepdims=True)
    by_share = gradient(x / X, target)
    return (by_share - np.sum(x * by_share, axis=1, keepdims=True) / X) / X


def _normalised_kl_gradient(x: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Eq. 16 as it stands."""
    X = x.sum(axis=1, keepdims=True)
    logs = np.log(x / (X * target))
    return (logs - np.sum(x * logs, axis=1, keepdims=True) / X) / X


def _p_norm(p: float) -> Surface:
    return Surface(nl.losses.p_norm(p), functools.partial(_p_norm_gradient, p), lambda target: target, 0.0, "eq. 14")


SURFACES = {
    "1-norm": _p_norm(1),
    "2-norm": _p_norm(2),
    "4-norm": _p_norm(4),
    "Kullback–Leibler": Surface(
        nl.losses.kullback_leibler, _kl_gradient, lambda target: target / np.e, -1 / np.e, "eq. 15"
    ),
    "normalised Kullback–Leibler": Surface(
        nl.losses.normalised_kullback_leibler, _normalised_kl_gradient, lambda target: 3 * target, 0.0, "eq. 16"
    ),
    "normalised 2-norm": Surface(
        nl.losses.normalised(nl.losses.p_norm(2)),
        functools.partial(_normalised, functools.partial(_p_norm_gradient, 2)),
        lambda target: 3 * target,
        0.0,
        "eq. 13",
    ),
}
NORMALISED = tuple(surface for name, surface in SURFACES.items() if name.startswith("normalised"))
