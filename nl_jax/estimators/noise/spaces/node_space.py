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
from nl_jax.estimators.noise.engine.chunks import Footprint, default_chunk, occupied, stacked, sum_over_samples
from nl_jax.estimators.noise.engine.shares import Share, alone
from nl_jax.estimators.noise.spaces.coupling import mixing_layers, refuse_coupling
from nl_jax.estimators.noise.spaces.view import Along, Costs, Measure, Noise, Space, View, weighted_sum
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
    """Judges each example's noise by its own loss, (Ẽ_n − E_n) γ_n (seed 000, node perturbation).

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
    """Judges all noise by the whole batch's loss, (Σ_n Ẽ_n − Σ_n E_n) γ.

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
        return NodeView(objective, chosen, params, batch, noise)

    return view


class NodeView(View):
    """The pre-activations at given parameters. What is measured is the mean credit of each layer."""

    def __init__(self, objective: Objective, judge: Credit, params: Params, batch: Batch, noise: Noise) -> None:
        floating(params)
        self.objective, self.judge, self.params, self.batch, self.noise = objective, judge, params, batch, noise
        self.displaceable = learning_layers(objective, params, batch)
        self.in_loops = _by_loop(self.displaceable)
        self.straight = self.in_loops.pop("", {})
        self.examples = jax.eval_shape(lambda: per_example(objective(params, batch))).shape[0]
        self._of_this_step: dict[str, Array] = {}
        self.losses, self.responses, _, self.pull = local(objective, self._respond)(params, batch)
        if not judge.together:
            mixing = mixing_layers(objective)
            refuse_coupling(
                lambda offsets: mixing(params, batch, offsets)[1], self.displaceable,
                "use credit=nl.spaces.per_batch_credit(), which node_perturbation and nl.spaces.nodes take",
            )  # fmt: skip
        self.dtypes = [leaf.dtype for leaf in self.displaceable.values()]
        self.components = sum(nu.size for nu in self.displaceable.values()) // (1 if judge.together else self.examples)
        self.costs = Costs(
            fixed=2,  # the clean pass and the local gradient
            clean=0,
            tangent=2 if self.in_loops else 1,  # d(x W) = dx W; in a loop, the pass itself is run as well
        )
        one = jax.eval_shape(self.draw, jnp.int32(0))
        self.chunk = default_chunk(noise.num_samples, Footprint(occupied(one), weights_of_its_own=False))

    def draw(self, index: Array) -> Direction:
        """Returns arrays by layer; for a loop, only the sample's number."""
        drawn = self.judge.draw(self.noise, index, self.straight, self.examples) if self.straight else {}
        return drawn | {scope: jnp.int32(index) for scope in self.in_loops}

    def clean(self) -> Array:
        return self.losses

    def displaced(self, direction: Direction, sigma: Any) -> Array:
        def offsets(scope: str, steps: tuple[Array, ...]) -> dict[str, Array]:
            if scope not in self.in_loops:
                drawn = {} if scope else {name: direction[name] for name in self.straight}
            else:
                drawn = self._of_step(scope, self._key_of_step(scope, steps), direction[scope])
            return jax.tree.map(lambda gamma: jnp.asarray(sigma, gamma.dtype) * gamma, drawn)

        return per_example(inject(self.objective)(self.params, self.batch, offsets))

    def tangent(self) -> tuple[Array, Along]:
        if self.in_loops:
            return self.losses, lambda direction: self.derivative_of_displaced(direction, self.losses.dtype)
        origin = {name: jnp.zeros(s.shape, s.dtype) for name, s in self.straight.items()}
        injected = inject(self.objective)
        return jax.linearize(lambda offsets: per_example(injected(self.params, self.batch, offsets)), origin)

    def judged(self, measure: Measure, chunk: int | None, share: Share) -> tuple[Params, Array]:
        def partial_sum(indices: Array) -> State:
            drawn, change, seen = stacked(lambda index: _measured(measure, self.draw(index)))(indices)
            return self._credited(change, drawn), jnp.sum(jnp.mean(seen, axis=1))

        num_samples = self.noise.num_samples
        credit, loss = share.summed(sum_over_samples(partial_sum, share.indices, chunk or self.chunk))
        return jax.tree.map(lambda c: c / num_samples, credit), (loss / num_samples).astype(self.losses.dtype)

    def gradient(self, judged: Params) -> Params:
        per_loss = jnp.full_like(self.losses, 1 / self.examples)
        scaled = {
            name: (self._of_response(name, judged) / self.examples).astype(response.dtype)
            for name, response in self.responses.items()
        }
        return self.pull(per_loss, scaled)

    def credit(self, judged: Params) -> dict[str, LayerCredit]:
        def given(scope: str, steps: tuple[Array, ...]) -> dict[str, Array]:
            if scope not in self.in_loops:
                return {} if scope else {name: judged[name].astype(nu.dtype) for name, nu in self.straight.items()}
            return self._credit_of_step(scope, self._key_of_step(scope, steps), judged[scope])

        def layer(site: Site, given: Array | None) -> tuple[Array, LayerCredit | None]:
            axons = site.axons()
            return axons, None if given is None else LayerCredit(axons, None, given)

        return interpret(self.objective, layer)(self.params, self.batch, given)[1]

    def _credited(self, change: Array, directions: Direction) -> Params:
        """Returns the summed credit of some samples."""
        found = {name: self.judge.judge(change, directions[name]) for name in self.straight}
        # For a loop, each sample's change itself, at the sample's place: its noise is drawn again.
        blank = jnp.zeros((self.noise.num_samples, change.shape[1]), wide_dtype(change.dtype))
        return found | {scope: blank.at[directions[scope]].set(change.astype(blank.dtype)) for scope in self.in_loops}

    def _of_response(self, name: str, credit: Params) -> Array:
        """Returns the credit of the response that the layer called `name` returned."""
        return credit[name if name in self.straight else _scope(name)]

    def _respond(self, site: Site, nu: Array) -> Array | None:
        """Returns ν outside loops; in a loop, a step's last layer returns the response of all layers of the step."""
        if not site.steps:
            return nu
        if site.name not in self.displaceable:
            return None
        scope = _scope(site.name)
        self._of_this_step |= {site.name: nu}
        layers = list(self.in_loops[scope])
        if site.name != layers[-1]:
            return None
        nus = {name: self._of_this_step.pop(name) for name in layers}
        shape = self.noise.num_samples, self.examples
        credit = functools.partial(self._credit_of_step, scope)
        return _response(credit, shape, nus, self._key_of_step(scope, site.steps))

    def _of_step(self, scope: str, key: Key, index: Array) -> dict[str, Array]:
        """Draws the directions of sample `index` at one step of a loop, by the key of that step."""
        return self.judge.draw(self.noise._replace(key=key), index, self.in_loops[scope], self.examples)

    def _key_of_step(self, scope: str, steps: tuple[Array, ...]) -> Key:
        key = jax.random.fold_in(self.noise.key, 1 + list(self.in_loops).index(scope))
        return functools.reduce(jax.random.fold_in, steps, key)

    def _credit_of_step(self, scope: str, key: Key, change: Array) -> dict[str, Array]:
        """Returns Σ_k c_kn ξ_kn for each layer of a step, with noise drawn again, some samples at a time."""
        draw = functools.partial(self._of_step, scope, key)

        def partial_sum(indices: Array) -> dict[str, Array]:
            return jax.tree.map(functools.partial(self.judge.judge, change[indices]), stacked(draw)(indices))

        one = jax.eval_shape(draw, jnp.int32(0))
        at_once = default_chunk(len(change), Footprint(occupied(one), weights_of_its_own=False))
        summed = sum_over_samples(partial_sum, alone(len(change)).indices, at_once)
        return {name: summed[name].astype(nu.dtype) for name, nu in self.in_loops[scope].items()}


def layers_at_once(objective: Objective, params: Params, batch: Batch) -> int:
    """Counts the layers in one direction of `nodes`: all outside loops, or those of a loop's step; the larger number.

    Nothing is run.
    """
    templates = _by_loop(learning_layers(objective, params, batch))
    return max(map(len, templates.values()), default=1)


def _measured(measure: Measure, direction: Direction) -> tuple[Direction, Array, Array]:
    return direction, *measure(direction)


def _response(
    credit: Callable[[Key, Array], dict[str, Array]], shape: tuple[int, int], nus: dict[str, Array], key: Key
) -> Array:
    """R_kn = Σ_l ⟨ξ_k^l, ν^l⟩_n over the layers of a step, of which only the derivative, `credit(key, c)`, is used."""
    dtype = wide_dtype(*(nu.dtype for nu in nus.values()))

    @jax.custom_vjp
    def response(nus: dict[str, Array], key: Key) -> Array:
        return jnp.zeros(shape, dtype)

    def forward(nus: dict[str, Array], key: Key) -> tuple[Array, Key]:
        return response(nus, key), key

    def backward(key: Key, change: Array) -> tuple[dict[str, Array], None]:
        return credit(key, change), None

    response.defvjp(forward, backward)
    return response(nus, key)


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
