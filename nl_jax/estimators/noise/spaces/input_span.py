"""The span of a weight's inputs, found by a sketch in one run without backpropagation."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp

from nl_jax._core.dependence import severed
from nl_jax._core.products import LazyWeight, use
from nl_jax._core.products.lazy_weight import Bilinear, Part
from nl_jax._core.require import per_example
from nl_jax.base import Array, Batch, Key, Objective, Params
from nl_jax.propagation import Site, interpret
from nl_jax.propagation.loops import accumulated


class Inputs(NamedTuple):
    """The inputs that a weight is multiplied with.

    Attributes:
      rows: the number of inputs in one run: examples, times positions of an image or steps of a loop.
      stacked: how many of the weight's leading axes a loop slices, so that each slice has its own inputs.
    """

    rows: int
    stacked: int


class _Use(NamedTuple):
    """One product of a weight: its number of axes there, and whether the span of x is that of ∂E/∂W."""

    place: int
    ndim: int
    spans: bool


class _Sketched(LazyWeight):
    """W in x W, which also records ⟨x P, x Ω⟩, whose derivative by P is the sketch xᵀx Ω."""

    def __init__(self, weight: Array, probe: Array, omega: Array, place: int, note: Callable[..., None]) -> None:
        super().__init__(weight)
        self.probe, self.omega, self.place, self.note = probe, omega, place, note

    def map(self, function: Part, *, swap: bool) -> Self | "_Other":  # type: ignore[override]
        if swap:  # its inputs are W's units
            return _Other(function(self.weight), self.place, self.note)
        return type(self)(function(self.weight), function(self.probe), function(self.omega), self.place, self.note)

    def product(self, bilinear: Bilinear, x: Array) -> Array:
        held = severed(x)
        seen = bilinear(held, self.omega)
        response = jnp.sum(bilinear(held, self.probe) * severed(seen)).astype(float)  # one dtype for all layers
        self.note(_Use(self.place, self.ndim, spans=True), math.prod(seen.shape[:-1]), response)
        return bilinear(x, self.weight)

    def rows(self, ids: Array) -> Array:
        return _Other(self.weight, self.place, self.note).rows(ids)

    def as_slices(self) -> tuple[Any, Callable[[Any], LazyWeight]]:
        parts = self.weight, self.probe, self.omega
        return parts, lambda parts: type(self)(parts[0], parts[1], parts[2], self.place, self.note)


class _Other(LazyWeight):
    """A lazy weight that stands for a weight that is transposed or looked up, and records this use."""

    def __init__(self, weight: Array, place: int, note: Callable[..., None]) -> None:
        super().__init__(weight)
        self.place, self.note = place, note

    def map(self, function: Part, *, swap: bool) -> Self:
        del swap
        return type(self)(function(self.weight), self.place, self.note)

    def product(self, bilinear: Bilinear, x: Array) -> Array:
        self.note(_Use(self.place, self.ndim, spans=False), 0, None)
        return bilinear(x, self.weight)

    def rows(self, ids: Array) -> Array:
        self.note(_Use(self.place, self.ndim, spans=False), 0, None)
        return self.weight[ids]

    def as_slices(self) -> tuple[Any, Callable[[Any], LazyWeight]]:
        return self.weight, lambda weight: type(self)(weight, self.place, self.note)


class _Notes:
    """Records the products of a run, layer by layer."""

    def __init__(self) -> None:
        self.uses: set[_Use] = set()
        self.of_layer: list[tuple[int, int, Array]] | None = None

    def __call__(self, use: _Use, rows: int, response: Array | None) -> None:
        # The response of a product outside the layers could not leave a loop.
        self.uses.add(use if self.of_layer is not None else use._replace(spans=False))
        if self.of_layer is not None and response is not None:
            self.of_layer.append((use.place, rows, response))

    def run(self, site: Site) -> tuple[Array, list[tuple[int, int, Array]]]:
        """Returns the layer's axons, and (place, rows, response) of its products."""
        self.of_layer = []
        axons = site.axons()
        found, self.of_layer = self.of_layer, None
        return axons, found


