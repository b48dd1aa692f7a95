"""Growth of weights under node perturbation when an error cannot be removed.

It follows Hiratani, Mehta, Lillicrap & Latham (2022), who find node perturbation unstable if student and teacher do not
match, and stable with normalised weights. The model here is the simplest that shows why and can be solved exactly. H
linear hidden units h = W x have a fixed readout y = V h of M < H outputs, VVᵀ = v² I. They learn y* = W* x + d from
x ~ N(0, I) with N inputs, one example at a time; d is independent of x, and E_opt = ½ E|d|². Perturbations of h are
σ ξ, ξ ~ N(0, I), σ → 0:

    W ← W − η (eᵀVξ) ξ xᵀ,    e = (VW − W*) x − d

The part of W that the readout sees learns like a one-layer network at the rate ηv² (`nl_jax.theory.temporal`, T = 1),
down to a floor. The readout does not see H − M hidden directions, Q⊥. Noise in them is weighted by the same eᵀVξ,
which does not depend on it. The mean of Q⊥W therefore does not change, but its square grows with each trial's noise:

    E|Δ′|²  = (1 − 2ηv² + η²v⁴ (M + 2)(N + 2)) |Δ|² + η²v⁴ (M + 2) N 2 E_opt,    Δ = VW − W*
    E|Q⊥W′|² = |Q⊥W|² + η²v² (H − M) ((N + 2) |Δ|² + 2 E_opt N)

Without mismatch, E_opt = 0, Δ decays and this random walk ends. With mismatch |W|² grows by a constant per trial
forever (`growth`), without effect on the outputs. The hidden activity grows with it, E|h|² = |W|². A delta rule that
then began to learn V from h would be stable only at rates below about 2/E|h|². Normalising weights after each trial,
W ← r W/|W|, keeps their norm and the activity constant.
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
    """Expected squares, in squared units of the outputs and of the weights.

    Attributes:
      distance: |Δ|², the squared distance of VW from W*; the excess error is half of it.
      unseen: |Q⊥W|², the squared hidden weights that the readout does not see.
    """

    distance: float
    unseen: float


def trial(before: Squares, sizes: Sizes, *, rate: float, readout: float, irreducible: float) -> Squares:
    """Computes the expected squares after one more trial.

    Args:
      before: expected squares before it.
      sizes: N, H and M.
      rate: η, at least 0.
      readout: v, the norm of each row of the readout.
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
    """The mean limit of |Δ|², ηv² (M + 2) N 2 E_opt / (2 − ηv² (M + 2)(N + 2)); infinite at unstable rates.

    Raises:
      ValueError: as in `trial`.
    """
    N, _, M = _checked(sizes, rate, irreducible)
    pace = rate * readout**2
    slack = 2 - pace * (M + 2) * (N + 2)
    return pace * (M + 2) * N * 2 * irreducible / slack if slack > 0 else math.inf


def growth(sizes: Sizes, *, rate: float, readout: float, irreducible: float) -> float:
    """The growth of |W|² per trial with Δ at its floor, 4 η²v² (H − M) N E_opt / (2 − ηv² (M + 2)(N + 2)).

    It is infinite at unstable rates.

    Raises:
      ValueError: as in `trial`.

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
