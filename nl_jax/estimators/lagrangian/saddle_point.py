"""Iterations on axons and multipliers together, towards the Lagrangian's stationary point."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nl_jax._core.require import takes
from nl_jax.base import Array, Axons, Batch, GradientEstimator, Objective, Params
from nl_jax.estimators.lagrangian.initial_activity import Start, begun
from nl_jax.estimators.lagrangian.lagrangian import gradients
from nl_jax.estimators.lagrangian.relaxation import Relaxation, relax
from nl_jax.estimators.lagrangian.solution import Point, solution
from nl_jax.propagation import record


class Iterate(NamedTuple):
    """Axons x and multipliers λ by layer, for all layers."""

    axons: Axons
    multipliers: Axons


Iteration = Callable[[Params, Batch, Iterate], tuple[Iterate, Array]]
"""`iteration(params, batch, iterate) -> (iterate, residual)`, with the residual of the given iterate."""


def saddle_point(
    objective: Objective,
    iteration: Iteration,
    relaxation: Relaxation,
    *,
    start: Start,
    remedy: str,
    evaluations: int,
    penalty: float = 0.0,
) -> GradientEstimator:
    """Returns the estimator of an iteration from `start` and multipliers of 0.

    Args:
      objective: a per-example objective that takes `propagate`.
      iteration: one step.
      relaxation: the length of the iterations.
      start: the initial axons.
      remedy: what to change if they diverge, in the form that `relax` takes.
      evaluations: the cost of one step.
      penalty: μ of the Lagrangian that the last multipliers λ belong to; those without penalty are λ + μ r.
    """
    relaxation.checked()
    takes("start", start, 1, "choose nl.initial_activity.feedforward or nl.initial_activity.zeros")
    violations = gradients(objective)

    def solve(params: Params, batch: Batch) -> Point:
        losses, feedforward = record(objective)(params, batch)
        begin = Iterate(begun(start, feedforward), jax.tree.map(jnp.zeros_like, dict(feedforward)))
        relaxed = relax(lambda at: iteration(params, batch, at), begin, relaxation, remedy)
        axons, multipliers = relaxed.carry
        residuals = violations(params, axons, multipliers, batch)[1]
        multipliers = ascended(multipliers, residuals, penalty)
        return Point(losses, axons, multipliers, evaluations * relaxed.taken, relaxed.failures)

    return solution(objective, solve)


def ascended(multipliers: Axons, residuals: Axons, step: float) -> dict[str, Array]:
    """Computes λ + μ r, layer by layer."""
    return {name: multipliers[name] + step * residual for name, residual in residuals.items()}


def descended(axons: Axons, gradient: Axons, step: float) -> dict[str, Array]:
    """Computes x − η ∂L/∂x, layer by layer."""
    return ascended(axons, gradient, -step)
