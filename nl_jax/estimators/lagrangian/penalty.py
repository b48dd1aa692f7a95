"""Constraints as a penalty: minimises an energy over the axons, then differentiates it with respect to the weights."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from nl_jax._core.require import per_example
from nl_jax.base import Array, Axons, Batch, Objective, Params
from nl_jax.estimators.lagrangian.freedom import Freedom
from nl_jax.estimators.lagrangian.lagrangian import inner
from nl_jax.estimators.lagrangian.relaxation import Relaxation, Relaxed, distance, relax
from nl_jax.estimators.lagrangian.solution import Point
from nl_jax.propagation import PartlyClamped, clamp


def energy(objective: Objective, *, penalty: float | Array = 1.0) -> Callable[[Params, Mapping, Batch], Array]:
    """Computes F = C(x_L) + μ/2 Σ_l ‖r_l‖², r_l = x_l − f(W_l x_{l−1} + b_l), per example (Whittington & Bogacz 2017).

    The axons of hidden layers are free; output layers compute theirs from the layers below.

    Args:
      objective: a per-example objective that takes `propagate`.
      penalty: μ.

    Returns:
      `F(params, hidden, batch) -> [batch]`, where `hidden` maps the names of the free layers to their axons, as `clamp`
      takes them.
    """

    def evaluate(params: Params, hidden: Mapping[str, Array | PartlyClamped], batch: Batch) -> Array:
        losses, layers = clamp(objective)(params, batch, hidden)
        total = per_example(losses)
        for name in hidden:
            residual = layers[name].axons - layers[name].predicted
            total = total + 0.5 * jnp.asarray(penalty, total.dtype) * inner(name, residual, residual, total)
        return total

    return evaluate


def infer(
    objective: Objective,
    params: Params,
    start: Axons,
    batch: Batch,
    freedom: Freedom,
    *,
    penalty: float | Array,
    optimizer: optax.GradientTransformation,
    relaxation: Relaxation,
) -> Relaxed[Axons]:
    """Descends to a minimum of F over the hidden axons.

    The descent is on F/μ = C/μ + ½ Σ ‖r‖², summed over the batch. Its curvature is bounded as μ → ∞ and, per example,
    independent of the batch's size, so that one step size serves all μ ≥ 1 and all batches.
    """
    evaluate = energy(objective, penalty=penalty)

    def descend(carry: tuple[Axons, optax.OptState]) -> tuple[tuple[Axons, optax.OptState], Array]:
        hidden, state = carry
        forces = jax.grad(lambda hidden: jnp.sum(evaluate(params, freedom.held(hidden), batch)))(hidden)
        forces = jax.tree.map(lambda force: force / jnp.asarray(penalty, force.dtype), forces)
        updates, state = optimizer.update(forces, state, hidden)
        return (optax.apply_updates(hidden, updates), state), distance(forces)

    begun = start, optimizer.init(start)
    (hidden, _), taken, failures = relax(descend, begun, relaxation, "optimizer's step size: choose a smaller one")
    return Relaxed(hidden, taken, failures)


def learning_point(
    losses: Array,
    objective: Objective,
    params: Params,
    inferred: Relaxed[Axons],
    batch: Batch,
    freedom: Freedom,
    *,
    penalty: float | Array,
) -> Point:
    """Returns the point of inferred hidden axons: λ_l = μ r_l and λ_L = −∂C/∂x_L, so that its ∂L/∂W is ∂F/∂W."""
    hidden, taken, failures = inferred
    _, layers = clamp(objective)(params, batch, freedom.held(hidden))
    axons = {name: layer.axons for name, layer in layers.items()}
    errors = {name: axons[name] - layers[name].predicted for name in hidden}
    multipliers = forces(objective, params, axons, errors, batch, freedom, penalty=penalty)
    return Point(losses, axons, multipliers, 2 * taken + 1, failures)


def forces(
    objective: Objective,
    params: Params,
    axons: Axons,
    errors: Axons,
    batch: Batch,
    freedom: Freedom,
    *,
    penalty: float | Array,
) -> dict[str, Array]:
    """Computes λ by layer: λ_l = μ r_l for hidden layers with errors r_l, and λ_L = −∂C/∂x_L for outputs."""
    pulls = {name: jnp.asarray(penalty, error.dtype) * error for name, error in errors.items()}
    credit = freedom.credit(objective, params, axons, batch)
    multipliers = {name: pulls[name] if name in pulls else credit[name] for name in axons}
    return multipliers | {name: pulls[name] + credit[name] for name in freedom.but_last}
