"""Growth of weights under node perturbation when an error cannot be removed.

After Hiratani, Mehta, Lillicrap & Latham (2022), who find node perturbation unstable where student and teacher do not
match, and normalised weights its cure. The model here is the least that shows why and can be solved exactly: H linear
hidden units h = W x with a fixed readout y = V h of M < H outputs, VVᵀ = v² I, learn y* = W* x + d from x ~ N(0, I) of
N inputs, one at a time; d is independent of x, and E_opt = ½ E|d|². Perturbations of h are σ ξ, ξ ~ N(0, I), σ → 0:

    W ← W − η (eᵀVξ) ξ xᵀ,    e = (VW − W*) x − d

The part of W that the readout sees learns as a network of one layer does at the rate ηv² (`nl_jax.theory.temporal`,
T = 1), to a floor. Of the H − M hidden directions it does not see, Q⊥, noise is judged by the same eᵀVξ, of which it
knows nothing. On average Q⊥W stays where it is; its square takes a step of each trial's noise:

    E|Δ′|²  = (1 − 2ηv² + η²v⁴ (M + 2)(N + 2)) |Δ|² + η²v⁴ (M + 2) N 2 E_opt,    Δ = VW − W*
    E|Q⊥W′|² = |Q⊥W|² + η²v² (H − M) ((N + 2) |Δ|² + 2 E_opt N)

Without mismatch, E_opt = 0, Δ decays and the walk ends. With it |W|² grows by a constant a trial for ever (`growth`),
unseen at the outputs, and with it the hidden activity, E|h|² = |W|². A delta rule that then began to learn V from h
would be stable only at rates below about 2/E|h|². Weights normalised after each trial, W ← r W/|W|, keep their norm by
construction, and the activity with it.
"""

import math
from typing import NamedTuple

from nl_jax.theory.ranges import in_range


class Sizes(NamedTuple):
    """N inputs, H hidden units and M < H outputs."""

    inputs: int
    hidden: int
    outputs: int


class Squares(NamedTuple):
    """Expected squares, in units of the outputs' and of the weights'.

    Attributes:
      distance: |Δ|², of VW from W*; the excess error is half of it.
      unseen: |Q⊥W|², of the hidden weights that the readout does not see.
    """

    distance: float
    unseen: float


def trial(before: Squares, sizes: Sizes, *, rate: float, readout: float, irreducible: float) -> Squares:
    """Expected squares after one more trial.

    Args:
      before: expected squares so far.
      sizes: N, H and M.
      rate: η, at least 0.
      readout: v, the norm of each of the readout's rows.
      irreducible: E_opt, at least 0.

    Raises:
      ValueError: if a size is below 1 or M is not below H, or for another number out of range.
    """
    N, H, M = _checked(sizes, rate, irreducible)
    pace = rate * readout**2
    distance = (1 - 2 * pace + pace**2 * (M + 2) * (N + 2)) * before.distance
    return Squares(
        distance=distance + pace**2 * (M + 2) * N * 2 * irreducible,
        unseen=before.unseen + rate * pace * (H - M) * ((N + 2) * before.distance + 2 * irreducible * N),
    )


def floor(sizes: Sizes, *, rate: float, readout: float, irreducible: float) -> float:
    """Where |Δ|² ends on average, ηv² (M + 2) N 2 E_opt / (2 − ηv² (M + 2)(N + 2)); infinite beyond the stable rates.

    Raises:
      ValueError: as `trial`.
    """
    N, _, M = _checked(sizes, rate, irreducible)
    pace = rate * readout**2
    slack = 2 - pace * (M + 2) * (N + 2)
    return pace * (M + 2) * N * 2 * irreducible / slack if slack > 0 else math.inf


def growth(sizes: Sizes, *, rate: float, readout: float, irreducible: float) -> float:
    """By how much |W|² grows a trial once Δ is at its floor, 4 η²v² (H − M) N E_opt / (2 − ηv² (M + 2)(N + 2)).

    Infinite beyond the stable rates.

    Raises:
      ValueError: as `trial`.

    >>> growth(Sizes(8, 12, 2), rate=0.01, readout=1.0, irreducible=0.0)
    0.0
    """
    N, H, M = _checked(sizes, rate, irreducible)
    pace = rate * readout**2
    slack = 2 - pace * (M + 2) * (N + 2)
    return 4 * rate * pace * (H - M) * N * irreducible / slack if slack > 0 else math.inf


def _checked(sizes: Sizes, rate: float, irreducible: float) -> Sizes:
    if min(sizes) < 1 or sizes.outputs >= sizes.hidden:
        raise ValueError(f"sizes must be at least 1 and outputs fewer than hidden units, got {sizes}")
    in_range(rate=(rate, 0), irreducible=(irreducible, 0))
    return sizes
