"""Spaces a network can be perturbed in: its weights, or its nodes.

A space, seen from given parameters and a given batch, says how the losses respond to a displacement,
what credit a displacement earns by the response, and what gradient an average credit amounts to.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nl_jax.base import Array, Batch, Objective, Params
from nl_jax.checks import floating, layered, per_example
from nl_jax.propagation import inject, local

Credit = Callable[[Array, Array], Array]
"""`credit(change, direction)`: what each component of a direction earns; see `per_example_credit`."""


class View(NamedTuple):
    """A space seen from given parameters and a given batch.

    Attributes:
      template: tree with the shapes and dtypes of a displacement.
      clean: `clean() -> losses` without displacement, [batch].
      displaced: `displaced(displacement) -> losses`, [batch].
      credit: `credit(change, direction) -> credit`, where `change` is the losses' rate of change along
        the direction, [batch].
      gradient: `gradient(mean credit) -> grads`, calibrated to the mean loss.
      fixed_cost: evaluations spent per estimate, whatever the number of samples.
      clean_cost: evaluations `clean` costs beyond that.
      tangent_cost: evaluations an exact derivative along one direction costs.
    """

    template: Params
    clean: Callable[[], Array]
    displaced: Callable[[Params], Array]
    credit: Callable[[Array, Params], Params]
    gradient: Callable[[Params], Params]
    fixed_cost: int
    clean_cost: int
    tangent_cost: int


Space = Callable[[Params, Batch], View]


def weights(objective: Objective) -> Space:
    """Displace every parameter: W + Ω, b + γ (seed 000, weight perturbation). Works on any JAX function."""

    def view(params: Params, batch: Batch) -> View:
        floating(params)
        return View(
            template=params,
            clean=lambda: per_example(objective(params, batch)),
            displaced=lambda offset: per_example(objective(jax.tree.map(jnp.add, params, offset), batch)),
            credit=lambda change, direction: _scaled(jnp.mean(change), direction),
            gradient=lambda credit: credit,
            fixed_cost=0,
            clean_cost=1,
            tangent_cost=2,  # d(x W) = dx W + x dW
        )

    return view


def per_example_credit(change: Array, direction: Array) -> Array:
    """(Ẽ_n − E_n) γ_n: each example's noise is judged by its own loss (seed 000, node perturbation).

    Right where one example's nodes act on that example's loss alone; variance does not grow with the batch.
    """
    if direction.shape[:1] != change.shape:
        raise ValueError(
            f"per-example credit needs every layer's first axis to be the batch of {change.shape[0]}; a layer has "
            f"shape {direction.shape}: use credit=nl.spaces.per_batch_credit"
        )
    return change.astype(direction.dtype).reshape(-1, *(1,) * (direction.ndim - 1)) * direction


def per_batch_credit(change: Array, direction: Array) -> Array:
    """(Σ_n Ẽ_n − Σ_n E_n) γ: all noise is judged by the whole batch's loss.

    Unbiased also where examples interact (batch normalisation), at a variance that grows with the batch.
    """
    return _scaled(jnp.sum(change), direction)


def nodes(objective: Objective, credit: Credit = per_example_credit) -> Space:
    """Displace every pre-activation: ν^l + γ^l, for each example its own (seed 000, node perturbation).

    Only layers whose pre-activation depends on the parameters are displaced: noise anywhere else would
    be noise alone.

    Raises:
      ValueError: if the objective takes no `propagate`.
    """
    layered("perturbing nodes", objective)

    def view(params: Params, batch: Batch) -> View:
        floating(params)
        losses, preactivations, pull = local(objective)(params, batch)
        examples = per_example(losses).shape[0]

        def gradient(node_credit: dict[str, Array]) -> Params:
            per_loss = jnp.full_like(losses, 1 / examples)
            return pull(per_loss, jax.tree.map(lambda delta: delta / examples, node_credit))

        return View(
            template=preactivations,
            clean=lambda: losses,
            displaced=lambda offsets: inject(objective)(params, batch, offsets),
            credit=lambda change, direction: jax.tree.map(lambda gamma: credit(change, gamma), direction),
            gradient=gradient,
            fixed_cost=2,  # the clean pass and the local gradient
            clean_cost=0,
            tangent_cost=1,  # d(x W) = dx W
        )

    return view


def _scaled(factor: Array, direction: Params) -> Params:
    return jax.tree.map(lambda xi: factor.astype(xi.dtype) * xi, direction)
