"""The expected estimate of activity-based node perturbation in linear networks (Dalm et al. 2023).

Noise ε ~ N(0, σ² I) in the pre-activations of all layers changes activity by u = T ε and the loss by gᵀε, where g is
the credit of all layers. The loss depends only on the last layer, so gᵀε = eᵀu with e = (0, …, 0, g_L). The estimate is

    E δ = N E[u (eᵀu)/‖u‖²] = N M e,   M = E[uuᵀ/‖u‖²],   u ~ N(0, C),   C = T Tᵀ

M has the eigenvectors of C. For many units, none of them dominant, M is nearly C/tr C, and E δ nearly (N/tr C) T g.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

_NODES = 200


def direction_moments(C: jax.Array) -> jax.Array:
    """Computes M = E[uuᵀ/‖u‖²] for u ~ N(0, C), which does not depend on the scale of C and has tr M = 1.

    In the eigenbasis of C, 1/‖u‖² = ∫ exp(−t‖u‖²) dt turns the expectation into Gaussian integrals,
    m_i = λ_i ∫₀^∞ (1 + 2 λ_i t)⁻¹ Π_j (1 + 2 λ_j t)^(−1/2) dt, evaluated by Gauss–Legendre quadrature.

    Args:
      C: symmetric and positive semidefinite, not 0, [units, units].

    Returns:
      M, [units, units].

    >>> import jax.numpy as jnp
    >>> direction_moments(3 * jnp.eye(4)).diagonal().round(4).tolist()
    [0.25, 0.25, 0.25, 0.25]
    """
    if C.ndim != 2 or C.shape[0] != C.shape[1]:
        raise ValueError(f"C must be a square matrix, the covariance of activity; got shape {list(C.shape)}")
    eigenvalues, vectors = jnp.linalg.eigh(C)
    lam = jnp.clip(eigenvalues, 0) / jnp.sum(jnp.clip(eigenvalues, 0))
    x, weights = (jnp.asarray(a, C.dtype) for a in np.polynomial.legendre.leggauss(_NODES))
    s = (x + 1) / 2
    # t = (s/(1 − s))² maps 0 … 1 to 0 … ∞ with an integrand that is smooth at both ends.
    t, dt = (s / (1 - s)) ** 2, 2 * s / (1 - s) ** 3 * weights / 2
    stretched = 1 + 2 * lam[:, None] * t[None, :]
    damping = jnp.exp(-jnp.sum(jnp.log(stretched), axis=0) / 2)
    moments = lam * ((damping * dt)[None, :] / stretched).sum(axis=1)
    return (vectors * moments[None, :]) @ vectors.T


def response(weights: Sequence[jax.Array]) -> jax.Array:
    """Computes Tᵀ of a linear chain, ν^{l+1} = ν^l W^{l+1}: noise in the units, as rows, changes activity by u = ε Tᵀ.

    Args:
      weights: W² … W^L, [units below, units], at least one. (For a single layer T would be the identity.)

    Returns:
      [N, N], the blocks (m, l) W^{m+1} … W^l for m ≤ l, the identity on the diagonal.
    """
    sizes = [weights[0].shape[0], *(W.shape[1] for W in weights)]
    rows = []
    for m in range(len(sizes)):
        block = jnp.eye(sizes[m], dtype=weights[0].dtype)
        row = [jnp.zeros((sizes[m], n), block.dtype) for n in sizes[:m]] + [block]
        for W in weights[m:]:
            block = block @ W
            row.append(block)
        rows.append(jnp.concatenate(row, axis=1))
    return jnp.concatenate(rows)


def expected_credit(weights: Sequence[jax.Array], top: jax.Array) -> list[jax.Array]:
    """Computes E δ^l of every layer of a linear chain, N M e; exact for Gaussian noise of any size and quadratic loss.

    Second-order terms of the loss are even in the noise, and Δν/‖Δν‖² is odd, so they only add variance.

    Args:
      weights: W² … W^L, [units below, units].
      top: g_L = ∂E/∂ν^L, [B, units of the last layer].

    Returns:
      E δ¹ … E δ^L, [B, units] each; the true credit is g_l = g_L (W^{l+1} … W^L)ᵀ.

    Raises:
      ValueError: for weights that do not fit each other or `top`.

    >>> import jax.numpy as jnp
    >>> low, high = expected_credit([jnp.zeros([3, 2])], jnp.ones([1, 2]))  # layers that do not disturb each other
    >>> low.tolist(), high.round(4).tolist()
    ([[0.0, 0.0, 0.0]], [[1.0, 1.0]])
    """
    sizes = [weights[0].shape[0], *(W.shape[1] for W in weights)]
    if any(W.shape[0] != n for W, n in zip(weights, sizes, strict=False)) or top.shape[-1] != sizes[-1]:
        shapes = ", ".join(str(list(W.shape)) for W in weights)
        raise ValueError(f"weights must fit one another and top of shape {list(top.shape)}; got {shapes}")
    T_rows = response(weights)
    M = direction_moments(T_rows.T @ T_rows)
    N = len(M)
    delta = N * top @ M[-sizes[-1] :]
    return jnp.split(delta, np.cumsum(sizes)[:-1].tolist(), axis=1)
