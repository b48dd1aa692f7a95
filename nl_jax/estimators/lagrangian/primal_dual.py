"""Descent on the axons, ascent on the multipliers (Arrow, Hurwicz & Uzawa 1958; Platt & Barr 1988)."""

from nl_jax._core.require import layered, nonnegative_number, positive_number
from nl_jax.base import Array, Batch, GradientEstimator, Objective, Params
from nl_jax.estimators.lagrangian import initial_activity
from nl_jax.estimators.lagrangian.lagrangian import gradients
from nl_jax.estimators.lagrangian.relaxation import Relaxation, distance
from nl_jax.estimators.lagrangian.saddle_point import Iterate, Iteration, ascended, descended, saddle_point


def primal_dual(
    objective: Objective,
    *,
    step_size: float = 0.05,
    multiplier_step_size: float = 0.5,
    damping: float = 1.0,
    num_steps: int | Array = 2000,
    tolerance: float = 1e-3,
    start: initial_activity.Start = initial_activity.feedforward,
) -> GradientEstimator:
    """Iterates x ← x − η ∂L/∂x and λ ← λ + τ ∂L/∂λ; in the limit the estimate is backprop's gradient.

    All layers move at once, each by its own constraint, those of the layers it feeds, and their multipliers. With
    damping c > 0 this is the damped multiplier method of Platt & Barr 1988 (MDMM), where λ + c r acts on the axons
    (activity); with c = 0 it is that of Arrow, Hurwicz & Uzawa 1958. λ moves first, and x uses the new λ. L is bilinear
    in hidden layers: there, undamped steps of both from the same point would spiral outwards by √(1 + ητσ²) per step,
    while these circle.

    Let σ be the singular values of ∂r/∂x, between about 1/4 and 3 in networks at initialisation and 1/10 and 5 once
    trained. Steps are stable up to η (2c + τ) σ² ≈ 4, less for losses of high curvature; with the defaults, up to
    σ = 5.6. If τ ≥ c/4, errors shrink by about √(1 − ηcσ²) per step at the smallest σ: at initialisation a larger η
    converges in fewer steps. Where activations are curved and credit is large, as with large weights, or at the kinks
    of a maximum, the point is stable only for large c: set τ = c, and η in inverse proportion.

    Args:
      objective: a per-example objective that takes `propagate`.
      step_size: η, above 0.
      multiplier_step_size: τ, above 0.
      damping: c, at least 0; with 0, convergence is slow at best.
      num_steps: K, the maximum number of steps.
      tolerance: iterations stop once the norm of ∂L/∂x and ∂L/∂λ, over the batch, is at most this fraction of the
        first, in [0, 1). With 0 all K steps are taken, and no example's result depends on another's.
      start: `nl.initial_activity.feedforward` or `nl.initial_activity.zeros`; multipliers start at 0.

    Returns:
      An estimator without state or randomness. Its `info.residuals` is a `KKT` of the final point, with the multipliers
      that act on x; a step costs two evaluations.

    Raises:
      ValueError: if the objective takes no `propagate`, or a setting is out of range.
      FloatingPointError: when run, if the residual grows a thousandfold; under `jax.jit` see `info.failures`.

    >>> import jax, jax.numpy as jnp, nl_jax as nl
    >>> net = nl.mlp([3, 4, 2], activation=nl.activations.tanh())
    >>> objective = nl.supervised(net.apply, nl.losses.cross_entropy)
    >>> batch = jnp.ones([5, 3]), jnp.zeros(5, int)
    >>> key, params = jax.random.key(0), net.init(jax.random.key(1))
    >>> ours, _, info = primal_dual(objective).estimate(key, (), params, batch)
    >>> exact, _, _ = nl.backprop(objective).estimate(key, (), params, batch)
    >>> bool(jnp.allclose(ours["hidden1"]["weight"], exact["hidden1"]["weight"], atol=1e-2))
    True
    """
    layered("primal_dual", objective)
    step_size = positive_number("step_size", step_size)
    ascent = positive_number("multiplier_step_size", multiplier_step_size)
    damping = nonnegative_number("damping", damping)
    return saddle_point(
        objective,
        alternating(objective, step_size, ascent, damping),
        Relaxation(num_steps, tolerance),
        start=start,
        remedy=f"step_size={step_size}: choose a smaller one",
        evaluations=2,
        penalty=damping + ascent,
    )


def alternating(objective: Objective, step_size: float, multiplier_step_size: float, damping: float) -> Iteration:
    """Returns the iteration λ ← λ + τ r, then x ← x − η ∂L/∂x with the new λ."""
    # The new λ, λ + τ r, acts like a penalty larger by τ: one gradient serves both steps.
    forces = gradients(objective, penalty=damping + multiplier_step_size)

    def iteration(params: Params, batch: Batch, at: Iterate) -> tuple[Iterate, Array]:
        dual, residuals = forces(params, *at, batch)
        axons = descended(at.axons, dual, step_size)
        return Iterate(axons, ascended(at.multipliers, residuals, multiplier_step_size)), distance(dual, residuals)

    return iteration
