"""The space of all parameters."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nl_jax.base import Array, Batch, Key, Objective, Params
from nl_jax.checks import floating, per_example, takes_propagate
from nl_jax.estimators.directions import Direction, Law, Structured
from nl_jax.estimators.directions.structured import parts
from nl_jax.estimators.sampling import Footprint, occupied
from nl_jax.estimators.spaces.coupling import mixing_layers, refuse_coupling
from nl_jax.estimators.spaces.view import Along, Noise, Space, View, weighted_sum
from nl_jax.numerics import wide_dtype
from nl_jax.products import Shifted, use


def weights(objective: Objective) -> Space:
    """Displace every parameter: W + Ω, b + γ (seed 000, weight perturbation). Works on any JAX function.

    Structured laws keep their form for the parameters that an objective only multiplies by (`nl_jax.products`); to them
    all others are shown as vectors, for which they have independent noise. `flipout` asks for examples that do not
    interact; all other laws work on any objective.
    """

    def view(params: Params, batch: Batch, noise: Noise) -> View:
        floating(params)
        leaves, tree = jax.tree.flatten(params)
        uses = functools.cache(lambda: use(objective, params, batch))

        def draws(law: Law, key: Key) -> Callable[[Array], Direction]:
            shown = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
            drawn = jax.eval_shape(law, key, jnp.int32(0), jax.tree.unflatten(tree, shown))
            if _structured(parts(drawn)):
                shown = [
                    leaf if weight else jax.ShapeDtypeStruct((leaf.size,), leaf.dtype)
                    for leaf, weight in zip(shown, uses().multiplied, strict=True)
                ]
                places = zip(parts(drawn), uses().multiplied, strict=True)
                apart = {i: leaves[i] for i, (xi, weight) in enumerate(places) if weight and _of_each_example(xi)}
                if apart and takes_propagate(objective):
                    mixing = mixing_layers(objective)
                    refuse_coupling(
                        lambda some: mixing(with_leaves(some), batch)[1], apart,
                        "use directions that the whole batch shares, such as nl.directions.rank_one()",
                    )  # fmt: skip

            def draw(index: Array) -> Direction:
                direction = parts(law(key, index, jax.tree.unflatten(tree, shown)))
                pairs = zip(direction, leaves, strict=True)
                return jax.tree.unflatten(
                    tree, [xi if isinstance(xi, Structured) else xi.reshape(w.shape) for xi, w in pairs]
                )

            return draw

        def with_leaves(some: dict[int, Array]) -> Params:
            return jax.tree.unflatten(tree, [some.get(i, leaf) for i, leaf in enumerate(leaves)])

        def losses_at(moved: list[Any]) -> Array:
            return per_example(objective(jax.tree.unflatten(tree, moved), batch))

        def displaced(direction: Direction, sigma: Any) -> Array:
            pairs = zip(leaves, parts(direction), strict=True)
            return losses_at([_displace(w, xi, sigma) for w, xi in pairs])

        def both_sides(direction: Direction, sigma: float) -> tuple[Array, Array]:
            # A layer that reads the data sees the same x on both sides: x (W ± σ ξ) are two sums of the same two
            # products, and x W is that of all samples.
            def moved(sigma: float) -> list[Any]:
                triples = zip(leaves, parts(direction), uses().reads_data, strict=True)
                return [
                    Shifted(w, xi, sigma) if shared and not isinstance(xi, Structured) else _displace(w, xi, sigma)
                    for w, xi, shared in triples
                ]

            return losses_at(moved(sigma)), losses_at(moved(-sigma))

        def tangent() -> tuple[Array, Along]:
            losses, derivative = jax.linearize(lambda params: per_example(objective(params, batch)), params)

            def along(direction: Direction) -> Array:
                if not _structured(parts(direction)):
                    return derivative(direction)
                origin = jnp.zeros((), losses.dtype)
                return jax.jvp(lambda sigma: displaced(direction, sigma), (origin,), (jnp.ones_like(origin),))[1]

            return losses, along

        def credit(change: Array, directions: Direction) -> Params:
            rates = jnp.mean(change.astype(wide_dtype(change.dtype)), axis=1)
            return jax.tree.unflatten(
                tree,
                [
                    xi.credit(change) if isinstance(xi, Structured) else weighted_sum(rates, xi)
                    for xi in parts(directions)
                ],
            )

        def footprint(direction: Direction) -> Footprint:
            noise, copies = occupied(direction), occupied(params)
            if 2 * noise > copies:
                return Footprint(copies, weights_of_its_own=True)
            examples = jax.eval_shape(objective, params, batch).shape[0]
            return Footprint(noise + uses().values * examples * leaves[0].dtype.itemsize, weights_of_its_own=False)

        return View(
            draw=draws(noise.law, noise.key),
            clean=lambda: per_example(objective(params, batch)),
            displaced=displaced,
            both_sides=both_sides,
            tangent=tangent,
            credit=credit,
            gradient=lambda credit: jax.tree.map(lambda c, w: c.astype(w.dtype), credit, params),
            footprint=footprint,
            dtypes=[leaf.dtype for leaf in leaves],
            components=sum(leaf.size for leaf in leaves),
            fixed_cost=0,
            clean_cost=1,
            tangent_cost=2,  # d(x W) = dx W + x dW
        )

    return view


def _structured(direction: list[Any]) -> bool:
    return any(isinstance(xi, Structured) for xi in direction)


def _of_each_example(xi: Any) -> bool:
    return isinstance(xi, Structured) and xi.of_each_example


def _displace(weight: Array, xi: Any, sigma: Any) -> Any:
    return xi.displace(weight, sigma) if isinstance(xi, Structured) else weight + jnp.asarray(sigma, xi.dtype) * xi
