"""The outputs or the loss of an energy network at rest."""

from collections.abc import Callable
from typing import Any

import jax

from nl_jax._core.failures import raise_if_known
from nl_jax.base import Array, Axons, Batch, Failure, Params, Program
from nl_jax.estimators.equilibrium.energy import EnergyNetwork, energy_network
from nl_jax.estimators.lagrangian.relaxation import distance, relax


def at_equilibrium(
    program: Program,
    *,
    feedback_strength: float | Array = 1.0,
    rate: float = 0.5,
    num_steps: int | Array = 1000,
    tolerance: float = 1e-6,
) -> Callable[[Params, Any], Any]:
    """Returns the program at the equilibrium x_0 of its energy network: its outputs, or its losses.

    For a forward function, these are the outputs of a network trained by `nl.equilibrium_propagation`; for an
    objective, the loss whose gradient that estimator estimates. `nl.backprop(nl.at_equilibrium(objective))` is the
    gradient. It is computed by implicit differentiation at the fixed point, not through the iterations: the linear
    system of the adjoint is solved by the same damped iteration (recurrent backpropagation: Almeida 1987; Pineda 1987).
    Forward mode works as well.

    Args:
      program: a forward function or a per-example objective that takes `propagate`. See `nl.equilibrium_propagation`
        for the requirements on its layers.
      feedback_strength: γ, above 0: feedback weights are γ times the forward weights.
      rate: the step of the damped iteration x ← x + rate (f(…) − x), above 0 and at most 1.
      num_steps: the maximum number of iterations, at least 1, of the network and of its adjoint.
      tolerance: iterations end once the residual is at most this fraction of the first one, in [0, 1).

    Returns:
      `program(params, inputs) -> outputs`. It takes no `propagate`, because its layers are not run one after the other.
      Under `jax.jit`, outputs are NaN if the iteration diverges, and gradients are NaN if the adjoint's iteration does.

    Raises:
      ValueError: if the program takes no `propagate` or a setting is out of range; when run, if an activation
        holds parameters, or γ^{1−L} is out of the floating-point range.
      FloatingPointError: when run outside of `jax.jit`, if the iteration diverges.

    >>> import jax.numpy as jnp, nl_jax as nl
    >>> def both_ways(w, u, propagate=nl.propagation.feedforward):
    ...     low = propagate("low", lambda w, u: u, lambda nu: nu, w, u)
    ...     return propagate("high", lambda w, x: w * x, lambda nu: nu, w, low)
    >>> y = at_equilibrium(both_ways)(jnp.array(0.5), jnp.ones([1, 1]))
    >>> round(float(y[0, 0]), 3)  # x = 1 + y/2, y = x/2
    0.667
    """
    network = energy_network("at_equilibrium", program, feedback_strength, rate, num_steps, tolerance)

    def at_rest(params: Params, inputs: Any) -> Any:
        axons, failures = free_equilibrium(network, params, inputs)
        raise_if_known(failures)
        return network.outputs(params, axons, inputs)

    return at_rest


def free_equilibrium(network: EnergyNetwork, params: Params, batch: Batch) -> tuple[Axons, tuple[Failure, ...]]:
    """Finds x_0 with x_0 = f(∂Φ/∂x), differentiable by the parameters, and whether the iteration failed."""

    def residual(axons: Axons) -> Axons:
        answers = network.answers(params, axons, batch, network.forces(params, axons, batch))
        return jax.tree.map(lambda answer, x: answer - x, answers, dict(axons))

    def solve(_: Callable, start: Axons) -> tuple[Axons, tuple[Failure, ...]]:
        relaxed = network.settle(params, start, batch)
        # As floats: custom_root differentiates all its outputs, and has no tangent for a bool.
        return relaxed.carry, jax.tree.map(lambda occurred: occurred.astype(float), relaxed.failures)

    def solve_linear(linear: Callable[[Axons], Axons], right: Axons) -> Axons:
        def step(t: Axons) -> tuple[Axons, Array]:
            change = jax.tree.map(lambda a, b: a - b, linear(t), right)
            return jax.tree.map(lambda t, d: t + network.rate * d, t, change), distance(change)

        return relax(step, jax.tree.map(lambda x: 0 * x, right), network.relaxation, network.remedy).carry

    def tangent_solve(linear: Callable[[Axons], Axons], right: Axons) -> Axons:
        return jax.lax.custom_linear_solve(linear, right, solve_linear, solve_linear)

    start = jax.lax.stop_gradient(network.start(params, batch))
    return jax.lax.custom_root(residual, start, solve, tangent_solve, has_aux=True)
