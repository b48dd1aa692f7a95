"""Computes the likelihood of observed changes under a random candidate rule."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln, logsumexp

from nl_jax.base import Array

_COMPONENTS = 64
"""Maximum number of components of the mixture over sizes of an estimate."""

_RATES = np.linspace(math.log(0.01), math.log(10.0), 200)
"""log(A/‖d‖) at which the integral over A is evaluated."""

_RATIOS = np.linspace(math.log(1e-3), math.log(1e3), 280)
"""log(A/σ√n) of the grid for unknown noise."""

_NOISES = np.linspace(-2.5, 2.5, 101)
"""log of σ relative to its second-moment estimate, of the grid for unknown noise."""


class Scatter(NamedTuple):
    """Estimates of a random candidate at each of T steps, modelled as ĝ = c m + √(λ v) ε with ε of unit variance.

    Attributes:
      mean: m, [T, n].
      variance: v, about c m, [T, n].
      along: c of J draws, [T, J]: the size of an estimate along the mean.
      spread: λ of the same draws, [T, J]: the squared size of an estimate around the mean.
    """

    mean: Array
    variance: Array
    along: Array
    spread: Array

    def seen(self, mask: Array) -> "Scatter":
        """Sets unobserved components to 0; `mask` is [T, n]."""
        return self._replace(mean=jnp.where(mask, self.mean, 0), variance=jnp.where(mask, self.variance, 0))

    @property
    def power(self) -> Array:
        """The expected squared norm, Σ_t E‖ĝ‖²."""
        along, spread = jnp.mean(self.along**2, axis=1), jnp.mean(self.spread, axis=1)
        return jnp.sum(along * jnp.sum(self.mean**2, axis=1) + spread * jnp.sum(self.variance, axis=1))


def scatter(draws: Array) -> Scatter:
    """Models one step's estimates [J, n]; the result has no axis of steps.

    A single sample of weight perturbation, (gᵀξ) ξ, has one size gᵀξ for all weights, from 0 to several times the
    typical one. c and λ represent this shared size, which independent distributions of single weights cannot. With
    normal ε, the relative variance of λ over n weights is 2/n. ε already accounts for it, so it is subtracted.
    """
    J = len(draws)
    m = jnp.mean(draws, axis=0)
    square = jnp.vdot(m, m)
    c = jnp.where(square > 0, draws @ m / jnp.where(square > 0, square, 1), 1)
    rest = draws - c[:, None] * m[None]
    v = jnp.sum(rest**2, axis=0) / max(J - 1, 1)
    varies = v > 0
    count = jnp.maximum(jnp.sum(varies), 1).astype(v.dtype)
    spread = jnp.sum(jnp.where(varies[None], rest**2 / jnp.where(varies, v, 1)[None], 0), axis=1) / count
    of_its_own = jnp.var(spread) - 2 / count
    kept = jnp.sqrt(jnp.clip(of_its_own, 0) / jnp.maximum(jnp.var(spread), jnp.finfo(v.dtype).tiny))
    mean = jnp.mean(spread)
    return Scatter(m, v, c[:_COMPONENTS], (mean + kept * (spread - mean))[:_COMPONENTS])


def scattered_evidence(d: Array, n: Array, g: Scatter, sigma: Array | None) -> tuple[Array, Array]:
    """Computes log p(d) and the best-fitting rate η by quadrature over A (and σ), up to the constants of `evidence`.

        p(d | η, σ) = Π_t mean over j of N(d_t; η c_j m_t, η² λ_j v_t + σ²)

    Args:
      d: the observed changes, 0 elsewhere, [T, n].
      n: the number of observed values.
      g: the scatter of −ĝ, 0 where unobserved.
      sigma: σ, None if unknown.
    """
    L, length = jnp.sqrt(g.power), jnp.linalg.norm(d)

    def log_density(r: Array, sigma: Array) -> Array:
        """Computes log of σⁿ p(d) (2π)^{n/2}/σⁿ at η = r σ for several σ, [σ]."""

        def at_step(d: Array, m: Array, v: Array, c: Array, spread: Array) -> Array:
            covariance = 1 + r**2 * spread[:, None] * v[None]  # [j, n], in units of σ²
            dd, dm, mm = (x / covariance for x in (d[None] ** 2, d[None] * m[None], m[None] ** 2))
            dd, dm, mm = (jnp.sum(x, axis=1)[None] for x in (dd, dm, mm))
            by = sigma[:, None]
            q = dd / by**2 - 2 * r * c[None] * dm / by + (r * c[None]) ** 2 * mm
            logs = -(q + jnp.sum(jnp.log(covariance), axis=1)[None]) / 2
            return logsumexp(logs, axis=1) - math.log(c.shape[0])

        steps = jax.vmap(at_step)(d, g.mean, g.variance, g.along, g.spread)
        return jnp.sum(steps, axis=0) - n * jnp.log(sigma)

    tiny = jnp.finfo(d.dtype).tiny
    safe = jnp.maximum(L, tiny)
    if sigma is not None:
        sigma = sigma.astype(d.dtype)
        A = length * jnp.asarray(np.exp(_RATES), d.dtype)
        logs = jax.lax.map(lambda r: log_density(r, sigma[None])[0], A / (safe * sigma))
        whole = logsumexp(logs + jnp.log(A)) + math.log(_RATES[1] - _RATES[0])
        found = whole + n * jnp.log(sigma) - jnp.log(sigma) - math.log(2 * math.pi) / 2
        return found, A[jnp.argmax(logs)] / safe
    ratio = jnp.asarray(np.exp(_RATIOS), d.dtype)  # A/(σ√n)
    guess = length / jnp.sqrt(n * (1 + ratio**2))
    sigmas = guess[:, None] * jnp.asarray(np.exp(_NOISES), d.dtype)[None]
    logs = jax.lax.map(lambda x: log_density(*x), (ratio * jnp.sqrt(n) / safe, sigmas))
    A = ratio[:, None] * sigmas * jnp.sqrt(n)
    whole = logsumexp(logs + jnp.log(A)) + math.log((_RATIOS[1] - _RATIOS[0]) * (_NOISES[1] - _NOISES[0]))
    constants = math.log(2 * math.pi) / 2 + (n - 3) / 2 * math.log(2) + gammaln((n - 1) / 2)
    return whole - constants, A.ravel()[jnp.argmax(logs)] / safe