def inputs_of(objective: Objective, params: Params, batch: Batch) -> dict[int, Inputs]:
    """Finds the weights whose gradient lies in the span of their inputs, by place among the parameters' leaves.

    ∂E/∂W = Σ x δᵀ for a weight that is used only in products x W of layers. Nothing is run.
    """
    leaves = jax.tree.leaves(params)
    multiplied = [place for place, found in enumerate(use(objective, params, batch).multiplied) if found]
    notes = _Notes()

    def layer(site: Site, given: None) -> tuple[Array, dict[str, Array]]:
        axons, found = notes.run(site)
        rows: dict[str, int] = {}
        for place, count, _ in found:
            rows[str(place)] = rows.get(str(place), 0) + count
        # As arrays, to which a loop adds its axis of steps.
        return axons, {place: jnp.zeros(count) for place, count in rows.items()}

    def run(params: Params, batch: Batch) -> dict[str, dict[str, Array]]:
        ones = {place: (*leaves[place].shape[:-1], 1) for place in multiplied}
        blank = {place: jnp.zeros(shape, leaves[place].dtype) for place, shape in ones.items()}
        return interpret(objective, layer)(_placed(params, blank, blank, notes), batch)[1]

    total: dict[int, int] = {}
    for found in jax.eval_shape(run, params, batch).values():
        for place, rows in found.items():
            total[int(place)] = total.get(int(place), 0) + rows.size
    spanned: dict[int, Inputs] = {}
    for place, rows in total.items():
        uses = [use for use in notes.uses if use.place == place]
        if len(uses) == 1 and uses[0].spans:
            stacked = leaves[place].ndim - uses[0].ndim
            spanned[place] = Inputs(rows // max(1, math.prod(leaves[place].shape[:stacked])), stacked)
    return spanned


def sketches(
    objective: Objective, params: Params, batch: Batch, key: Key, ranks: dict[int, int]
) -> tuple[Array, dict[int, Array]]:
    """Returns a clean run's losses, and XᵀX Ω of some weights' inputs X [rows, inputs], Ω random [inputs, rank].

    This is a randomised range finder (Halko et al. 2011, with half a power iteration). It has the span of the inputs if
    its rank is at least theirs, and otherwise favours their leading directions. Each product is differentiated by
    itself: activations and losses need no derivative, nothing is backpropagated, and loops store nothing of their
    steps.

    Args:
      objective: a per-example objective that takes `propagate`.
      params: its parameters.
      batch: its batch.
      key: for Ω.
      ranks: the number of columns of Ω, by the weights' places from `inputs_of`.

    Returns:
      `(losses, {place: sketch})`, each […, inputs, rank] with the leading axes of its weight.
    """
    leaves = jax.tree.leaves(params)
    of_place = {place: (*leaves[place].shape[:-1], rank) for place, rank in ranks.items()}
    omegas = {
        place: jax.random.normal(jax.random.fold_in(key, place), shape, leaves[place].dtype)
        for place, shape in of_place.items()
    }
    notes = _Notes()

    def layer(site: Site, given: None) -> tuple[Array, Array]:
        axons, found = notes.run(site)
        return axons, sum((response for _, _, response in found), jnp.zeros(()))

    run = interpret(objective, layer, loop=accumulated, summed=True)

    def response(probes: dict[int, Array]) -> tuple[Array, Array]:
        losses, found = run(_placed(params, probes, omegas, notes), batch)
        return sum(found.values(), jnp.zeros(())), severed(per_example(losses))

    blank = {place: jnp.zeros_like(omega) for place, omega in omegas.items()}
    found, losses = jax.grad(response, has_aux=True)(blank)
    return losses, found


def _placed(params: Params, probes: dict[int, Array], omegas: dict[int, Array], notes: _Notes) -> Params:
    leaves, tree = jax.tree.flatten(params)
    placed = [
        _Sketched(leaf, probes[place], omegas[place], place, notes) if place in probes else leaf
        for place, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(tree, placed)
