"""Predictive coding that infers errors instead of axons, ePC (Goemaere et al. 2025)."""

import jax
import jax.numpy as jnp
import optax

from nl_jax._core.require import gradient_transformation, layered, per_example, positive_hyperparameter
from nl_jax.base import Array, Axons, Batch, GradientEstimator, Objective, Params
from nl_jax.estimators.lagrangian.freedom import Freedom, free_axons
from nl_jax.estimators.lagrangian.lagrangian import inner
from nl_jax.estimators.lagrangian.penalty import forces
from nl_jax.estimators.lagrangian.relaxation import Relaxation, Relaxed, distance, relax
from nl_jax.estimators.lagrangian.solution import Point, solution
from nl_jax.propagation import displace, record

_DESCENT = optax.sgd(0.1)
_Inferring = tuple[dict[str, Array], optax.OptState]


def error_predictive_coding(
    objective: Objective,
    *,
    penalty: float | Array = 1.0,
    optimizer: optax.GradientTransformation = _DESCENT,
    num_steps: int | Array = 200,
    tolerance: float = 1e-3,
) -> GradientEstimator:
    """Computes predictive coding's ∂F/∂W at equilibrium by descent in the errors: ePC (Goemaere et al. 2025).

        x_l = f(W_l x_{l−1} + b_l) + e_l   of hidden layers l,   x_L = f(W_L x_{L−1} + b_L)
        F = C(x_L) + μ/2 Σ_l ‖e_l‖²,       e_l ← e_l − η ∂F/∂e_l

    It is `predictive_coding` in other variables: the same energy F, the same equilibria, the same ∂F/∂W there and the
    same certificate in `info.residuals`. Only the path to equilibrium differs. In `predictive_coding` axons (activity)
    move by their neighbours' signals, so that a signal crosses one layer per step and shrinks by η at each. Here the
    forward run propagates the errors, and one reverse sweep computes ∂F/∂e of all layers at once, so that depth causes
    no delay. For the same reason the rule is not local: a step of inference is a backpropagation.

    ∂F/∂e_l = μ e_l + ∂C/∂x_l, where ∂C/∂x_l is taken through all layers above. From e = 0 the first step makes e
    proportional to backprop's credit. In float32 μ may be large: an error is stored directly, not as a small difference
    of axons.

    Args:
      objective: a per-example objective that takes `propagate`.
      penalty: μ, above 0.
      optimizer: takes the steps of inference, on F/μ summed over the batch: step sizes do not depend on the batch's
        size. The curvature in e is 1 plus that of C(x_L(e))/μ, which grows with the number of layers if these preserve
        or amplify their inputs.
      num_steps: the maximum number of steps of inference, from e = 0.
      tolerance: inference ends once ‖∂F/∂e‖ has fallen to this fraction of its first value, in [0, 1); 0 for all steps.

    Returns:
      An estimator without state or randomness: 2 evaluations per step of inference and 3 more.

    Raises:
      ValueError: if the objective takes no `propagate` or a setting is out of range; when run, if layers share a name
        or the first axis of a layer's axons is not the batch.
      FloatingPointError: when run, if inference diverges; under `jax.jit` see `info.failures`.

    >>> import jax, jax.numpy as jnp, nl_jax as nl
    >>> net = nl.mlp([3, 4, 4, 2], activation=nl.activations.tanh())
    >>> objective = nl.supervised(net.apply, nl.losses.half_squared_error)
    >>> at = jax.random.key(0), (), net.init(jax.random.key(1)), (jnp.ones([5, 3]), jnp.ones([5, 2]))
    >>> ours, _, info = jax.jit(error_predictive_coding(objective, tolerance=1e-5).estimate)(*at)
    >>> theirs, _, there = jax.jit(nl.predictive_coding(objective, tolerance=1e-5, num_steps=2000).estimate)(*at)
    >>> bool(jnp.allclose(ours["hidden1"]["weight"], theirs["hidden1"]["weight"], atol=1e-4))
    True
    >>> bool(info.evaluations < there.evaluations)
    True
    """
    layered("error_predictive_coding", objective)
    positive_hyperparameter("penalty", penalty)
    gradient_transformation(optimizer)
    relaxation = Relaxation(num_steps, tolerance).checked()

    def solve(params: Params, batch: Batch) -> Point:
        losses, feedforward = record(objective)(params, batch)
        freedom = free_axons("error_predictive_coding", objective, params, batch, feedforward)
        errors, taken, failures = _infer(
            objective, params, feedforward, batch, freedom, penalty=penalty, optimizer=optimizer, relaxation=relaxation
        )
        _, axons = displace(objective)(params, batch, errors)
        multipliers = forces(objective, params, axons, errors, batch, freedom, penalty=penalty)
        return Point(losses, axons, multipliers, 2 * taken + 1, failures)

    return solution(objective, solve)


def _infer(
    objective: Objective,
    params: Params,
    feedforward: Axons,
    batch: Batch,
    freedom: Freedom,
    *,
    penalty: float | Array,
    optimizer: optax.GradientTransformation,
    relaxation: Relaxation,
) -> Relaxed[dict[str, Array]]:
    """Descends to a minimum of F over the hidden layers' errors, from e = 0."""

    def energy(errors: Axons) -> Array:
        """Computes F, summed over the batch."""
        losses, _ = displace(objective)(params, batch, freedom.displacing(errors))
        total = per_example(losses)
        for name, error in freedom.displacing(errors).items():
            total = total + 0.5 * jnp.asarray(penalty, total.dtype) * inner(name, error, error, total)
        return jnp.sum(total)

    def descend(carry: _Inferring) -> tuple[_Inferring, Array]:
        errors, state = carry
        slopes = jax.tree.map(lambda g: g / jnp.asarray(penalty, g.dtype), jax.grad(energy)(errors))
        updates, state = optimizer.update(slopes, state, errors)
        return (optax.apply_updates(errors, updates), state), distance(slopes)

    begun = {name: jnp.zeros_like(feedforward[name]) for name in freedom.hidden}
    remedy = "optimizer's step size: choose a smaller one"
    (errors, _), taken, failures = relax(descend, (begun, optimizer.init(begun)), relaxation, remedy)
    return Relaxed(freedom.displacing(errors), taken, failures)
