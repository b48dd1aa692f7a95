"""Steps that look ahead (Korpelevich 1976)."""

from nl_jax._core.require import layered, nonnegative_number, positive_number
from nl_jax.base import Array, Batch, GradientEstimator, Objective, Params
from nl_jax.estimators.lagrangian import initial_activity
from nl_jax.estimators.lagrangian.lagrangian import gradients
from nl_jax.estimators.lagrangian.relaxation import Relaxation, distance
from nl_jax.estimators.lagrangian.saddle_point import Iterate, Iteration, ascended, descended, saddle_point


def extragradient(
    objective: Objective,
    *,
    step_size: float = 0.2,
    damping: float = 0.0,
    num_steps: int | Array = 1000,
    tolerance: float = 1e-3,
    start: initial_activity.Start = initial_activity.feedforward,
) -> GradientEstimator:
    """As `primal_dual`, but each step uses the gradients at the point it would lead to: it needs no damping.

    With z = (x, λ) and F = (∂L/∂x, −∂L/∂λ), z ← z − η F(z − η F(z)) (Korpelevich 1976). Where L is bilinear, errors
    shrink by √(1 − η²σ² + η⁴σ⁴) per step for all ησ < 1, with σ the singular values of ∂r/∂x: σ is at most about 3 in
    networks at initialisation, so that η must be below 1/3. If curvature makes the point no minimum over x, damping is
    needed here too.

    Args:
      objective: a per-example objective that takes `propagate`.
      step_size: η, above 0.
      damping: c of L + c/2 ‖r‖², at least 0; it adds η c σ² to the quantity that must stay below 1.
      num_steps: K, the maximum number of steps.
      tolerance: as in `primal_dual`.
      start: `nl.initial_activity.feedforward` or `nl.initial_activity.zeros`; multipliers start at 0.

    Returns:
      An estimator without state or randomness, with a `KKT` in `info.residuals`; a step costs four evaluations.

    Raises:
      ValueError: if the objective takes no `propagate`, or a setting is out of range.
      FloatingPointError: when run, if the residual grows a thousandfold; under `jax.jit` see `info.failures`.
    """
    layered("extragradient", objective)
    step_size, damping = positive_number("step_size", step_size), nonnegative_number("damping", damping)
    return saddle_point(
        objective,
        looking_ahead(objective, step_size, damping),
        Relaxation(num_steps, tolerance),
        start=start,
        remedy=f"step_size={step_size}: choose a smaller one",
        evaluations=4,
        penalty=damping,
    )


def looking_ahead(objective: Objective, step_size: float, damping: float) -> Iteration:
    """Returns the iteration z ← z − η F(z − η F(z))."""
    forces = gradients(objective, penalty=damping)

    def iteration(params: Params, batch: Batch, at: Iterate) -> tuple[Iterate, Array]:
        def along(dual: dict[str, Array], residuals: dict[str, Array]) -> Iterate:
            return Iterate(descended(at.axons, dual, step_size), ascended(at.multipliers, residuals, step_size))

        here = forces(params, *at, batch)
        there = forces(params, *along(*here), batch)
        return along(*there), distance(*here)

    return iteration
