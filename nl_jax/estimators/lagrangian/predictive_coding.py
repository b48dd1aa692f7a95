"""Predictive coding (Rao & Ballard 1999; Whittington & Bogacz 2017)."""

import optax

from nl_jax._core.require import gradient_transformation, layered, positive_hyperparameter, takes
from nl_jax.base import Array, Batch, GradientEstimator, Objective, Params
from nl_jax.estimators.lagrangian import initial_activity
from nl_jax.estimators.lagrangian.freedom import free_axons
from nl_jax.estimators.lagrangian.penalty import infer, learning_point
from nl_jax.estimators.lagrangian.relaxation import Relaxation
from nl_jax.estimators.lagrangian.solution import Point, solution
from nl_jax.propagation import record

_DESCENT = optax.sgd(0.1)


def predictive_coding(
    objective: Objective,
    *,
    penalty: float | Array = 1.0,
    optimizer: optax.GradientTransformation = _DESCENT,
    num_steps: int | Array = 200,
    tolerance: float = 1e-3,
    start: initial_activity.Start = initial_activity.feedforward,
) -> GradientEstimator:
    """Computes ∂F/∂W at a minimum of the energy F over the axons (activity), which only a penalty constrains.

        F = C(x_L) + μ/2 Σ_l ‖x_l − f(W_l x_{l−1} + b_l)‖²   over hidden layers l,   x_L = f(W_L x_{L−1} + b_L)

    Layers that no other layer reads are outputs; the others are hidden. Several heads, or a read-out at every step of a
    loop, are all outputs.

    Hidden axons are inferred by x ← x − η ∂F/∂x. Then ∂F/∂W is each layer's own prediction error times its inputs. With
    half the squared error and μ = 1 this is predictive coding with clamped targets (Whittington & Bogacz 2017); other
    losses give other output energies (Pinchetti et al. 2022). It is **not** the gradient: the axons have absorbed part
    of the error before the weights learn from the rest, and the layers' inputs have moved. As μ → ∞ it becomes the
    gradient, with an error proportional to 1/μ. Giving the output's energy a small weight α = 1/μ, and dividing the
    estimate by it, is equivalent (Millidge et al. 2022). `info.residuals` is the certificate: at equilibrium its `dual`
    vanishes, its `primal` does not.

    Args:
      objective: a per-example objective that takes `propagate`.
      penalty: μ, above 0. In float32 keep it below about 1000: residuals shrink with 1/μ, and steps below the axons'
        rounding error are lost.
      optimizer: takes the steps of inference, on F/μ summed over the batch: step sizes depend neither on the batch's
        size nor, for μ of 1 or more, on μ. Below 1 multiply them by μ.
      num_steps: the maximum number of steps of inference.
      tolerance: inference ends once ‖∂F/∂x‖ has fallen to this fraction of its first value, in [0, 1); 0 for all steps.
        With kinks (relu, max pooling) an equilibrium may lie on one, where steps of a fixed size never settle.
      start: initial axons of the hidden layers, `nl.initial_activity.feedforward` or `nl.initial_activity.zeros`.

    Returns:
      An estimator without state or randomness: 2 evaluations per step of inference and 3 more.

    Raises:
      ValueError: if the objective takes no `propagate` or a setting is out of range; when run, if layers share a name
        or the first axis of a layer's axons is not the batch.
      FloatingPointError: when run, if inference diverges; under `jax.jit` see `info.failures`.

    >>> import jax, jax.numpy as jnp, nl_jax as nl
    >>> net = nl.mlp([3, 4, 2], activation=nl.activations.tanh())
    >>> objective = nl.supervised(net.apply, nl.losses.half_squared_error)
    >>> params, batch = net.init(jax.random.key(1)), (jnp.ones([5, 3]), jnp.ones([5, 2]))
    >>> estimate = jax.jit(predictive_coding(objective, num_steps=500).estimate)
    >>> _, _, info = estimate(jax.random.key(0), (), params, batch)
    >>> bool(info.residuals.dual["hidden1"] < 1e-2 * info.residuals.primal["hidden1"])
    True
    """
    layered("predictive_coding", objective)
    positive_hyperparameter("penalty", penalty)
    gradient_transformation(optimizer)
    relaxation = Relaxation(num_steps, tolerance).checked()
    takes("start", start, 1, "choose nl.initial_activity.feedforward or nl.initial_activity.zeros")

    def solve(params: Params, batch: Batch) -> Point:
        losses, feedforward = record(objective)(params, batch)
        freedom = free_axons("predictive_coding", objective, params, batch, feedforward)
        begin = initial_activity.begun(start, {name: feedforward[name] for name in freedom.hidden})
        inferred = infer(
            objective, params, begin, batch, freedom, penalty=penalty, optimizer=optimizer, relaxation=relaxation
        )
        return learning_point(losses, objective, params, inferred, batch, freedom, penalty=penalty)

    return solution(objective, solve)
