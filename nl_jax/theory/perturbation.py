"""Variance laws of perturbation: the noise of (gᵀξ) ξ as an estimate of g, for E ξξᵀ = I, as the step σ → 0.

A distribution of P components determines the second moment s = E‖(gᵀξ) ξ‖²/‖g‖² of one sample. `relative_variance`
converts s to the relative variance E‖ĝ − g‖²/‖g‖² of the mean ĝ of K samples; its inverse is the signal to noise:

    independent components      P − 1 + κ, κ = E ξ_i⁴: 3 Gaussian, 1 Rademacher, 1/p sparse of density p
    of fixed length √P          P: signs, the sphere, a single coordinate, rank-one signs a bᵀ
    low rank, rank-one Gaussian, random subspaces, signs of each example, noise on nodes, local losses: below

Noise that covers only a part of the gradient, such as noise in a subspace, is biased: `projected`.

All laws are tested against the distributions of `nl.directions`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from nl_jax.theory.ranges import in_range


def relative_variance(second_moment: float, K: int, *, order: int | None = None) -> float:
    """Computes E‖ĝ − g‖²/‖g‖² = (s − 1)/K for K independent samples, and (s − 1)/K · (n − K)/(n − 1) for K out of n.

    The latter are drawn without replacement from n directions that together give the exact gradient: rows of a Hadamard
    matrix of order n ≥ P, or the n = P coordinates, for which s = P and the result is (P − K)/K.

    Args:
      second_moment: s, at least 1.
      K: samples, at least 1.
      order: n, at least K; None for independent samples.

    Raises:
      ValueError: for a number out of range.

    >>> P = 43
    >>> relative_variance(independent(P, kurtosis=3), 4), relative_variance(independent(P, kurtosis=1), 4)
    (11.0, 10.5)
    >>> relative_variance(P, 16, order=64), relative_variance(P, 64, order=64)
    (2.0, 0.0)
    """
    in_range(second_moment=(second_moment, 1), K=(K, 1))
    each = (second_moment - 1) / K
    if order is None:
        return each
    in_range(order=(order, max(K, 2)))
    return each * (order - K) / (order - 1)


def squared_cosine(P: int, *, captured: float = 1.0) -> float:
    """Computes E cos² = c/P between g and one sample (gᵀξ) ξ, for ξ isotropic in P dimensions that contain a part of g.

    With noise in the span of the inputs (Lin et al. 2026) P is Σ rank · units. The cosine to the same g is then
    √c √(Σ inputs · units/P) times the cosine under isotropic noise.

    Args:
      P: dimensions of the noise, at least 1.
      captured: c, the fraction of ‖g‖² in them, at most 1.

    Raises:
      ValueError: for a number out of range.
    """
    in_range(P=(P, 1))
    return _part("captured", captured) / P


def projected(second_moment: float, K: int, *, captured: float) -> float:
    """Computes E‖ĝ − g‖²/‖g‖² = 1 − c + c (s − 1)/K for noise in a subspace that contains the fraction c of ‖g‖².

    The mean of ĝ is the projection of g. 1 − c is the bias, which does not shrink with more samples; the rest is
    variance.

    Args:
      second_moment: s of the noise in the subspace, at least 1: P + 2 for Gaussian noise in P dimensions.
      K: samples, at least 1.
      captured: c, at most 1.

    Raises:
      ValueError: for a number out of range.

    >>> s = independent(10, kurtosis=3)
    >>> projected(s, 1, captured=1.0), projected(s, 1, captured=0.8)
    (11.0, 9.0)
    """
    c = _part("captured", captured)
    return 1 - c + c * relative_variance(second_moment, K)


def random_subspace(P: int, K: int, shares: Mapping[tuple[int, int], float]) -> float:
    """Computes E‖ĝ − g‖²/‖g‖² = φ + (P + 1 + φ)/K for noise √(m/r) Q G, φ = Σ f (m/r − 1), one Q for K Gaussian G.

    The random Q [m, r] is uniform with orthonormal columns. A subspace contains r/m of a weight's gradient on average,
    and the factor √(m/r) compensates for it, so the estimate is unbiased. But all samples miss the part of the gradient
    outside their common subspace, so φ does not shrink with more samples. At r = m this is the law of isotropic
    Gaussian noise.

    Args:
      P: components of all parameters, at least 1.
      K: samples of one subspace, at least 1.
      shares: {(m, r): f}, for weights [m, units] with subspaces of rank r: the fraction f of ‖g‖² in such weights.

    Raises:
      ValueError: for a number out of range.

    >>> random_subspace(100, 1, {(10, 10): 1.0}), random_subspace(100, 1, {(10, 2): 0.5})
    (101.0, 105.0)
    """
    in_range(P=(P, 1), K=(K, 1))
    _part("shares", sum(shares.values()))
    floor = 0.0
    for (m, r), f in shares.items():
        in_range(r=(r, 1), m=(m, r))
        floor += _part("shares", f) * (m / r - 1)
    return floor + (P + 1 + floor) / K


def independent(P: int, *, kurtosis: float) -> float:
    """s = P − 1 + κ for independent components of zero mean and variance 1.

    E (gᵀξ)² ξ_i² is κ g_i² + Σ_{j≠i} g_j²; over all i, (κ + P − 1)‖g‖².

    Args:
      P: components, at least 1.
      kurtosis: κ = E ξ_i⁴, at least 1.

    Raises:
      ValueError: for a number out of range.
    """
    in_range(P=(P, 1), kurtosis=(kurtosis, 1))
    return P - 1 + kurtosis


def low_rank(P: int, rank: int, *, weights: float = 1.0) -> float:
    """s = P + 2(1 − 1/r) f for Σ_r a_r b_rᵀ/√r with signs a, b on every weight, and signs on all else.

    Args:
      P: components, at least 1.
      rank: r, at least 1.
      weights: f, the fraction of ‖g‖² in such weights, at most 1.

    Raises:
      ValueError: for a number out of range.
    """
    in_range(P=(P, 1), rank=(rank, 1))
    return P + 2 * (1 - 1 / rank) * _part("weights", weights)


def rank_one_gaussian(m: int, n: int) -> float:
    """s = (m + 2)(n + 2) for a bᵀ with Gaussian a [m] and b [n] on a weight; with signs it is m n (EGGROLL).

    Raises:
      ValueError: for a number out of range.
    """
    in_range(m=(m, 1), n=(n, 1))
    return float((m + 2) * (n + 2))


def flipout(weights: jax.Array, others: jax.Array) -> jax.Array:
    """s of flipout, where every example n has its own signs on the weights (Wen et al. 2018).

        s = 1 + [(P_w − 1) Σ‖g_nʷ‖² + P_w Σ‖g_nᶜ‖² + P_c Σ‖g_nʷ‖² + B² (P_c − 1)‖gᶜ‖²]/(B²‖g‖²)

    Args:
      weights: g_nʷ, the examples' gradients by the weights, [B, P_w].
      others: g_nᶜ, their gradients by all other parameters, whose signs the batch shares, [B, P_c].

    Returns:
      A scalar; nearly P/B if the examples' gradients agree.

    Raises:
      ValueError: for different numbers of examples.
    """
    (B, P_w), (_, P_c) = weights.shape, others.shape
    if len(others) != B:
        raise ValueError(f"weights and others must be of the same examples, got {B} and {len(others)} of them")
    own, shared = jnp.sum(weights**2), jnp.sum(others**2)
    together = jnp.sum(jnp.mean(others, axis=0) ** 2)
    whole = jnp.sum(jnp.mean(weights, axis=0) ** 2) + together
    return 1 + ((P_w - 1 + P_c) * own + P_w * shared + B**2 * (P_c - 1) * together) / (B**2 * whole)


def node_variance(x: jax.Array, delta: jax.Array, power: jax.Array, K: int, *, kurtosis: float) -> jax.Array:
    """Computes Var ĝ_ba = Σ_n x_nb² (‖δ_n‖² + (κ − 2) δ_na²)/(B² K) of the weight gradients of node perturbation.

    Every example has its own noise, weighted by its own loss. The number of nodes therefore replaces P, and the
    variance is averaged over the batch.

    Args:
      x: a layer's inputs, [B, inputs].
      delta: δ_na, the credit ∂E_n/∂ν of its units, [B, units].
      power: ‖δ_n‖² over the nodes of all layers, [B].
      K: samples, at least 1.
      kurtosis: κ = E ξ_i⁴ of independent components.

    Returns:
      [inputs, units].

    Raises:
      ValueError: for a number out of range, or different numbers of examples.
    """
    in_range(K=(K, 1), kurtosis=(kurtosis, 1))
    if not x.shape[:1] == delta.shape[:1] == power.shape:
        raise ValueError(
            f"x, delta and power must be of the same examples: [B, inputs], [B, units] and [B]; got {list(x.shape)}, "
            f"{list(delta.shape)} and {list(power.shape)}"
        )
    of_credit = (power[:, None] + (kurtosis - 2) * delta**2) / K
    return (x**2).T @ of_credit / len(x) ** 2


def nodes(layers: Mapping[str, tuple[jax.Array, jax.Array]], *, kurtosis: float) -> jax.Array:
    """s of node perturbation in a network of any depth, from the axons (activity) x and the true credit δ of layers.

        s = 1 + Σ_l Σ_n ‖x_n^l‖² (M_l ‖δ_n‖² + (κ − 2) ‖δ_n^l‖²)/(B²‖g‖²),  ‖g‖² = Σ_l ‖⟨x^l δ^lᵀ⟩‖²

    For one example, if all x^l have the same norm and all δ^l have the same norm, this is the law of N = Σ M_l
    independent components, s = N − 1 + κ. N replaces the number of weights P of weight space. If only ‖x^l‖ ‖δ^l‖ is
    the same in all layers, s is N times the ratio of the arithmetic to the harmonic mean of ‖x^l‖², up to the term in
    κ. So s is proportional to depth if layers preserve norms, and grows exponentially with depth otherwise.

    Args:
      layers: (x^l, δ^l) by name: the layer's inputs [B, inputs], with a column of ones if it has a bias, and the credit
        ∂E_n/∂ν of its units, [B, units].
      kurtosis: κ = E ξ_i⁴ of independent components, at least 1.

    Returns:
      A scalar; infinite if the gradient is 0 and the credit is not.

    Raises:
      ValueError: for a number out of range, or different numbers of examples.

    >>> import jax.numpy as jnp
    >>> layer = jnp.ones((1, 3)), jnp.ones((1, 4))
    >>> float(nodes({"hidden": layer, "output": layer}, kurtosis=3)), independent(8, kurtosis=3)
    (10.0, 10)
    """
    power: Any = sum(jnp.sum(delta**2, axis=1) for _, delta in layers.values())
    found: Any = sum(jnp.sum(node_variance(x, delta, power, 1, kurtosis=kurtosis)) for x, delta in layers.values())
    gradient = sum(jnp.sum((x.T @ delta / len(x)) ** 2) for x, delta in layers.values())
    return 1 + found / gradient


def together(second_moments: Sequence[Any], squares: Sequence[Any]) -> Any:
    """s = 1 + Σ_j (s_j − 1) ‖g_j‖²/Σ_j ‖g_j‖² of a gradient whose parts g_j are estimated independently.

    This is the case with local losses (Ren et al. 2022): each part has its own noise and its own loss. The credit of
    the N_j units that feed loss j has s_j − 1 = N_j − 2 + κ, `independent`. If all losses have equally many units, the
    relative variance is N_j − 2 + κ for local losses and Σ_j N_j − 2 + κ for a single one: it is proportional to the
    number of units that feed a loss. For weights, s_j is `nodes` of the layers whose units feed loss j.

    Args:
      second_moments: s_j of each part.
      squares: ‖g_j‖² of each part.

    Raises:
      ValueError: if the numbers of squares and second moments differ, or there are none.

    >>> together([independent(10, kurtosis=3)] * 4, [1.0, 2.0, 1.0, 3.0]), independent(40, kurtosis=3)
    (12.0, 42)
    """
    if not len(second_moments) == len(squares) > 0:
        raise ValueError(
            "second_moments and squares must have one number for each part, one part at least; got "
            f"{len(second_moments)} and {len(squares)}"
        )
    excess: Any = sum((s - 1) * square for s, square in zip(second_moments, squares, strict=True))
    whole: Any = sum(squares)
    return 1 + excess / whole


def _part(name: str, value: float) -> float:
    """Checks a fraction of the gradient's square; raises a ValueError if it is out of range."""
    in_range(**{name: (value, 0)})
    if value > 1 + 1e-12:
        raise ValueError(f"{name} must be at most 1, the whole of the gradient's square; got {value}")
    return value
