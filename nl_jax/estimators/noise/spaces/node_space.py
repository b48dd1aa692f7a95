"""The space of all pre-activations."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nl_jax._core.numerics import wide_dtype
from nl_jax._core.require import floating, layered, per_example
from nl_jax.base import Array, Batch, Key, LayerCredit, Objective, Params, State
from nl_jax.estimators.noise.directions import Direction, Sampler
from nl_jax.estimators.noise.sampling import Footprint, Share, alone, default_chunk, occupied, stacked, sum_over_samples
from nl_jax.estimators.noise.spaces.coupling import mixing_layers, refuse_coupling
from nl_jax.estimators.noise.spaces.view import Along, Layers, Measure, Noise, Space, View, weighted_sum
from nl_jax.propagation import Site, inject, interpret, learning_layers, local, loops_around

Template = dict[str, jax.ShapeDtypeStruct]
"""The shapes of the pre-activations that are displaced together, by layer."""


class Credit(NamedTuple):
    """Which loss judges which noise.

    Attributes:
      draw: `draw(noise, index, template, examples) -> {layer: ξ}`, the directions of one sample.
      judge: `judge(change, directions) -> credit`, Σ_k over one layer's stacked directions.
      together: whether a direction is that of the whole batch, not of one example.
    """

    draw: Callable[[Noise, Array, Template, int], dict[str, Array]]
    judge: Callable[[Array, Array], Array]
    together: bool


def per_example_credit() -> Credit:
    """(Ẽ_n − E_n) γ_n: each example's noise is judged by its own loss (seed 000, node perturbation).

    Correct if an example's nodes act only on that example's loss, and refused if a layer declares otherwise
    (`nl_jax.base.Connection`). The variance does not grow with the batch. Every example explores its own node space,
    with its own directions of the sampler.
    """

    def draw(noise: Noise, index: Array, template: Template, examples: int) -> dict[str, Array]:
        for name, leaf in template.items():
            if leaf.shape[:1] != (examples,):
                raise ValueError(
                    f"per-example credit needs every layer's first axis to be the batch of {examples}; layer {name!r} "
                    f"has shape {leaf.shape}: use credit=nl.spaces.per_batch_credit()"
                )
        one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), template)
        keys = jax.vmap(lambda n: jax.random.fold_in(noise.key, n))(jnp.arange(examples, dtype=jnp.int32))
        return jax.vmap(lambda key: _independent(noise.sampler, key, index, one))(keys)

    def judge(change: Array, directions: Array) -> Array:
        wide = wide_dtype(directions.dtype)
        return jnp.einsum("kn,kn...->n...", change.astype(wide), directions.astype(wide))

    return Credit(draw, judge, together=False)


def per_batch_credit() -> Credit:
    """(Σ_n Ẽ_n − Σ_n E_n) γ: all noise is judged by the whole batch's loss.

    Unbiased even if examples interact (batch normalisation), with a variance that grows with the batch.
    """

    def draw(noise: Noise, index: Array, template: Template, examples: int) -> dict[str, Array]:
        del examples
        return _independent(noise.sampler, noise.key, index, template)

    def judge(change: Array, directions: Array) -> Array:
        return weighted_sum(jnp.sum(change.astype(wide_dtype(change.dtype)), axis=1), directions)

    return Credit(draw, judge, together=True)


def nodes(objective: Objective, credit: Credit | None = None) -> Space:
    """Displaces every pre-activation: ν^l + γ^l, separately for each example (seed 000, node perturbation).

    Only layers whose pre-activation depends on the parameters are displaced: elsewhere, noise would only add variance.

    In a loop (`nl.scan`) noise is drawn step by step, from the number of the step, and drawn again once its credit is
    known: memory does not grow with the number of steps. A sampler with dependent components, such as orthogonal
    directions, couples only the layers of one step.

    Args:
      objective: a per-example objective that takes `propagate`.
      credit: `per_example_credit()`, the default, or `per_batch_credit()` where examples interact.

    Raises:
      ValueError: if the objective takes no `propagate`; when run, if credit is per example and noise reaches a layer
        that mixes examples.
    """
    layered("perturbing nodes", objective)
    chosen = per_example_credit() if credit is None else credit

    def view(params: Params, batch: Batch, noise: Noise) -> View:
        floating(params)
        displaceable = learning_layers(objective, params, batch)
        templates = _by_loop(displaceable)
        straight = templates.pop("", {})

        def of_step(scope: str, key: Key, index: Array) -> dict[str, Array]:
            """Draws the directions of sample `index` at one step of a loop, by the key of that step."""
            return chosen.draw(noise._replace(key=key), index, templates[scope], examples)

        def key_of_step(scope: str, steps: tuple[Array, ...]) -> Key:
            key = jax.random.fold_in(noise.key, 1 + list(templates).index(scope))
            return functools.reduce(jax.random.fold_in, steps, key)

        def respond(site: Site, nu: Array) -> Array | None:
            """Returns ν outside loops; in a loop, one number for each sample and example, whose credit is enough."""
            if not site.steps:
                return nu
            if site.name not in displaceable:
                return None
            scope = _scope(site.name)
            draw = lambda key, index: of_step(scope, key, index)[site.name]
            return _response(chosen.judge, draw, (noise.num_samples, examples), nu, key_of_step(scope, site.steps))

        examples = jax.eval_shape(lambda: per_example(objective(params, batch))).shape[0]
        losses, responses, _, pull = local(objective, respond)(params, batch)
        if not chosen.together:
            mixing = mixing_layers(objective)
            refuse_coupling(
                lambda offsets: mixing(params, batch, offsets)[1], displaceable,
                "use credit=nl.spaces.per_batch_credit(), which node_perturbation and nl.spaces.nodes take",
            )  # fmt: skip

        def draw(index: Array) -> Direction:
            """Returns arrays by layer; for a loop, only the sample's number."""
            drawn = chosen.draw(noise, index, straight, examples) if straight else {}
            return drawn | {scope: jnp.int32(index) for scope in templates}

        def displaced(direction: Direction, sigma: Any) -> Array:
            def offsets(scope: str, steps: tuple[Array, ...]) -> dict[str, Array]:
                if scope not in templates:
                    drawn = {} if scope else {name: direction[name] for name in straight}
                else:
                    drawn = of_step(scope, key_of_step(scope, steps), direction[scope])
                return jax.tree.map(lambda gamma: jnp.asarray(sigma, gamma.dtype) * gamma, drawn)

            return per_example(inject(objective)(params, batch, offsets))

        def tangent() -> tuple[Array, Along]:
            if not templates:
                origin = {name: jnp.zeros(s.shape, s.dtype) for name, s in straight.items()}
                return jax.linearize(lambda offsets: per_example(inject(objective)(params, batch, offsets)), origin)

            def along(direction: Direction) -> Array:
                origin = jnp.zeros((), losses.dtype)
                return jax.jvp(lambda sigma: displaced(direction, sigma), (origin,), (jnp.ones_like(origin),))[1]

            return losses, along

        def credited(change: Array, directions: Direction) -> Params:
            found = {name: chosen.judge(change, directions[name]) for name in straight}
            # For a loop, each sample's change itself, at the sample's place: its noise is drawn again.
            blank = jnp.zeros((noise.num_samples, change.shape[1]), wide_dtype(change.dtype))
            return found | {scope: blank.at[directions[scope]].set(change.astype(blank.dtype)) for scope in templates}

        def of_layer(name: str, credit: Params) -> Array:
            """Returns the credit of a layer's response."""
            return credit[name if name in straight else _scope(name)]

        def gradient(credit: Params) -> Params:
            per_loss = jnp.full_like(losses, 1 / examples)
            own = {name: of_layer(name, credit) for name in responses}
            scaled = {name: (delta / examples).astype(responses[name].dtype) for name, delta in own.items()}
            return pull(per_loss, scaled)

        def judged(measure: Measure, chunk: int | None, share: Share) -> tuple[Params, Array]:
            def partial_sum(indices: Array) -> State:
                drawn, change, seen = stacked(lambda index: _measured(measure, draw(index)))(indices)
                return credited(change, drawn), jnp.sum(jnp.mean(seen, axis=1))

            credit, loss = share.summed(sum_over_samples(partial_sum, share.indices, chunk or at_once))
            mean = jax.tree.map(lambda c: c / noise.num_samples, credit)
            return mean, (loss / noise.num_samples).astype(losses.dtype)

        def by_layer(credit: Params) -> dict[str, LayerCredit]:
            def layer(site: Site, given: None) -> tuple[Array, LayerCredit | None]:
                nu = site.preactivation()
                axons = site.activation(nu)
                if site.name not in displaceable:
                    return axons, None
                response: Any
                response, to_preactivation = jax.vjp(functools.partial(respond, site), nu)
                own = of_layer(site.name, credit).astype(response.dtype)
                return axons, LayerCredit(axons, None, to_preactivation(own)[0])

            return interpret(objective, layer)(params, batch)[1]

        one = jax.eval_shape(draw, jnp.int32(0))
        at_once = default_chunk(noise.num_samples, Footprint(occupied(one), weights_of_its_own=False))
        return View(
            draw=draw,
            clean=lambda: losses,
            displaced=displaced,
            both_sides=lambda direction, sigma: (displaced(direction, sigma), displaced(direction, -sigma)),
            tangent=tangent,
            dtypes=[leaf.dtype for leaf in displaceable.values()],
            components=sum(nu.size for nu in displaceable.values()) // (1 if chosen.together else examples),
            fixed_cost=2,  # the clean pass and the local gradient
            clean_cost=0,
            tangent_cost=2 if templates else 1,  # d(x W) = dx W; in a loop, the pass itself is run as well
            chunk=at_once,
            layers=Layers(judged, gradient, by_layer),
        )

    return view


