"""Makes an estimator from a solver of the Lagrangian."""

from typing import NamedTuple, Protocol

import jax.numpy as jnp

from nl_jax.base import (
    Array,
    Axons,
    Batch,
    Failure,
    GradientEstimator,
    Info,
    Key,
    LayerCredit,
    Objective,
    Params,
    State,
    stateless,
)  # fmt: skip
from nl_jax.estimators.lagrangian.credit import of_axons
from nl_jax.estimators.lagrangian.lagrangian import stationarity


class Point(NamedTuple):
    """The point that a solver found.

    Attributes:
      losses: of the network's own forward run, [batch].
      axons: x by layer, all layers.
      multipliers: λ by layer, all layers, of the Lagrangian without penalty; methods with a penalty include its force,
        λ + μ r, so that their points can be compared.
      evaluations: the cost of the solver, in evaluations of the objective (see `nl.Info`).
      failures: what can go wrong in the solver, and whether it did (see `nl.Info`).
    """

    losses: Array
    axons: Axons
    multipliers: Axons
    evaluations: int | Array
    failures: tuple[Failure, ...] = ()


class Solver(Protocol):
    """`solve(params, batch) -> point`, which includes the network's own forward run."""

    def __call__(self, params: Params, batch: Batch, /) -> Point: ...


def solution(objective: Objective, solve: Solver) -> GradientEstimator:
    """Returns the estimator ∂L/∂W at the point that `solve` finds, with a `KKT` report of that point.

    Every estimator of this family is built here. They compute the gradient of the same function at different points;
    `info.residuals` measures how far a point is from being stationary, however it was found. The report costs two more
    local gradients if it is used; these are not counted, and not computed if it is not used. Its `credit` is the point
    itself.

    Args:
      objective: a per-example objective that takes `propagate`.
      solve: finds the point.
    """
    report = stationarity(objective)

    def estimate(key: Key, state: State, params: Params, batch: Batch) -> tuple[Params, State, Info]:
        del key
        losses, axons, multipliers, evaluations, failures = solve(params, batch)
        grads, residuals = report(params, axons, multipliers, batch)
        # besides the solver: one forward run, one local gradient
        return grads, state, Info(jnp.mean(losses), jnp.int32(2) + jnp.int32(evaluations), residuals, failures)

    def credit(key: Key, state: State, params: Params, batch: Batch) -> dict[str, LayerCredit]:
        del key, state
        _, axons, multipliers, *_ = solve(params, batch)
        return of_axons(objective, params, batch, axons, {name: -multipliers[name] for name in axons})

    return GradientEstimator(stateless, estimate, credit)
