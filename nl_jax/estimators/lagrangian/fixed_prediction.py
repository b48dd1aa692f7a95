"""Predictive coding with fixed predictions (Millidge, Tschantz & Buckley 2020)."""

import jax
import jax.numpy as jnp

from nl_jax._core.require import layered, positive_number
from nl_jax.base import Array, Axons, Batch, GradientEstimator, Objective, Params
from nl_jax.estimators.lagrangian.freedom import free_axons
from nl_jax.estimators.lagrangian.relaxation import Relaxation, distance, relax
from nl_jax.estimators.lagrangian.solution import Point, solution
from nl_jax.propagation import clamp, record


def fixed_prediction(
    objective: Objective, *, rate: float = 1.0, num_steps: int | Array = 100, tolerance: float = 0.0
) -> GradientEstimator:
    """Relaxes prediction errors with predictions fixed at the forward pass: backprop's own recursion, in parallel.

        λ_l ← λ_l − η ∂L/∂x_l,   ∂L/∂x_l = λ_l + ∂C/∂x_l − Σ_k J_klᵀ λ_k   at x = feedforward,   λ_L = −∂C/∂x_L

    All hidden layers are updated at once, from λ = 0, each from its own current λ and that of the layers k above it.
    These are the dynamics of predictive coding in λ_l = x_l − f(W_l x_{l−1} + b_l), except that predictions and
    Jacobians J stay those of the feedforward axons (activity). Their only equilibrium is the solution of the adjoint
    equations, where the estimate is exactly the gradient (Millidge, Tschantz & Buckley 2020). With a rate η = 1 it is
    reached after as many steps as there are layers above the lowest. Otherwise the error falls as |1 − η|ᵏ in the
    number k of steps, times a polynomial in k.

    Args:
      objective: a per-example objective that takes `propagate`.
      rate: η, above 0 and below 2, beyond which nothing converges.
      num_steps: the maximum number of steps; with fewer than there are hidden layers, some of them learn nothing.
      tolerance: relaxation ends once ‖∂L/∂x‖ has fallen to this fraction of its first value, in [0, 1). With 0, once it
        is exactly 0. Choose it small if credit fades on its way down: the residual does not include credit that has yet
        to arrive.

    Returns:
      An estimator without state or randomness: 1 evaluation per step and 3 more.

    Raises:
      ValueError: if the objective takes no `propagate` or a setting is out of range; when run, if layers share a name
        or the first axis of a layer's axons is not the batch.

    >>> import jax, jax.numpy as jnp, nl_jax as nl
    >>> net = nl.mlp([3, 4, 4, 2], activation=nl.activations.tanh())
    >>> objective = nl.supervised(net.apply, nl.losses.half_squared_error)
    >>> params, batch = net.init(jax.random.key(1)), (jnp.ones([5, 3]), jnp.ones([5, 2]))
    >>> estimate = jax.jit(fixed_prediction(objective, num_steps=2).estimate)  # for two hidden layers
    >>> grads, _, info = estimate(jax.random.key(0), (), params, batch)
    >>> exact, _, _ = nl.backprop(objective).estimate(jax.random.key(0), (), params, batch)
    >>> bool(jnp.allclose(grads["hidden1"]["weight"], exact["hidden1"]["weight"], atol=1e-6)), int(info.evaluations)
    (True, 5)
    """
    layered("fixed_prediction", objective)
    rate = positive_number("rate", rate)
    if rate >= 2:
        raise ValueError(f"rate must be below 2, or errors grow from step to step, got {rate!r}")
    relaxation = Relaxation(num_steps, tolerance).checked()

    def solve(params: Params, batch: Batch) -> Point:
        losses, feedforward = record(objective)(params, batch)
        freedom = free_axons("fixed_prediction", objective, params, batch, feedforward)
        output = freedom.credit(objective, params, feedforward, batch)
        fixed = {name: feedforward[name] for name in freedom.hidden}

        def predicted(axons: Axons) -> tuple[Array, dict[str, Array]]:
            losses, layers = clamp(objective)(params, batch, {**feedforward, **axons})
            return losses, {name: layer.predicted for name, layer in layers.items()}

        (losses, _), backward = jax.vjp(predicted, fixed)

        def step(multipliers: dict[str, Array]) -> tuple[dict[str, Array], Array]:
            errors = jax.tree.map(jnp.negative, {**output, **multipliers})
            (received,) = backward((jnp.ones_like(losses), errors))  # ∂C/∂x − Σ Jᵀλ
            imbalance = jax.tree.map(jnp.add, multipliers, received)  # ∂L/∂x
            relaxed = jax.tree.map(lambda l, g: (1 - rate) * l - rate * g, multipliers, received)
            return relaxed, distance(imbalance)

        begin = {name: output.get(name, jnp.zeros_like(x)) for name, x in fixed.items()}
        multipliers, taken, failures = relax(step, begin, relaxation, remedy=None)
        return Point(losses, feedforward, {**output, **multipliers}, taken + 1, failures)

    return solution(objective, solve)
