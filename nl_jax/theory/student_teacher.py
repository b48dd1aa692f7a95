"""Exact learning curves of the linear student–teacher (seed 000, "Comparison"; Werfel, Xie & Seung 2004).

A student y = W x with M outputs learns from a teacher W*, x ~ N(0, I) with N inputs, E = ½‖y − W* x‖², by steps
W ← W − η ĝ on fresh examples. Δ = W − W* determines its error, E[E] = ½‖Δ‖². Every ĝ here is unbiased, E ĝ = Δ, so the
second moment of ĝ determines the effect of a step. It is affine in ‖Δ‖² (`Recursion`):

    E‖ĝ‖² = C ‖Δ‖² + S,    E‖Δ′‖² = (1 − 2η + η² C) ‖Δ‖² + η² S

**Backprop.** ĝ = e xᵀ with e = Δ x, and E‖Δx‖²‖x‖² = (N + 2)‖Δ‖². In a mean over B examples, the excess N + 1 over the
gradient's own square is divided by B: C = 1 + (N + 1)/B.

**Perturbation.** A step σ ξ changes the loss by exactly σ gᵀξ + ½σ² ξᵀHξ, so a sample is (gᵀξ + ½σ ξᵀHξ) ξ. Its two
parts, even and odd in ξ, have no cross term in the second moment, and the latter averages to zero. For K samples

    E‖ĝ‖² = ‖g‖² (1 + (s − 1)/K) + σ²/(4K) E (ξᵀHξ)² ‖ξ‖²

with s = E‖(gᵀξ) ξ‖²/‖g‖² (`perturbation.independent`). The central difference cancels the second part, the only effect
of σ, so its curve is that of σ = 0. The average over x remains:

  - Nodes: g = e, H = I, and the update multiplies by xᵀ. Each example has its own noise, so everything except the
    gradient's own square is divided by B.
  - Weights: g is the batch's gradient, P = MN, and ξᵀHξ = ⟨‖Ξx‖²⟩ with one Ξ for all examples. E‖Ξx‖⁴ is
    ‖Ξ‖⁴ + 2 tr(ΞΞᵀ)², but for two different examples E‖Ξx‖²‖Ξx′‖² = ‖Ξ‖⁴; hence with S = σ²F/(4K)

        F = E‖Ξ‖⁶ + (2/B) E tr(ΞΞᵀ)² ‖Ξ‖²

For Gaussian noise and K = B = 1 this is the result of Werfel, Xie & Seung (S = σ²F/4)

    backprop   C = N + 2
    nodes      C = (M + 2)(N + 2)     F = M (M + 2)(M + 4) N
    weights    C = (MN + 2)(N + 2)    F = M (M + 2)(MN + 4) N (N + 2)

**Without the ½**, as in the loss of seed 000, L = ‖y − W* x‖², every ĝ is twice as large. The curve at rate η is the
one here at 2η, the best rate is half as large, 1/(2C), and the stability limit is 1/C. The error at the best rate is
the same.

**Without a baseline** the sample also contains the loss L itself, (L/σ + gᵀξ + ½σ ξᵀHξ) ξ, which adds a term in ‖Δ‖⁴.
One step is known exactly (`node_loss_noise`, `weight_loss_noise`), but the next depends on the fourth moment of Δ, and
so on. There is no closed-form curve, and at any rate a large enough error grows.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from nl_jax.theory.perturbation import independent, relative_variance
from nl_jax.theory.ranges import in_range


class Noise(NamedTuple):
    """A distribution of independent symmetric components of variance 1, given by its fourth and sixth moments."""

    fourth: float
    """E ξ_i⁴."""
    sixth: float
    """E ξ_i⁶."""


GAUSSIAN = Noise(3.0, 15.0)
RADEMACHER = Noise(1.0, 1.0)


class Recursion(NamedTuple):
    """The recursion E‖Δ′‖² = (1 − 2η + η² C)‖Δ‖² + η² S.

    >>> rule = weight_perturbation(M=2, N=3, sigma=0.1)
    >>> rule.contraction, 1 / rule.best_rate, round(rule.floor(rule.best_rate), 3)
    (40.0, 40.0, 0.075)
    >>> rule.curve(start=6.0, rate=rule.best_rate, steps=[0, 100, 1000]).round(3)
    array([6.   , 0.546, 0.075])
    """

    contraction: float
    """C."""
    noise: float = 0.0
    """S."""

    def factor(self, rate: ArrayLike) -> np.ndarray:
        """The factor 1 − 2η + η² C that multiplies the error above the floor at every step."""
        rate = np.asarray(rate, np.float64)
        return 1 - 2 * rate + rate**2 * self.contraction

    @property
    def best_rate(self) -> float:
        """The best rate, 1/C, which minimises the factor to 1 − 1/C."""
        return 1 / self.contraction

    @property
    def stability_limit(self) -> float:
        """The stability limit, 2/C: at this rate the error no longer falls, and above it the error diverges."""
        return 2 / self.contraction

    def floor(self, rate: float) -> float:
        """The final error, η S/(2 − η C); infinite from the stability limit on."""
        return rate * self.noise / (2 - rate * self.contraction) if rate < self.stability_limit else np.inf

    def curve(self, start: float, rate: float, steps: ArrayLike) -> np.ndarray:
        """The learning curve E‖Δ_t‖² = f^t ‖Δ_0‖² + η² S (1 − f^t)/(1 − f), where f is the factor.

        Args:
          start: ‖Δ_0‖², or its mean.
          rate: η.
          steps: t, whole numbers of at least 0 of any shape.

        Returns:
          float64, of the shape of `steps`.

        Raises:
          ValueError: for a negative number of steps.
        """
        steps, f = np.asarray(steps), self.factor(rate)
        if np.any(steps < 0):
            raise ValueError(f"steps must be whole numbers of at least 0, got {steps.min()}")
        echoes = steps if f == 1 else (1 - f**steps) / (1 - f)
        return f**steps * start + rate**2 * self.noise * echoes


def backprop(N: int, *, batch: int = 1) -> Recursion:
    """Returns backprop's recursion: C = 1 + (N + 1)/B and no noise, for any number of outputs.

    Args:
      N: inputs, at least 1.
      batch: B, examples per step, at least 1.

    Raises:
      ValueError: for a number out of range.
    """
    in_range(N=(N, 1), batch=(batch, 1))
    return Recursion(1 + (N + 1) / batch)


def node_perturbation(
    M: int, N: int, *, sigma: float, num_samples: int = 1, batch: int = 1, noise: Noise = GAUSSIAN
) -> Recursion:
    """Returns C = 1 + ((N + 2)(1 + (s − 1)/K) − 1)/B with s = M − 1 + E ξ_i⁴, S = σ² N E‖ξ‖⁶/(4KB).

    Args:
      M: outputs, at least 1.
      N: inputs, at least 1.
      sigma: σ of the one-sided difference, at least 0; use 0 for the central difference with any step.
      num_samples: K, at least 1.
      batch: B, examples per step, at least 1.
      noise: distribution of ξ.

    Raises:
      ValueError: for a number out of range.
    """
    in_range(M=(M, 1), N=(N, 1), sigma=(sigma, 0), num_samples=(num_samples, 1), batch=(batch, 1))
    spread = 1 + relative_variance(independent(M, kurtosis=noise.fourth), num_samples)
    curvature = sigma**2 * N * _sixth(M, noise) / (4 * num_samples)
    return Recursion(1 + (backprop(N).contraction * spread - 1) / batch, curvature / batch)


def weight_perturbation(
    M: int, N: int, *, sigma: float, num_samples: int = 1, batch: int = 1, noise: Noise = GAUSSIAN
) -> Recursion:
    """Returns C = (1 + (N + 1)/B)(1 + (s − 1)/K) with s = MN − 1 + E ξ_i⁴, S = σ² F/(4K).

    Unlike in node space, a larger batch averages over examples but not over perturbations.

    Args:
      M: outputs, at least 1.
      N: inputs, at least 1.
      sigma: σ of the one-sided difference, at least 0; use 0 for the central difference with any step.
      num_samples: K, at least 1.
      batch: B, examples per step, at least 1.
      noise: distribution of ξ.

    Raises:
      ValueError: for a number out of range.
    """
    in_range(M=(M, 1), N=(N, 1), sigma=(sigma, 0), num_samples=(num_samples, 1), batch=(batch, 1))
    P = M * N
    spread = 1 + relative_variance(independent(P, kurtosis=noise.fourth), num_samples)
    # E tr(ΞΞᵀ)² ‖Ξ‖²: of the trace, only ξ_p⁴ and ξ_p² ξ_q², with p and q in one row or column, have nonzero mean.
    fourth, sixth = noise
    trace = P * (sixth + (P - 1) * fourth + (M + N - 2) * (2 * fourth + P - 2))
    curvature = sigma**2 * (_sixth(P, noise) + 2 * trace / batch) / (4 * num_samples)
    return Recursion(backprop(N, batch=batch).contraction * spread, curvature)


def node_loss_noise(
    delta: jax.Array, *, sigma: float, num_samples: int = 1, batch: int = 1, noise: Noise = GAUSSIAN
) -> jax.Array:
    """The increase of E‖ĝ‖² of node perturbation without a baseline, E (L²/σ² + L ‖ξ‖²) ‖ξ‖² ‖x‖²/(KB).

    With A = E‖Δx‖⁴ = ‖Δ‖⁴ + 2‖ΔᵀΔ‖² this is [M (N + 4) A/(4σ²) + ½ M s (N + 2)‖Δ‖²]/(KB).

    Args:
      delta: Δ, [M, N].
      sigma: σ, above 0.
      num_samples: K, at least 1.
      batch: B, examples per step, at least 1.
      noise: distribution of ξ.

    Returns:
      A scalar, to be multiplied by η² and added to the error that `Recursion` gives for one step.

    Raises:
      ValueError: for a number out of range.
    """
    _above_zero(sigma)
    in_range(num_samples=(num_samples, 1), batch=(batch, 1))
    M, N = delta.shape
    s = independent(M, kurtosis=noise.fourth)
    squared, fourth = _moments(delta)
    each = M * (N + 4) * fourth / (4 * sigma**2) + M * s * (N + 2) * squared / 2
    return each / (num_samples * batch)


def weight_loss_noise(
    delta: jax.Array, *, sigma: float, num_samples: int = 1, batch: int = 1, noise: Noise = GAUSSIAN
) -> jax.Array:
    """The increase of E‖ĝ‖² of weight perturbation without a baseline, E (L²/σ² + L ⟨‖Ξx‖²⟩) ‖Ξ‖²/K.

    With A = E‖Δx‖⁴ = ‖Δ‖⁴ + 2‖ΔᵀΔ‖² and L the mean loss of B examples, this is [P (A/B + (1 − 1/B)‖Δ‖⁴)/(4σ²)
    + ½ P s (1 + 2/(NB))‖Δ‖²]/K.

    Args:
      delta: Δ, [M, N].
      sigma: σ, above 0.
      num_samples: K, at least 1.
      batch: B, examples per step, at least 1.
      noise: distribution of ξ.

    Returns:
      A scalar, to be multiplied by η² and added to the error that `Recursion` gives for one step.

    Raises:
      ValueError: for a number out of range.
    """
    _above_zero(sigma)
    in_range(num_samples=(num_samples, 1), batch=(batch, 1))
    P, N = delta.size, delta.shape[1]
    s = independent(P, kurtosis=noise.fourth)
    squared, fourth = _moments(delta)
    of_loss = P * (fourth / batch + (1 - 1 / batch) * squared**2) / (4 * sigma**2)
    return (of_loss + P * s * (1 + 2 / (N * batch)) * squared / 2) / num_samples


def _sixth(P: int, noise: Noise) -> float:
    """Computes E‖ξ‖⁶ from the terms with three, two or no equal components."""
    return P * (noise.sixth + 3 * (P - 1) * noise.fourth + (P - 1) * (P - 2))


def _moments(delta: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Computes E‖Δx‖² and E‖Δx‖⁴."""
    squared = jnp.sum(delta**2)
    return squared, squared**2 + 2 * jnp.sum((delta.T @ delta) ** 2)


def _above_zero(sigma: float) -> None:
    if not 0 < sigma < np.inf:
        raise ValueError(f"sigma must be a finite number above 0, got {sigma!r}: without a baseline noise is E/sigma")
