"""The method of multipliers (Hestenes 1969; Powell 1969)."""

import jax
import optax

from nl_jax._core.require import gradient_transformation, layered, positive_count, positive_integer, positive_number
from nl_jax.base import Array, Axons, Batch, GradientEstimator, Objective, Params
from nl_jax.estimators.lagrangian import initial_activity
from nl_jax.estimators.lagrangian.lagrangian import gradients
from nl_jax.estimators.lagrangian.relaxation import Relaxation, distance
from nl_jax.estimators.lagrangian.saddle_point import Iterate, Iteration, ascended, saddle_point


def augmented_lagrangian(
    objective: Objective,
    *,
    penalty: float = 5.0,
    optimizer: optax.GradientTransformation | None = None,
    num_inner: int = 40,
    num_outer: int | Array = 50,
    tolerance: float = 1e-3,
    start: initial_activity.Start = initial_activity.feedforward,
) -> GradientEstimator:
    """Iterates x ← argmin_x L_μ(x, λ) and λ ← λ + μ r; in the limit the estimate is backprop's gradient.

    L_μ is the Lagrangian with penalty μ/2 ‖r‖² (Hestenes 1969; Powell 1969). The first minimum is that of the penalty
    alone; every multiplier step removes part of its bias, more of it for larger μ. Minima are not found exactly, but
    approached in a number of steps from the previous end point.

    Args:
      objective: a per-example objective that takes `propagate`.
      penalty: μ, above 0; large where activations are curved and credit is large, which requires smaller steps.
      optimizer: the inner optimizer, an optax transformation, by default `optax.sgd(0.05 / penalty, momentum=0.9,
        nesterov=True)`. It is reinitialised after every multiplier step. Examples stay independent if it works
        elementwise.
      num_inner: the number of optimizer steps between two multiplier steps.
      num_outer: K, the maximum number of multiplier steps.
      tolerance: as in `primal_dual`.
      start: `nl.initial_activity.feedforward` or `nl.initial_activity.zeros`; multipliers start at 0.

    Returns:
      An estimator without state or randomness, with a `KKT` in `info.residuals`; an optimizer step costs two
      evaluations, a multiplier step three.

    Raises:
      ValueError: if the objective takes no `propagate`, or a setting is out of range.
      FloatingPointError: when run, if the residual grows a thousandfold; under `jax.jit` see `info.failures`.
    """
    layered("augmented_lagrangian", objective)
    penalty = positive_number("penalty", penalty)
    inner = optax.sgd(0.05 / penalty, momentum=0.9, nesterov=True) if optimizer is None else optimizer
    gradient_transformation(inner)
    positive_integer("num_inner", num_inner)
    positive_count("num_outer", num_outer)
    return saddle_point(
        objective,
        multiplier_step(objective, penalty, inner, num_inner),
        Relaxation(num_outer, tolerance),
        start=start,
        remedy=f"penalty={penalty}: choose a smaller one, or an optimizer with a smaller step size",
        evaluations=2 * num_inner + 3,
    )


def multiplier_step(
    objective: Objective, penalty: float, optimizer: optax.GradientTransformation, num_inner: int
) -> Iteration:
    """Returns the iteration that moves x towards argmin_x L_μ(x, λ), then λ ← λ + μ r."""
    forces, augmented = gradients(objective), gradients(objective, penalty=penalty)

    def iteration(params: Params, batch: Batch, at: Iterate) -> tuple[Iterate, Array]:
        def descend(step: int, carry: tuple[Axons, optax.OptState]) -> tuple[Axons, optax.OptState]:
            axons, state = carry
            dual, _ = augmented(params, axons, at.multipliers, batch)
            updates, state = optimizer.update(dual, state, axons)
            return optax.apply_updates(axons, updates), state

        axons, _ = jax.lax.fori_loop(0, num_inner, descend, (at.axons, optimizer.init(at.axons)))
        _, residuals = forces(params, axons, at.multipliers, batch)
        multipliers = ascended(at.multipliers, residuals, penalty)
        return Iterate(axons, multipliers), distance(*forces(params, *at, batch))

    return iteration
