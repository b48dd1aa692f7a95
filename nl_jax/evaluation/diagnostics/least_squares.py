"""Least squares, linear and through unrolled training, with standard errors."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from nl_jax.base import Array

SMALLEST_DAMPING, FIRST_DAMPING, LARGEST_DAMPING = 1e-12, 1e-2, 1e12
SHRINKAGE_STEPS = 300
"""Steps of the inner proximal gradient method; their cost is negligible next to the unrolled training."""


class Solution(NamedTuple):
    """A least-squares solution.

    Attributes:
      variables: v [variables].
      covariance: the covariance of v [variables, variables].
      standard_errors: [variables], infinite where the observations do not determine a variable.
      noise: σ, the standard deviation of the residuals for the remaining degrees of freedom; NaN if there are none.
    """

    variables: Array
    covariance: Array
    standard_errors: Array
    noise: Array


def linear(design: Array, observed: Array) -> Solution:
    """Finds the v that minimises ‖observed − design v‖²; among several, the one of shortest (scaled) length."""
    lengths = _lengths(design)
    U, s, Vt = jnp.linalg.svd(design / lengths[None, :], full_matrices=False)
    variables = Vt.T @ (_inverse(s, design.shape) * (U.T @ observed)) / lengths
    return judged(variables, observed - design @ variables, design, jnp.asarray(observed.size, design.dtype))


def judged(variables: Array, residuals: Array, design: Array, count: Array) -> Solution:
    """Computes the covariance of a least-squares solution, σ² (JᵀJ)⁻¹ with σ² = Σ r² / (count − variables)."""
    lengths = _lengths(design)
    _, s, Vt = jnp.linalg.svd(design / lengths[None, :], full_matrices=False)
    inverse = _inverse(s, design.shape)
    freedom = jnp.where(count > variables.size, count - variables.size, jnp.nan)
    noise = jnp.sqrt(jnp.sum(residuals**2) / freedom)
    scaled = noise * inverse[:, None] * Vt / lengths[None, :]
    covariance = scaled.T @ scaled
    # A variable is undetermined if it lies partly in directions without a singular value above rounding.
    seen = jnp.sum(jnp.where((inverse > 0)[:, None], Vt**2, 0), axis=0)
    open_ones = (seen < 1 - 1e-3) | (jnp.linalg.norm(design, axis=0) == 0)
    return Solution(variables, covariance, jnp.where(open_ones, jnp.inf, jnp.sqrt(jnp.diag(covariance))), noise)


class _Point(NamedTuple):
    variables: Array
    loss: Array
    residuals: Array
    jacobian: Array


def descend(
    residuals: Callable[[Array], Array], start: Array, *, count: Array, penalty: Array | None = None, num_steps: int
) -> Array:
    """Minimises ½ Σ r(v)² / count + Σ penalty |v| from `start` by the Levenberg–Marquardt method.

    Each step minimises the loss of the linearised residuals plus a damping term. A step that does not lower the loss,
    or makes it infinite, is rejected, and the next one is shorter. Derivatives are in forward mode, because there are
    few variables and many residuals.

    Args:
      residuals: `residuals(v) -> r [residuals]`, 0 where nothing was observed.
      start: the initial v [variables], where r is finite.
      count: the number of observed residuals.
      penalty: [variables], at least 0 (L1); None for no penalty.
      num_steps: steps tried; each costs one evaluation of r and of its Jacobian.
    """

    def evaluated(v: Array) -> _Point:
        r = residuals(v)
        shrinking = 0.0 if penalty is None else jnp.sum(penalty * jnp.abs(v))
        return _Point(v, jnp.sum(r**2) / (2 * count) + shrinking, r, jax.jacfwd(residuals)(v))

    def step(carry: tuple[_Point, Array], _: None) -> tuple[tuple[_Point, Array], None]:
        at, damping = carry
        trial = evaluated(_stepped(at, damping) if penalty is None else _shrunk(at, damping, penalty * count))
        lower = trial.loss < at.loss  # False for NaN
        at = jax.tree.map(lambda new, old: jnp.where(lower, new, old), trial, at)
        damping = jnp.clip(jnp.where(lower, damping / 10, damping * 5), SMALLEST_DAMPING, LARGEST_DAMPING)
        return (at, damping), None

    first = evaluated(start), jnp.asarray(FIRST_DAMPING, start.dtype)
    (at, _), _ = jax.lax.scan(step, first, length=num_steps)
    return at.variables


def _stepped(at: _Point, damping: Array) -> Array:
    """Returns v + d, where d minimises ‖r + J d‖² + damping ‖D d‖² and D holds the lengths of J's columns."""
    lengths = _lengths(at.jacobian)
    eye = jnp.sqrt(damping) * jnp.eye(lengths.size, dtype=lengths.dtype)
    Q, R = jnp.linalg.qr(jnp.concatenate([at.jacobian / lengths[None, :], eye]))
    below = jnp.concatenate([at.residuals, jnp.zeros_like(lengths)])
    return at.variables - solve_triangular(R, Q.T @ below) / lengths


def _shrunk(at: _Point, damping: Array, penalty: Array) -> Array:
    """`_stepped` with Σ penalty |v + d| added, by FISTA (Beck and Teboulle 2009) in units of the columns' lengths."""
    lengths = _lengths(at.jacobian)
    J = at.jacobian / lengths[None, :]
    H = J.T @ J + damping * jnp.eye(lengths.size, dtype=lengths.dtype)
    origin = at.variables * lengths
    gradient = J.T @ at.residuals
    size = 1 / jnp.linalg.eigvalsh(H)[-1]

    def step(carry: tuple[Array, Array, Array], _: None) -> tuple[tuple[Array, Array, Array], None]:
        u, ahead, t = carry
        moved = ahead - size * (gradient + H @ (ahead - origin))
        new = jnp.sign(moved) * jnp.maximum(jnp.abs(moved) - size * penalty / lengths, 0)
        t_next = (1 + jnp.sqrt(1 + 4 * t**2)) / 2
        return (new, new + (t - 1) / t_next * (new - u), t_next), None

    first = origin, origin, jnp.ones((), origin.dtype)
    (u, _, _), _ = jax.lax.scan(step, first, length=SHRINKAGE_STEPS)
    return u / lengths


def _lengths(design: Array) -> Array:
    """Computes the lengths of the columns; 1 for columns of zeros."""
    lengths = jnp.linalg.norm(design, axis=0)
    return jnp.where(lengths > 0, lengths, 1)


def _inverse(s: Array, shape: tuple[int, ...]) -> Array:
    """Computes 1/s; 0 for singular values at rounding level."""
    kept = s > jnp.finfo(s.dtype).eps * max(shape) * s[0]
    return jnp.where(kept, 1 / jnp.where(kept, s, 1), 0)
