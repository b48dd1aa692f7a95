"""The space of all pre-activations."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nl_jax.base import Array, Batch, Key, Objective, Params
from nl_jax.checks import floating, layered, per_example
from nl_jax.estimators.directions import Direction, Law
from nl_jax.estimators.sampling import Footprint, occupied
from nl_jax.estimators.spaces.coupling import refuse_coupling
from nl_jax.estimators.spaces.view import Along, Draw, Space, View, weighted_sum
from nl_jax.numerics import wide_dtype
from nl_jax.propagation import inject, local


class Credit(NamedTuple):
    """Whose loss judges whose noise.

    Attributes:
      draws: `draws(law, key, template, examples) -> draw`, for a template {layer: pre-activation}.
      judge: `judge(change, directions) -> credit`, Σ_k over one layer's stacked directions.
      together: whether a direction is the whole batch's and not one example's.
    """

    draws: Callable[[Law, Key, dict[str, Array], int], Draw]
    judge: Callable[[Array, Array], Array]
    together: bool


def per_example_credit() -> Credit:
    """(Ẽ_n − E_n) γ_n: each example's noise is judged by its own loss (seed 000, node perturbation).

    Right where one example's nodes act on that example's loss alone, and refused where a layer says that they do not
    (`nl_jax.base.Connection`); variance does not grow with the batch. Every example explores its own node space: it
    has the law's directions to itself.
    """

    def draws(law: Law, key: Key, template: dict[str, Array], examples: int) -> Draw:
        for name, leaf in template.items():
            if leaf.shape[:1] != (examples,):
                raise ValueError(
                    f"per-example credit needs every layer's first axis to be the batch of {examples}; layer {name!r} "
                    f"has shape {leaf.shape}: use credit=nl.spaces.per_batch_credit()"
                )
        one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), template)
        keys = jax.vmap(lambda n: jax.random.fold_in(key, n))(jnp.arange(examples, dtype=jnp.int32))
        return lambda index: jax.vmap(lambda key: _independent(law, key, index, one))(keys)

    def judge(change: Array, directions: Array) -> Array:
        wide = wide_dtype(directions.dtype)
        return jnp.einsum("kn,kn...->n...", change.astype(wide), directions.astype(wide))

    return Credit(draws, judge, together=False)


def per_batch_credit() -> Credit:
    """(Σ_n Ẽ_n − Σ_n E_n) γ: all noise is judged by the whole batch's loss.

    Unbiased also where examples interact (batch normalisation), at a variance that grows with the batch.
    """

    def draws(law: Law, key: Key, template: dict[str, Array], examples: int) -> Draw:
        del examples
        return lambda index: _independent(law, key, index, template)

    def judge(change: Array, directions: Array) -> Array:
        return weighted_sum(jnp.sum(change.astype(wide_dtype(change.dtype)), axis=1), directions)

    return Credit(draws, judge, together=True)


def nodes(objective: Objective, credit: Credit | None = None) -> Space:
    """Displace every pre-activation: ν^l + γ^l, for each example its own (seed 000, node perturbation).

    Only layers whose pre-activation depends on the parameters are displaced: noise anywhere else would
    be noise alone.

    Args:
      objective: a per-example objective that takes `propagate`.
      credit: `per_example_credit()`, the default, or `per_batch_credit()` where examples interact.

    Raises:
      ValueError: if the objective takes no `propagate`; when run, for per-example credit of noise that reaches a layer
        which mixes examples.
    """
    layered("perturbing nodes", objective)
    chosen = per_example_credit() if credit is None else credit

    def view(params: Params, batch: Batch) -> View:
        floating(params)
        losses, preactivations, pull = local(objective)(params, batch)
        examples = per_example(losses).shape[0]
        if not chosen.together:
            refuse_coupling(
                objective, params, batch, lambda objective, offsets: inject(objective)(params, batch, offsets),
                preactivations,
                "use credit=nl.spaces.per_batch_credit(), which node_perturbation and nl.spaces.nodes take",
            )  # fmt: skip

        def displaced(direction: Direction, sigma: Any) -> Array:
            offsets = jax.tree.map(lambda gamma: jnp.asarray(sigma, gamma.dtype) * gamma, direction)
            return per_example(inject(objective)(params, batch, offsets))

        def tangent() -> tuple[Array, Along]:
            origin = jax.tree.map(jnp.zeros_like, preactivations)
            return jax.linearize(lambda offsets: per_example(inject(objective)(params, batch, offsets)), origin)

        def gradient(node_credit: Params) -> Params:
            per_loss = jnp.full_like(losses, 1 / examples)
            own = jax.tree.map(lambda delta, nu: (delta / examples).astype(nu.dtype), node_credit, preactivations)
            return pull(per_loss, own)

        return View(
            draws=lambda law, key: chosen.draws(law, key, preactivations, examples),
            clean=lambda: losses,
            displaced=displaced,
            both_sides=lambda direction, sigma: (displaced(direction, sigma), displaced(direction, -sigma)),
            tangent=tangent,
            credit=lambda change, directions: jax.tree.map(lambda gamma: chosen.judge(change, gamma), directions),
            gradient=gradient,
            footprint=lambda direction: Footprint(occupied(direction), weights_of_its_own=False),
            dtypes=[leaf.dtype for leaf in preactivations.values()],
            components=sum(nu.size for nu in preactivations.values()) // (1 if chosen.together else examples),
            fixed_cost=2,  # the clean pass and the local gradient
            clean_cost=0,
            tangent_cost=1,  # d(x W) = dx W
        )

    return view


def _independent(law: Law, key: Key, index: Array, template: Params) -> Direction:
    """A direction of vectors in the template's shapes: nodes are no weights, and no law takes them for such."""
    shown = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((leaf.size,), leaf.dtype), template)
    return jax.tree.map(lambda xi, leaf: xi.reshape(leaf.shape), law(key, index, shown), template)
