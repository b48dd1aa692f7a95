"""Node and weight perturbation compared in linear networks on temporal tasks (Züge, Klos & Memmesheimer 2023).

A trial is T steps of y_t = W x_t with M outputs and one error at its end: E = (1/2T) Σ_t |y_t − y*_t|². Inputs have
variance 1 along each of n = N_eff directions and 0 along all others. Targets are y*_t = W* x_t + d_t, where no W can
produce the part d_t, of error E_opt = (1/2T) Σ_t |d_t|². Ẽ is the error under noise. Weight perturbation has one ξ,
[M, N], for the whole trial, and node perturbation a ξ_t, [M], for each step:

    W ← W − η (Ẽ − E)/σ ξ            W ← W − η (Ẽ − E)/σ Σ_t ξ_t x_tᵀ

Let Δ be W − W* along the n directions, S = Σ_t x_t x_tᵀ/T, e_t = Δ x_t − d_t and G = Σ_t e_t x_tᵀ/T the gradient.
Then (Ẽ − E)/σ is ⟨ξ, G⟩ + (σ/2) tr ξSξᵀ for weights and (1/T) Σ_t (ξ_t·e_t + (σ/2) |ξ_t|²) for nodes. Both updates
are −ηG on average. Their squares follow from Gaussian moments,

    E (zᵀa)² zᵀAz = |a|² tr A + 2 aᵀAa,    E (zᵀBz)² zᵀAz = tr A (tr²B + 2 tr B²) + 4 tr B tr AB + 8 tr AB²,

with z = ξ: A = I on the Mn relevant weights and B = S for each output; with z = (ξ_1 … ξ_T): A_st = x_s·x_t and B = I.
Odd moments vanish. In both cases

    E|Δ′|² = (1 − 2η + η²K) |Δ|² + η² (σ²F/4 + 2 E_opt H)

                  K                 F                       H
    weights    (Mn + 2) c    Mn (Mn + 4)(M s + 2c)    n (Mn + 2) ρ
    nodes       M s + 2c     (Mn/T)(MT + 2)(MT + 4)   n (M + 2ρ)

where E S² = c I and E S tr S = s I on the n directions. ρ = E|Σ_t d_t x_tᵀ|² / (n T Σ_t |d_t|²) measures how much d
resembles a function of the inputs within one trial. At T = 1 these are the laws of Werfel, Xie & Seung (2004).

Noise of equal strength at the outputs is σ_nodes² = n σ_weights² (`equal_sigma`). At small rates floors are
proportional to F and H, and the conclusions are much as in the paper:

- Repeated trials (n ≤ T): K is the same. At equal strength the ratio of F is (n/T)(MT + 2)(MT + 4) for nodes to
  (Mn + 2)(Mn + 4) for weights: 1 at T = n, about T/n for longer trials, at least 1 for M ≥ 2. d disturbs only nodes.
- Fresh inputs: the ratio of H, nodes to weights, is MT + 2 to Mn + 2: nodes explore MT directions, each with its share
  of d, and weights Mn. Nodes have the lower floor for T < n, weights for T > n. K of weights is larger by
  M(n − 1)(n + 2)/T, which vanishes for long trials.
"""

import math
from typing import NamedTuple

import jax
import numpy as np

from nl_jax.theory.ranges import in_range


class Trials(NamedTuple):
    """The properties of the inputs that determine the laws.

    Attributes:
      steps: T.
      dimension: n, the effective dimensionality N_eff.
      square: c in E S² = c I.
      trace: s in E S tr S = s I.
      chance: ρ.
    """

    steps: int
    dimension: int
    square: float
    trace: float
    chance: float


def repeated(steps: int, dimension: int) -> Trials:
    """The same inputs in every trial, with S = I exactly and Σ_t d_t x_tᵀ = 0: c = 1, s = n, ρ = 0.

    Raises:
      ValueError: if a number is below 1, or `dimension` exceeds `steps`, the maximum rank of S.
    """
    in_range(steps=(steps, 1), dimension=(dimension, 1))
    if dimension > steps:
        raise ValueError(f"{steps} steps span at most as many dimensions, got dimension = {dimension}")
    return Trials(steps, dimension, 1.0, float(dimension), 0.0)


def fresh(steps: int, dimension: int) -> Trials:
    """New inputs x_t ~ N(0, I) at each step of each trial, with d_t independent of them and of zero mean.

    T S is a Wishart matrix: c = (T + n + 1)/T, s = (nT + 2)/T, ρ = 1/T.

    Raises:
      ValueError: if a number is below 1.
    """
    in_range(steps=(steps, 1), dimension=(dimension, 1))
    T, n = steps, dimension
    return Trials(T, n, (T + n + 1) / T, (n * T + 2) / T, 1 / T)