def layers_at_once(objective: Objective, params: Params, batch: Batch) -> int:
    """Counts the layers in one direction of `nodes`: all outside loops, or those of a loop's step; the larger number.

    Nothing is run.
    """
    templates = _by_loop(learning_layers(objective, params, batch))
    return max(map(len, templates.values()), default=1)


def _measured(measure: Measure, direction: Direction) -> tuple[Direction, Array, Array]:
    return direction, *measure(direction)


def _response(
    judge: Callable[[Array, Array], Array],
    draw: Callable[[Key, Array], Array],
    shape: tuple[int, int],
    nu: Array,
    key: Key,
) -> Array:
    """R_kn = ⟨ξ_k, ν⟩_n, of which only the derivative is used: Σ_k c_kn ξ_kn, with noise drawn again."""
    dtype = nu.dtype

    @jax.custom_vjp
    def response(nu: Array, key: Key) -> Array:
        return jnp.zeros(shape, wide_dtype(dtype))

    def forward(nu: Array, key: Key) -> tuple[Array, Key]:
        return response(nu, key), key

    def backward(key: Key, change: Array) -> tuple[Array, None]:
        own = functools.partial(draw, key)

        def partial_sum(indices: Array) -> Array:
            return judge(change[indices], stacked(own)(indices))

        samples = shape[0]
        one = jax.eval_shape(own, jnp.int32(0))
        at_once = default_chunk(samples, Footprint(occupied(one), weights_of_its_own=False))
        return sum_over_samples(partial_sum, alone(samples).indices, at_once).astype(dtype), None

    response.defvjp(forward, backward)
    return response(nu, key)


def _by_loop(displaceable: Template) -> dict[str, Template]:
    """Returns the templates of one step, by the loop that the layers are in; "" for those outside loops."""
    templates: dict[str, Template] = {}
    for name, nu in displaceable.items():
        of_step = jax.ShapeDtypeStruct(nu.shape[loops_around(name) :], nu.dtype)
        templates.setdefault(_scope(name), {})[name] = of_step
    return templates


def _scope(name: str) -> str:
    """Returns the loop that a layer is in, as `nl_jax.propagation.Given` names it."""
    return name[: name.rfind("/") + 1]


def _independent(sampler: Sampler, key: Key, index: Array, template: Params) -> Direction:
    """Draws a direction of vectors in the template's shapes: nodes are not weights, and must not look so."""
    shown = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((leaf.size,), leaf.dtype), template)
    return jax.tree.map(lambda xi, leaf: xi.reshape(leaf.shape), sampler(key, index, shown), template)
