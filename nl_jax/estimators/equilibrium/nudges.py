"""Strengths of the nudge towards lower loss, and how phases are combined.

Let y(β) be any quantity at the equilibrium under a nudge β. An estimate is y'(0) by finite differences: the derivative
at 0 of the polynomial through y(0), from the free phase, and all y(β_k).
"""

import math
from typing import NamedTuple

import numpy as np

from nl_jax._core.require import nonzero_number, positive_integer, positive_number


class Nudge(NamedTuple):
    """The strengths β_k of the nudged phases, all different and none of them 0; real or complex.

    On a linear network with quadratic loss, all of the same curvature, an estimate is the gradient times
    1 − Π_k β_k/(1 + β_k).
    """

    strengths: tuple[complex, ...]

    @property
    def weights(self) -> tuple[complex, ...]:
        """w_k with y'(0) ≈ Σ_k w_k [y(β_k) − y(0)]: the slopes at 0 of Lagrange's polynomials."""
        slopes = []
        for k, beta in enumerate(self.strengths):
            others = self.strengths[:k] + self.strengths[k + 1 :]
            slopes.append(math.prod(other / (other - beta) for other in others) / beta)
        return tuple(slopes)


def one_sided(beta: float) -> Nudge:
    """One nudge β (Scellier & Bengio 2017). The error is of order β: a factor 1/(1 + β).

    Args:
      beta: β, a finite number other than 0.

    Raises:
      ValueError: if `beta` is not as described.
    """
    return Nudge((nonzero_number("beta", beta),))


def symmetric(beta: float) -> Nudge:
    """Two nudges ±β (Laborieux et al. 2021). The error is of order β²: a factor 1/(1 − β²).

    Args:
      beta: β, a finite number above 0.

    Raises:
      ValueError: if `beta` is not as described.

    >>> symmetric(0.5)
    Nudge(strengths=(0.5, -0.5))
    >>> symmetric(0.5).weights
    (1.0, -1.0)
    """
    return n_point(beta, 2)


def n_point(beta: float, num_points: int) -> Nudge:
    """N strengths evenly spaced from −β to β without 0: a central stencil, whose error is of order β^N.

    Args:
      beta: β, a finite number above 0.
      num_points: N, even.

    Raises:
      ValueError: if an argument is not as described.
    """
    beta, half = positive_number("beta", beta), _half("num_points", num_points)
    strengths = [beta * k / half for k in range(half, 0, -1)]
    return Nudge((*strengths, *(-b for b in strengths)))


def circle(beta: float, num_points: int) -> Nudge:
    """N nudges β e^{2πik/N}, k = 0 … N − 1: holomorphic equilibrium propagation (Laborieux & Zenke 2022).

    By Cauchy's formula the error is of order β^N, a factor 1/(1 − β^N); N finite strengths suffice where a real nudge
    would have to be small. Axons (activity) become complex numbers in the nudged phases. Connections, activations and
    loss must therefore be holomorphic and accept complex numbers, as tanh and sigmoid do and ½ Σ (x − x̄)² written with
    jax.numpy; relu, max_pool and optax's losses do not.

    Args:
      beta: β, a finite number above 0.
      num_points: N, even.

    Raises:
      ValueError: if an argument is not as described.
    """
    beta, half = positive_number("beta", beta), _half("num_points", num_points)
    turns = np.exp(1j * np.pi * np.arange(2 * half) / half)
    return Nudge(tuple(complex(beta * turn) for turn in turns))


def _half(name: str, value: int) -> int:
    if positive_integer(name, value) % 2:
        raise ValueError(f"{name} must be even, as many strengths on either side of 0, got {value!r}")
    return int(value) // 2