class Law(NamedTuple):
    """The coefficients of E|Δ′|² = (1 − 2η + η²K) |Δ|² + η² (σ²F/4 + 2 E_opt H).

    Attributes:
      gain: K, the ratio of the update's mean square to the square of the mean update.
      curvature_noise: F, from the second order of the error in σ.
      residual_noise: H, from the irreducible error.
    """

    gain: float
    curvature_noise: float
    residual_noise: float


def weight_perturbation(trials: Trials, outputs: int) -> Law:
    """Returns K = (Mn + 2) c, F = Mn (Mn + 4)(M s + 2c), H = n (Mn + 2) ρ, for M outputs.

    >>> weight_perturbation(repeated(10, 5), 2)  # as for nodes at T = n
    Law(gain=12.0, curvature_noise=1680.0, residual_noise=0.0)
    """
    in_range(outputs=(outputs, 1))
    M, (_, n, c, s, rho) = outputs, trials
    return Law((M * n + 2) * c, M * n * (M * n + 4) * (M * s + 2 * c), n * (M * n + 2) * rho)


def node_perturbation(trials: Trials, outputs: int) -> Law:
    """Returns K = M s + 2c, F = (Mn/T)(MT + 2)(MT + 4), H = n (M + 2ρ), for M outputs.

    >>> node_perturbation(repeated(10, 5), 2)
    Law(gain=12.0, curvature_noise=528.0, residual_noise=10.0)
    """
    in_range(outputs=(outputs, 1))
    M, (T, n, c, s, rho) = outputs, trials
    return Law(M * s + 2 * c, M * n / T * (M * T + 2) * (M * T + 4), n * (M + 2 * rho))


def equal_sigma(sigma: float, trials: Trials) -> float:
    """The node noise √n σ that is as strong at the outputs as σ on the weights: E|ξ x_t|² = n M."""
    return sigma * trials.dimension**0.5


def best_rate(law: Law) -> float:
    """The rate η = 1/K, at which an error far above its floor falls fastest, by 1 − 1/K per trial; it stops at 2/K."""
    return 1 / law.gain


def floor(law: Law, *, rate: float, sigma: float, irreducible: float = 0.0) -> float:
    """The mean limit of E − E_opt, ½ η (σ²F/4 + 2 E_opt H)/(2 − ηK); infinite from η = 2/K on.

    Args:
      law: the law from `weight_perturbation` or `node_perturbation`.
      rate: η, above 0.
      sigma: σ of that rule's own noise, at least 0; 0 is the limit of small noise.
      irreducible: E_opt, at least 0.

    Raises:
      ValueError: for a number out of range.
    """
    _check(rate, sigma, irreducible)
    noise = sigma**2 * law.curvature_noise / 4 + 2 * irreducible * law.residual_noise
    slack = 2 - rate * law.gain
    return rate * noise / slack / 2 if slack > 0 else math.inf


def learning_curve(
    law: Law, trial: jax.Array | np.ndarray, start: float, *, rate: float, sigma: float, irreducible: float = 0.0
) -> jax.Array | np.ndarray:
    """The mean of E − E_opt after given numbers of trials; its distance to the floor shrinks by 1 − 2η + η²K per trial.

    Args:
      law: the law from `weight_perturbation` or `node_perturbation`.
      trial: numbers of trials, of any shape.
      start: E − E_opt before the first trial, ½|Δ|².
      rate: η, above 0 and below 2/K.
      sigma: σ of that rule's own noise, at least 0.
      irreducible: E_opt, at least 0.

    Returns:
      The expected excess errors, of the shape of `trial`.

    Raises:
      ValueError: for a number out of range.
    """
    end = floor(law, rate=rate, sigma=sigma, irreducible=irreducible)
    if end == math.inf:
        raise ValueError(f"rate must be below 2/K = {2 / law.gain:.3g}, where the error falls; got {rate}")
    decay = 1 - 2 * rate + rate**2 * law.gain
    return end + (start - end) * decay ** trial.astype(float)


def _check(rate: float, sigma: float, irreducible: float) -> None:
    if not 0 < rate < math.inf:
        raise ValueError(f"rate must be a finite number above 0, got {rate!r}")
    in_range(sigma=(sigma, 0), irreducible=(irreducible, 0))
