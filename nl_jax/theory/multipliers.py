"""Convergence of multipliers: min ½ax² subject to x = b, and bilinear programs.

With damping c the flow of L = ½ax² + λ(x − b) + ½c(x − b)² is ẋ = −∂L/∂x, λ̇ = ∂L/∂λ (Platt & Barr 1988). The
violation u = x − b therefore obeys ü + (a + c) u̇ + u = 0, a damped spring.
"""

import jax
import jax.numpy as jnp


def characteristic_roots(curvature: float, damping: float) -> tuple[complex, complex]:
    """The rates of the flow, the roots of s² + (a + c) s + 1 = 0; both have negative real parts if a + c > 0.

    >>> characteristic_roots(1.0, 1.0)
    ((-1+0j), (-1+0j))
    """
    half = (curvature + damping) / 2
    root = complex(half**2 - 1) ** 0.5
    return -half + root, -half - root


def oscillates(curvature: float, damping: float) -> bool:
    """Whether a + c < 2, in which case x oscillates about b."""
    return curvature + damping < 2


def violation(t: jax.Array, *, curvature: float, damping: float, target: float, start: float = 0.0) -> jax.Array:
    """The violation u(t) = x(t) − b of the flow from x = `start`, λ = 0.

        u(t) = e^{−γt} (u₀ cos ωt + (u̇₀ + γu₀) sin(ωt)/ω),  γ = (a + c)/2,  ω² = 1 − γ²,  u̇₀ = −(a x₀ + c u₀)

    Above the threshold γ = 1, hyperbolic functions of √(γ² − 1) replace the trigonometric ones.

    Args:
      t: times, of any shape.
      curvature: a.
      damping: c.
      target: b.
      start: x₀.

    Returns:
      u, of the shape of `t`.
    """
    first = start - target
    slope = -(curvature * start + damping * first)
    gamma = (curvature + damping) / 2
    omega = abs(1 - gamma**2) ** 0.5
    if gamma > 1:  # e^{−γt} times cosh and sinh, whose product would be 0 times infinity
        slow = jnp.exp(-t / (gamma + omega))
        cosine, sine = slow * (1 + jnp.exp(-2 * omega * t)) / 2, -slow * jnp.expm1(-2 * omega * t) / (2 * omega)
    else:
        decay = jnp.exp(-gamma * t)
        cosine, sine = decay * jnp.cos(omega * t), decay * t * jnp.sinc(omega * t / jnp.pi)  # t at the threshold
    return first * cosine + (slope + gamma * first) * sine


def primal_dual_factor(
    singular_value: float, *, step_size: float, multiplier_step_size: float, damping: float
) -> float:
    """The factor on an error per step of λ ← λ + τ r, x ← x − η ∂L/∂x, on λᵀ(Jx − b) with penalty c, at a σ of J.

    It is the larger |z| of z² − (2 − ησ²(c + τ)) z + 1 − ηcσ² = 0; if the roots are complex, √(1 − ηcσ²).
    """
    damped = 1 - step_size * damping * singular_value**2
    half = (1 + damped - step_size * multiplier_step_size * singular_value**2) / 2
    root = complex(half**2 - damped) ** 0.5
    return max(abs(half + root), abs(half - root))


def extragradient_factor(singular_value: float, *, step_size: float) -> float:
    """The factor on an error per step of extragradient on λᵀ(Jx − b): |1 − iησ − η²σ²| = √(1 − η²σ² + η⁴σ⁴).

    >>> extragradient_factor(2.0, step_size=0.5)
    1.0
    """
    squared = (step_size * singular_value) ** 2
    return (1 - squared + squared**2) ** 0.5
