"""The method of auxiliary coordinates (Carreira-Perpiñán & Wang 2014)."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from nl_jax._core.failures import ever, raise_if_known
from nl_jax._core.require import gradient_transformation, layered, positive_number
from nl_jax.base import Array, Axons, Batch, Failure, GradientEstimator, Objective, Params
from nl_jax.estimators.lagrangian.freedom import free_axons
from nl_jax.estimators.lagrangian.penalty import infer, learning_point
from nl_jax.estimators.lagrangian.relaxation import Relaxation, Relaxed
from nl_jax.estimators.lagrangian.solution import Point, solution
from nl_jax.propagation import record

_DESCENT = optax.sgd(0.1)


def auxiliary_coordinates(
    objective: Objective,
    *,
    penalties: Sequence[float] = (1.0, 10.0, 100.0),
    optimizer: optax.GradientTransformation = _DESCENT,
    num_steps: int | Array = 200,
    tolerance: float = 1e-3,
) -> GradientEstimator:
    """Computes ∂F/∂W at the last of a sequence of minima under rising penalties μ: the quadratic-penalty method.

        F = C(x_L) + μ/2 Σ_l ‖x_l − f(W_l x_{l−1} + b_l)‖²   over hidden layers l,   μ = μ_1 < μ_2 < …

    The hidden axons (activity) are the auxiliary coordinates (Carreira-Perpiñán & Wang 2014). The paper fits the
    weights to F as well; here ∂F/∂W is the estimate. It differs from the gradient by an error proportional to 1/μ at
    the last μ.

    Each stage starts from the axons of the previous one, with their displacement from the feedforward axons multiplied
    by μ_k/μ_{k+1}. This keeps the multipliers λ = μ r, which have a limit as μ → ∞, where displacements vanish.
    Otherwise a stage would start with about μ_{k+1}/μ_k times the displacement to be found. The result is an
    equilibrium of `predictive_coding` with the last μ, which costs less if found directly; the sequence is for energies
    with several equilibria.

    Args:
      objective: a per-example objective that takes `propagate`.
      penalties: μ_1, μ_2, …, above 0 and rising. For float32 see `predictive_coding`.
      optimizer: takes the steps of inference, on F/μ summed over the batch (see `predictive_coding`); reinitialised at
        each μ.
      num_steps: the maximum number of steps of inference at each μ.
      tolerance: as in `predictive_coding`, at each μ.

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
    >>> estimate = jax.jit(auxiliary_coordinates(objective, penalties=(1, 100)).estimate)
    >>> ours, _, _ = estimate(jax.random.key(0), (), params, batch)
    >>> exact, _, _ = nl.backprop(objective).estimate(jax.random.key(0), (), params, batch)
    >>> bool(jnp.allclose(ours["hidden1"]["weight"], exact["hidden1"]["weight"], rtol=0.05))
    True
    """
    layered("auxiliary_coordinates", objective)
    if not isinstance(penalties, Sequence) or not penalties:
        raise ValueError(f"penalties must be a sequence of at least one number, got {penalties!r}")
    schedule = [positive_number("each of penalties", penalty) for penalty in penalties]
    if any(lower >= higher for lower, higher in itertools.pairwise(schedule)):
        raise ValueError(f"penalties must rise from each to the next, got {penalties!r}: sort them")
    gradient_transformation(optimizer)
    relaxation = Relaxation(num_steps, tolerance).checked()

    def solve(params: Params, batch: Batch) -> Point:
        losses, feedforward = record(objective)(params, batch)
        freedom = free_axons("auxiliary_coordinates", objective, params, batch, feedforward)
        feasible = {name: feedforward[name] for name in freedom.hidden}

        def stage(
            carry: tuple[Axons, Array], penalty: Array
        ) -> tuple[tuple[Axons, Array], tuple[Array, tuple[Failure, ...]]]:
            displacement, before = carry

            def drawn_in(x: Array, displacement: Array) -> Array:
                return x + (before / penalty).astype(x.dtype) * displacement

            start = jax.tree.map(drawn_in, feasible, displacement)
            hidden, taken, failures = infer(
                objective, params, start, batch, freedom, penalty=penalty, optimizer=optimizer, relaxation=relaxation
            )
            return (jax.tree.map(jnp.subtract, hidden, feasible), penalty), (taken, failures)

        mu = jnp.asarray(schedule)
        nowhere = jax.tree.map(jnp.zeros_like, feasible)
        (displacement, _), (taken, failures) = jax.lax.scan(stage, (nowhere, mu[0]), mu)
        hidden = jax.tree.map(jnp.add, feasible, displacement)
        inferred = Relaxed(hidden, jnp.sum(taken), ever(failures))
        raise_if_known(inferred.failures)  # a scan's stages are traced, and cannot have raised
        return learning_point(losses, objective, params, inferred, batch, freedom, penalty=schedule[-1])

    return solution(objective, solve)
