"""The space of all parameters."""

import functools
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
from nl_jax.estimators.noise.engine.chunks import Footprint, default_chunk, occupied
from nl_jax.estimators.noise.engine.sampled_gradient import Directions, SampledGradient
from nl_jax.estimators.noise.engine.shares import Share
from nl_jax.estimators.noise.spaces.coupling import mixing_layers, refuse_coupling
from nl_jax.estimators.noise.spaces.view import Along, Costs, Measure, Noise, Space, View


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
        return WeightView(objective, params, batch, noise, params_sharding=params_sharding)

    return view


class WeightView(View):
    """The weights at given parameters. What is measured is one number for each sample, a `SampledGradient`.

    Attributes:
      directions: with which to draw the directions again.
    """

    def __init__(
        self, objective: Objective, params: Params, batch: Batch, noise: Noise, *, params_sharding: Any = None
    ) -> None:
        floating(params)
        self.objective, self.params, self.batch, self.noise = objective, params, batch, noise
        self.leaves, self.tree = jax.tree.flatten(params)
        self.directions = self._directions(_shardings(params_sharding, self.tree))
        self.dtypes = [leaf.dtype for leaf in self.leaves]
        self.components = sum(leaf.size for leaf in self.leaves)
        self.costs = Costs(fixed=0, clean=1, tangent=2)  # d(x W) = dx W + x dW
        self.example = parts(jax.eval_shape(self.draw, jnp.int32(0)))
        self.mostly_blocks = 2 * in_blocks(self.example) > self.components
        self.chunk = default_chunk(noise.num_samples, self._footprint())

    @functools.cached_property
    def uses(self) -> Use:
        """How the objective uses the parameters; costs a trace of it."""
        return use(self.objective, self.params, self.batch)

    def draw(self, index: Array) -> Direction:
        return self.directions.draw(self.noise.key, index)

    def losses_at(self, leaves: list[Any]) -> Array:
        """Returns the losses at parameters given by their leaves, arrays or lazy weights."""
        return per_example(self.objective(jax.tree.unflatten(self.tree, leaves), self.batch))

    def clean(self) -> Array:
        return self.losses_at(self.leaves)

    def moved(self, direction: Direction, sigma: Any, *, shared: bool = False) -> list[Any]:
        """Returns the leaves a step of σ along the direction; `shared` if other steps are taken as well."""

        def displace(place: int, weight: Array, xi: Any) -> Any:
            # A layer that reads the data has the same x at every step: x (W + σ ξ) is a sum of two products that
            # all steps share, and x W is shared by all samples.
            apart = shared and self.uses.reads_data[place]
            if isinstance(xi, Blocks):
                if not self.uses.multiplied[place]:
                    return xi.plus(weight.reshape(xi.shape), sigma).reshape(weight.shape)
                return Shifted(weight, xi.alone(), sigma) if apart else xi.displace(weight, sigma)
            if isinstance(xi, Structured):
                return xi.displace(weight, sigma)
            return Shifted(weight, xi, sigma) if apart else weight + jnp.asarray(sigma, xi.dtype) * xi

        return [displace(i, w, xi) for i, (w, xi) in enumerate(zip(self.leaves, parts(direction), strict=True))]

    def displaced(self, direction: Direction, sigma: Any) -> Array:
        return self.losses_at(self.moved(direction, sigma))

    def both_sides(self, direction: Direction, sigma: float | Array) -> tuple[Array, Array]:
        one = lambda sigma: self.losses_at(self.moved(direction, sigma, shared=True))
        if not self.mostly_blocks:
            above = one(sigma)
            # The step back waits: both at once would take the memory of two forward passes.
            back, above = jax.lax.optimization_barrier((jnp.asarray(-sigma, wide_dtype(above.dtype)), above))
            return above, one(back)
        above, below = jax.vmap(one)(jnp.array([sigma, -sigma]))  # each block is drawn once for both
        return above, below

    def tangent(self) -> tuple[Array, Along]:
        losses, derivative = jax.linearize(lambda params: per_example(self.objective(params, self.batch)), self.params)

        def along(direction: Direction) -> Array:
            if not any(isinstance(xi, Structured) for xi in parts(direction)):
                return derivative(direction)
            return self.derivative_of_displaced(direction, losses.dtype)

        return losses, along

    def rates(self, measure: Measure, chunk: int | None, indices: Array) -> tuple[Array, Array]:
        """Returns mean losses and rates of change, [K, 1], or [K, batch] if every example has its own directions."""
        of_each_example = any(isinstance(xi, Structured) and xi.of_each_example for xi in self.example)

        def one(index: Array) -> tuple[Array, Array]:
            change, losses = measure(self.draw(index))
            change = change.astype(wide_dtype(change.dtype))
            return change if of_each_example else jnp.mean(change, keepdims=True), jnp.mean(losses)

        size = min(chunk or self.chunk, len(indices))
        return jax.lax.map(one, indices, batch_size=None if size == 1 else size)

    def judged(self, measure: Measure, chunk: int | None, share: Share) -> tuple[Any, Array]:
        rates, losses = share.gathered(self.rates(measure, chunk, share.indices))
        return SampledGradient(self.noise.key, rates, self.directions), jnp.mean(losses)

    def gradient(self, judged: Any) -> Any:
        return judged

    def _footprint(self) -> Footprint:
        arrays = sum(occupied(xi) for xi in self.example if not isinstance(xi, Structured))
        if self.mostly_blocks or 2 * arrays > occupied(self.params):
            return Footprint(occupied(self.params), weights_of_its_own=True)
        examples = jax.eval_shape(self.objective, self.params, self.batch).shape[0]
        values = self.uses.values * examples * self.leaves[0].dtype.itemsize
        return Footprint(occupied(self.example) + values, weights_of_its_own=False)

    def _directions(self, shardings: list[NamedSharding] | None) -> Directions:
        """Returns the noise's directions. Structured samplers see as weights what the objective only multiplies by."""
        sampler, leaves = self.noise.sampler, self.leaves
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), self.params)
        drawn = parts(jax.eval_shape(drawing(sampler), self.noise.key, jnp.int32(0), shapes))
        structured = [isinstance(xi, Structured) and not isinstance(xi, Blocks) for xi in drawn]
        if not any(structured):
            return Directions.of(sampler, self.params, [True] * len(leaves), shardings)
        multiplied = self.uses.multiplied
        places = zip(drawn, structured, multiplied, strict=True)
        apart = {i: leaves[i] for i, (xi, own, weight) in enumerate(places) if own and weight and xi.of_each_example}
        if apart and takes_propagate(self.objective):
            mixing = mixing_layers(self.objective)

            def reached(some: dict[int, Array]) -> Any:
                moved = [some.get(i, leaf) for i, leaf in enumerate(leaves)]
                return mixing(jax.tree.unflatten(self.tree, moved), self.batch)[1]

            refuse_coupling(
                reached, apart, "use directions that the whole batch shares, such as nl.directions.rank_one()"
            )
        return Directions.of(sampler, self.params, multiplied, shardings)


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
