"""Exact solutions of the scalar linear neuron y = wᵀx under squared error (seed 000, linear models).

x holds N inputs as rows, [N, D], y their targets, [N], and w the weights, [D]. Functions of x and y raise ValueError
for other shapes.
"""

import math

import jax
import jax.numpy as jnp

from nl_jax.theory.ranges import in_range


def training_error(w: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """The training error, L^tr(w) = (1/N) Σ_n (y_n − wᵀx_n)²."""
    _check(x, y)
    _check_weights("w", w, x)
    return jnp.mean((y - x @ w) ** 2)


def covariance(x: jax.Array) -> jax.Array:
    """The seed's covariance, C = Σ_n x_n x_nᵀ, [D, D], neither centred nor divided by N."""
    return x.T @ x


def input_output(x: jax.Array, y: jax.Array) -> jax.Array:
    """Computes Σ_n y_n x_n, [D], which equals C w* at every minimiser w*."""
    _check(x, y)
    return x.T @ y


def rank_bound(N: int, D: int) -> int:
    """The upper bound min(N, D) on the rank of C; for N < D, C has no inverse and there are many minimisers."""
    return min(N, D)


def hessian(x: jax.Array) -> jax.Array:
    """The Hessian ∂²L^tr/∂w∂w = (2/N) C, [D, D].

    The seed gives C, which is the Hessian of ½ Σ_n (y_n − wᵀx_n)². Eigenvectors and minimisers are the same, but rates
    of descent on L^tr are N/2 times as large.
    """
    return 2 / len(x) * covariance(x)


def minimiser(x: jax.Array, y: jax.Array) -> jax.Array:
    """The minimiser of L^tr of least norm, w* = C⁺ Σ_n y_n x_n, [D].

    For N ≥ D this solves the normal equations; for N < D it interpolates, L^tr(w*) = 0 (for linearly independent
    inputs). It is computed from x itself, because the condition number of C is the square of that of x.
    """
    _check(x, y)
    return jnp.linalg.lstsq(x, y)[0]


def gradient_descent(x: jax.Array, y: jax.Array, start: jax.Array, rate: float, steps: int) -> jax.Array:
    """Computes the result of `steps` steps of gradient descent w ← w − η ∇L^tr in closed form.

    The modes of the Hessian decay independently. With its eigenvalues λ_i and eigenvectors v_i, and the limit w_∞,

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
    # Rounding can make curvatures of 0 negative, so that (1 − η λ)^t would grow without bound.
    decay = (1 - rate * jnp.maximum(curvatures, 0)) ** steps
    return limit + modes @ (decay * (modes.T @ (start - limit)))


def gradient_descent_limit(x: jax.Array, y: jax.Array, start: jax.Array) -> jax.Array:
    """The limit of gradient descent, w* + (I − C⁺C) w_0, [D], for any rate below 2/λ_max of the Hessian.

    It equals w_0 + C⁺ Σ_n (y_n − w_0ᵀx_n) x_n: descent moves only in the span of the inputs and keeps the component of
    w_0 outside it. From zero it finds the minimiser of least norm.
    """
    _check(x, y)
    _check_weights("start", start, x)
    return start + minimiser(x, y - x @ start)


def expected_excess_error(N: int, D: int, *, noise: float, signal: float) -> float:
    """The expected error E (ŵᵀx − wᵀx)² of the minimum-norm ŵ on new x ~ N(0, I), y = wᵀx + ε, ε ~ N(0, σ²).

    Too few examples miss a part of w. Fitting examples exactly, or nearly so, fits the noise:

        |w|² max(0, 1 − N/D) + σ² min(N, D) / (|N − D| − 1)

    This is infinite for |N − D| ≤ 1 unless there is no noise: the peak at N = D (Breiman & Freedman 1983; Belkin,
    Hsu & Xu 2020; Hastie et al. 2022). The error on new y is larger by σ².

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
    """The expected training error, E L^tr(ŵ) = σ² max(0, 1 − D/N): each weight absorbs the noise of one example.

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
