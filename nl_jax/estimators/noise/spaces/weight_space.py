"""The space of all parameters."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from nl_jax._core.numerics import wide_dtype
from nl_jax._core.products import Shifted, Use, use
from nl_jax._core.require import floating, per_example, takes_propagate
from nl_jax.base import Array, Batch, Objective, Params
from nl_jax.estimators.noise.directions import Direction, Structured
from nl_jax.estimators.noise.directions.blocks import Blocks, in_blocks
from nl_jax.estimators.noise.directions.sampler import drawing
from nl_jax.estimators.noise.directions.structured import parts
from nl_jax.estimators.noise.sampled import Directions
from nl_jax.estimators.noise.sampling import Footprint, default_chunk, occupied
from nl_jax.estimators.noise.spaces.coupling import mixing_layers, refuse_coupling
from nl_jax.estimators.noise.spaces.view import Along, Measure, Noise, Space, View


def weights(objective: Objective, *, params_sharding: Any = None) -> Space:
    """Displaces every parameter: W + Ω, b + γ (seed 000, weight perturbation). Works on any JAX function.

    Directions are not stored. Large parameters are displaced block by block where an objective multiplies by them
    (`nl_jax.products`), and every direction is drawn again once its loss is known, to be added to the gradient.

    Structured samplers keep their form for parameters that an objective only multiplies by. All others are shown to
    them as vectors, for which they draw independent noise. `flipout` requires examples that do not interact; all other
    samplers work on any objective.

    Args:
      objective: any per-example objective.
      params_sharding: how the parameters are sharded over the devices of a mesh, a tree like them with a
        `NamedSharding` each. Large parameters' noise is drawn where they are. None for what JAX knows of them while it
        traces, which is everything on a mesh with explicit axes and nothing on one with automatic axes.

    Raises:
      ValueError: when run, if `params_sharding` is not such a tree.
    """

    def view(params: Params, batch: Batch, noise: Noise) -> View:
        floating(params)
        leaves, tree = jax.tree.flatten(params)
        uses = functools.cache(lambda: use(objective, params, batch))
        directions = _directions(objective, params, batch, noise, uses, _shardings(params_sharding, tree))
        draw = lambda index: directions.draw(noise.key, index)
        example = parts(jax.eval_shape(draw, jnp.int32(0)))
        of_each_example = any(isinstance(xi, Structured) and xi.of_each_example for xi in example)

        components = sum(leaf.size for leaf in leaves)
        mostly_blocks = 2 * in_blocks(example) > components

        def losses_at(moved: list[Any]) -> Array:
            return per_example(objective(jax.tree.unflatten(tree, moved), batch))

        def moved(direction: Direction, sigma: Any, *, shared: bool = False) -> list[Any]:
            """Returns the parameters a step of σ along the direction; `shared` if other steps are taken as well."""

            def displace(place: int, weight: Array, xi: Any) -> Any:
                # A layer that reads the data has the same x at every step: x (W + σ ξ) is a sum of two products that
                # all steps share, and x W is shared by all samples.
                apart = shared and uses().reads_data[place]
                if isinstance(xi, Blocks):
                    if not uses().multiplied[place]:
                        return xi.plus(weight.reshape(xi.shape), sigma).reshape(weight.shape)
                    return Shifted(weight, xi.alone(), sigma) if apart else xi.displace(weight, sigma)
                if isinstance(xi, Structured):
                    return xi.displace(weight, sigma)
                return Shifted(weight, xi, sigma) if apart else weight + jnp.asarray(sigma, xi.dtype) * xi

            return [displace(i, w, xi) for i, (w, xi) in enumerate(zip(leaves, parts(direction), strict=True))]

        def displaced(direction: Direction, sigma: Any) -> Array:
            return losses_at(moved(direction, sigma))

        def both_sides(direction: Direction, sigma: float | Array) -> tuple[Array, Array]:
            one = lambda sigma: losses_at(moved(direction, sigma, shared=True))
            if not mostly_blocks:
                above = one(sigma)
                # The step back waits: both at once would take the memory of two forward passes.
                back, above = jax.lax.optimization_barrier((jnp.asarray(-sigma, wide_dtype(above.dtype)), above))
                return above, one(back)
            above, below = jax.vmap(one)(jnp.array([sigma, -sigma]))  # each block is drawn once for both
            return above, below

        def tangent() -> tuple[Array, Along]:
            losses, derivative = jax.linearize(lambda params: per_example(objective(params, batch)), params)

            def along(direction: Direction) -> Array:
                if not any(isinstance(xi, Structured) for xi in parts(direction)):
                    return derivative(direction)
                origin = jnp.zeros((), losses.dtype)
                return jax.jvp(lambda sigma: displaced(direction, sigma), (origin,), (jnp.ones_like(origin),))[1]

            return losses, along

        def footprint() -> Footprint:
            arrays = sum(occupied(xi) for xi in example if not isinstance(xi, Structured))
            if mostly_blocks or 2 * arrays > occupied(params):
                return Footprint(occupied(params), weights_of_its_own=True)
            examples = jax.eval_shape(objective, params, batch).shape[0]
            values = uses().values * examples * leaves[0].dtype.itemsize
            return Footprint(occupied(example) + values, weights_of_its_own=False)

        def rates(measure: Measure, chunk: int | None, indices: Array) -> tuple[Array, Array]:
            """Returns rates of change, averaged over the batch if examples share their directions, and mean losses."""

            def one(index: Array) -> tuple[Array, Array]:
                change, losses = measure(draw(index))
                change = change.astype(wide_dtype(change.dtype))
                return change if of_each_example else jnp.mean(change, keepdims=True), jnp.mean(losses)

            size = min(chunk or at_once, len(indices))
            return jax.lax.map(one, indices, batch_size=None if size == 1 else size)

        at_once = default_chunk(noise.num_samples, footprint())
        return View(
            draw=draw,
            clean=lambda: per_example(objective(params, batch)),
            displaced=displaced,
            both_sides=both_sides,
            tangent=tangent,
            dtypes=[leaf.dtype for leaf in leaves],
            components=components,
            fixed_cost=0,
            clean_cost=1,
            tangent_cost=2,  # d(x W) = dx W + x dW
            chunk=at_once,
            rates=rates,
            directions=directions,
        )

    return view


def _shardings(params_sharding: Any, tree: Any) -> list[NamedSharding] | None:
    if params_sharding is None:
        return None
    shardings, given = jax.tree.flatten(params_sharding)
    if given != tree or not all(isinstance(sharding, NamedSharding) for sharding in shardings):
        raise ValueError(
            "params_sharding must be a tree like the parameters with a NamedSharding for each of them, such as "
            f"jax.tree.map(lambda leaf: leaf.sharding, params) of those on the mesh; got {params_sharding!r}"
        )
    return shardings


def _directions(
    objective: Objective,
    params: Params,
    batch: Batch,
    noise: Noise,
    uses: Callable[[], Use],
    shardings: list[Any] | None,
) -> Directions:
    """Returns the noise's directions. Structured samplers see as weights what the objective only multiplies by."""
    leaves, tree = jax.tree.flatten(params)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    drawn = parts(jax.eval_shape(drawing(noise.sampler), noise.key, jnp.int32(0), shapes))
    structured = [isinstance(xi, Structured) and not isinstance(xi, Blocks) for xi in drawn]
    if not any(structured):
        return Directions.of(noise.sampler, params, [True] * len(leaves), shardings)
    multiplied = uses().multiplied
    places = zip(drawn, structured, multiplied, strict=True)
    apart = {i: leaves[i] for i, (xi, own, weight) in enumerate(places) if own and weight and xi.of_each_example}
    if apart and takes_propagate(objective):
        mixing = mixing_layers(objective)

        def reached(some: dict[int, Array]) -> Any:
            return mixing(jax.tree.unflatten(tree, [some.get(i, leaf) for i, leaf in enumerate(leaves)]), batch)[1]

        refuse_coupling(reached, apart, "use directions that the whole batch shares, such as nl.directions.rank_one()")
    return Directions.of(noise.sampler, params, multiplied, shardings)
