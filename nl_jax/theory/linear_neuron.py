"""The scalar linear neuron y = wᵀx under squared error, solved (seed 000, linear models).

Throughout x holds N inputs as rows, [N, D], y their targets, [N], and w weights, [D]. Functions of x and y raise
ValueError for other shapes.
"""

import math

import jax
import jax.numpy as jnp

from nl_jax.theory.ranges import in_range


def training_error(w: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """L^tr(w) = (1/N) Σ_n (y_n − wᵀx_n)²."""
    _check(x, y)
    _check_weights("w", w, x)
    return jnp.mean((y - x @ w) ** 2)


def covariance(x: jax.Array) -> jax.Array:
    """C = Σ_n x_n x_nᵀ, [D, D]: the seed's, neither centred nor divided by N."""
    return x.T @ x


def input_output(x: jax.Array, y: jax.Array) -> jax.Array:
    """Σ_n y_n x_n, [D]: what C w* equals at every minimiser w*."""
    _check(x, y)
    return x.T @ y


def rank_bound(N: int, D: int) -> int:
    """min(N, D), which the rank of C never exceeds; for N < D, C has no inverse and minimisers are many."""
    return min(N, D)


def hessian(x: jax.Array) -> jax.Array:
    """∂²L^tr/∂w∂w = (2/N) C, [D, D].

    The seed says C, which is the Hessian of ½ Σ_n (y_n − wᵀx_n)²: the same directions and the same minimisers, but
    rates of descent on L^tr are N/2 times as large.
    """
    return 2 / len(x) * covariance(x)


def minimiser(x: jax.Array, y: jax.Array) -> jax.Array:
    """w* = C⁺ Σ_n y_n x_n, [D]: of all minimisers of L^tr the one of least norm.

    For N ≥ D this solves the normal equations; for N < D it interpolates, L^tr(w*) = 0 (for linearly independent
    inputs). Found from x itself, because C has the square of its condition number.
    """
    _check(x, y)
    return jnp.linalg.lstsq(x, y)[0]


def gradient_descent(x: jax.Array, y: jax.Array, start: jax.Array, rate: float, steps: int) -> jax.Array:
    """Where `steps` steps of gradient descent w ← w − η ∇L^tr lead, in one.

    Each mode of the Hessian decays by itself: with λ_i, v_i its eigenvalues and eigenvectors and w_∞ the limit,

        w_t = w_∞ + Σ_i (1 − η λ_i)^t v_i v_iᵀ (w_0 − w_∞)

    Args:
      x, y: the data.
      start: w_0, [D].
      rate: η.
      steps: t, a whole number of at least 0.

    Returns:
      w_t, [D].

    Raises:
      ValueError: if `steps` is negative.
    """
    if isinstance(steps, int) and steps < 0:
        raise ValueError(f"steps must be a whole number of at least 0, got {steps}")
    limit = gradient_descent_limit(x, y, start)
    curvatures, modes = jnp.linalg.eigh(hessian(x))
    # Rounding takes curvatures of 0 below it, where (1 − η λ)^t would grow without end.
    decay = (1 - rate * jnp.maximum(curvatures, 0)) ** steps
    return limit + modes @ (decay * (modes.T @ (start - limit)))


def gradient_descent_limit(x: jax.Array, y: jax.Array, start: jax.Array) -> jax.Array:
    """Where gradient descent ends: w* + (I − C⁺C) w_0, [D], for any rate below 2/λ_max of the Hessian.

    Written as w_0 + C⁺ Σ_n (y_n − w_0ᵀx_n) x_n: descent moves in the span of the inputs only, and keeps of its
    start what lies outside. From zero it finds the minimiser of least norm.
    """
    _check(x, y)
    _check_weights("start", start, x)
    return start + minimiser(x, y - x @ start)


def expected_excess_error(N: int, D: int, *, noise: float, signal: float) -> float:
    """E (ŵᵀx − wᵀx)² of the minimum-norm ŵ on new x, over x ~ N(0, I) and y = wᵀx + ε, ε ~ N(0, σ²).

    Too few examples miss a part of w; those that are fitted exactly, or nearly so, let the noise in:

        |w|² max(0, 1 − N/D) + σ² min(N, D) / (|N − D| − 1)

    which is infinite for |N − D| ≤ 1 unless there is no noise: the peak at N = D (Breiman & Freedman 1983; Belkin,
    Hsu & Xu 2020; Hastie et al. 2022). The error on new y is σ² more.

    Args:
      N: examples, at least 1.
      D: inputs, at least 1.
      noise: σ, at least 0.
      signal: |w|, at least 0.

    Raises:
      ValueError: for a number out of range.

    >>> expected_excess_error(20, 10, noise=1.0, signal=1.0), expected_excess_error(10, 10, noise=1.0, signal=1.0)
    (1.1111111111111112, inf)
    """
    in_range(N=(N, 1), D=(D, 1), noise=(noise, 0), signal=(signal, 0))
    missed = signal**2 * max(0.0, 1 - N / D)
    if noise == 0:
        return missed
    return missed + (noise**2 * min(N, D) / (abs(N - D) - 1) if abs(N - D) > 1 else math.inf)


def expected_training_error(N: int, D: int, *, noise: float) -> float:
    """E L^tr(ŵ) = σ² max(0, 1 − D/N): every weight takes one example's worth of noise, until none is left.

    Args:
      N: examples, at least 1, in general position.
      D: inputs, at least 1.
      noise: σ, at least 0.

    Raises:
      ValueError: for a number out of range.
    """
    in_range(N=(N, 1), D=(D, 1), noise=(noise, 0))
    return noise**2 * max(0.0, 1 - D / N)


def _check(x: jax.Array, y: jax.Array) -> None:
    if x.ndim != 2 or y.shape != x.shape[:1]:
        raise ValueError(f"x must be of shape [N, D] and y of shape [N], got {list(x.shape)} and {list(y.shape)}")


def _check_weights(name: str, w: jax.Array, x: jax.Array) -> None:
    if w.shape != x.shape[1:]:
        raise ValueError(f"{name} must be of shape [D] = {list(x.shape[1:])}, as x has columns; got {list(w.shape)}")
