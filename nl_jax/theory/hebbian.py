"""Gradient flows of the Hebbian rules (seed 000, PCA networks; Oja 1982; Yan, Helmke and Moore 1994).

Units are linear, y = Wᵀ x, and inputs have the second moment C = ⟨x xᵀ⟩; t is the number of steps times their size.
"""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike


def hebb_flow(C: Array, W0: Array, t: ArrayLike) -> Array:
    """Hebb's flow: W(t) = e^{Ct} W₀ solves dW/dt = C W; eigen-components grow as e^{λ_i t} (seed 000, PCA networks).

    Args:
      C: [inputs, inputs], symmetric.
      W0: [inputs, units].
      t: a number.

    Returns:
      [inputs, units]. It grows without bound and overflows for large t.
    """
    lam, V = jnp.linalg.eigh(C)
    return V @ (jnp.exp(lam * t)[:, None] * (V.T @ W0))


def oja_flow(C: Array, w0: Array, t: ArrayLike) -> Array:
    """Oja's flow: w(t) = e^{Ct} w₀ / √(1 + w₀ᵀ(e^{2Ct} − I)w₀) solves dw/dt = C w − (wᵀ C w) w (Oja 1982).

    Numerator and denominator are divided by the largest exponential, so any t ≥ 0 is valid.

    Args:
      C: [inputs, inputs], symmetric, without negative eigenvalues.
      w0: [inputs], not orthogonal to the first eigenvector; otherwise the result vanishes for large t.
      t: a number of at least 0.

    Returns:
      [inputs]; for large t ± the first eigenvector.

    >>> oja_flow(jnp.diag(jnp.array([1.0, 2.0])), jnp.array([0.6, 0.8]), 1e4)
    Array([0., 1.], dtype=float32)
    """
    lam, V = jnp.linalg.eigh(C)
    grown = jnp.exp((lam - lam[-1]) * t) * (V.T @ w0)
    return V @ grown / jnp.sqrt(jnp.exp(-2 * lam[-1] * t) * (1 - w0 @ w0) + grown @ grown)


def subspace_flow(C: Array, W0: Array, t: ArrayLike) -> Array:
    """Subspace flow: W Wᵀ(t) = e^{Ct} W₀ [I + W₀ᵀ(e^{2Ct} − I)W₀]⁻¹ W₀ᵀ e^{Ct} (Yan, Helmke and Moore 1994).

    It solves the flow of the subspace rule, dW/dt = C W − W Wᵀ C W, a Riccati equation in W Wᵀ. The columns of W₀ are
    first combined so that each contains exactly one of the largest eigen-components, then divided by its exponential.
    No positive exponent remains, so any t ≥ 0 is valid.

    Args:
      C: [inputs, inputs], symmetric, without negative eigenvalues.
      W0: [inputs, units], units ≤ inputs; no direction of the principal subspace may be orthogonal to its columns.
      t: a number of at least 0.

    Returns:
      [inputs, inputs]; for large t the projection onto the principal subspace.
    """
    units = W0.shape[1]
    lam, V = jnp.linalg.eigh(C)
    A = V.T @ W0
    R = jnp.linalg.inv(A[-units:])
    fading = jnp.exp(-lam[-units:] * t)[None, :]
    # The last rows of A R are the identity, whose exponentials cancel; all other rows have λ_i ≤ λ_j.
    below = jnp.exp((lam[:-units, None] - lam[None, -units:]) * t) * (A[:-units] @ R)
    Z = jnp.concatenate([below, jnp.eye(units, dtype=W0.dtype)])
    rest = fading.T * (R.T @ (jnp.eye(units, dtype=W0.dtype) - W0.T @ W0) @ R) * fading
    return V @ Z @ jnp.linalg.solve(rest + Z.T @ Z, Z.T) @ V.T
