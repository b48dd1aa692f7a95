"""Finds which parameters of an objective are weights: used only in products with inputs."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from nl_jax._core.dependence import Flow, Flows, mark, sources_of_outputs
from nl_jax._core.products.lazy_weight import Bilinear, LazyWeight, OtherUse, Part
from nl_jax.base import Array, Batch, Objective, Params

EXAMPLES = 10_007
"""A batch size that no other axis is likely to have, so that no axis is mistaken for the batch."""


class Use(NamedTuple):
    """How an objective uses its parameters; lists are by leaf, in order.

    Attributes:
      multiplied: whether a leaf is a weight: it has two axes or more, and is used only in products with inputs, or
        look-ups by integers, whose first axis is the batch.
      reads_data: whether it is a weight, and no input of its products depends on any parameter.
      values: the number of values in all products and look-ups together, for one example.
      stacked: how many leading axes of a weight are sliced by loops before it is multiplied; 0 for other leaves.
    """

    multiplied: list[bool]
    reads_data: list[bool]
    values: int
    stacked: list[int]


_ONE_BY_ONE = 32
"""The most parameters tried one by one if trying all together fails; each costs a trace of the objective."""


class _Witness(LazyWeight):
    """A lazy weight that stands for a weight without displacing it, and marks the values it is multiplied with."""

    def __init__(self, weight: Array, examples: int, place: str, note: Callable[..., None]) -> None:
        super().__init__(weight)
        self.examples, self.place, self.note = examples, place, note

    def map(self, function: Part, *, swap: bool) -> Self:
        del swap
        return type(self)(function(self.weight), self.examples, self.place, self.note)

    def product(self, bilinear: Bilinear, x: Array) -> Array:
        if np.ndim(x) < 2 or np.shape(x)[-1] != self.shape[-2]:
            raise OtherUse("inputs are [batch, …, inputs]")
        y = bilinear(mark(self.place, jnp.asarray(x)), self.weight)
        if y.shape[0] != self.examples or y.shape[-1] != self.shape[-1]:
            raise OtherUse("a product is [batch, …, units]")
        self.note(self.place, self.ndim, math.prod(y.shape[1:]))
        return y

    def rows(self, ids: Array) -> Array:
        if ids.shape[0] != self.examples:
            raise OtherUse("what is looked up is [batch, …]")
        self.note(self.place, self.ndim, ids.size // self.examples * self.shape[-1])
        return self.weight[mark(self.place, ids)]

    def as_slices(self) -> tuple[Any, Callable[[Any], Self]]:
        return self.weight, lambda weight: type(self)(weight, self.examples, self.place, self.note)


def use(objective: Objective, params: Params, batch: Batch) -> Use:
    """Finds how the objective uses its parameters, by running it abstractly with witnesses instead of them."""
    leaves, tree = jax.tree.flatten(params)

    def enlarged() -> Batch:
        (number,) = jax.eval_shape(objective, params, batch).shape

        def enlarge(x: Array) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((EXAMPLES, *x.shape[1:]) if x.shape[:1] == (number,) else x.shape, x.dtype)

        return jax.tree.map(enlarge, batch)

    def products_of(chosen: list[int]) -> tuple[dict[int, int], set[int], int] | None:
        """Returns which chosen leaves are multiplied, with their number of axes there; which of them have inputs that
        depend on parameters; and the number of values. None if the objective rejects the witnesses."""
        values: list[int] = []
        axes: dict[int, set[int]] = {}
        sources: dict[str, set[Any]] = {}

        def note(place: str, ndim: int, count: int) -> None:
            values.append(count)
            axes.setdefault(int(place), set()).add(ndim)

        def run(leaves: list[Array], batch: Batch) -> Array:
            placed = [_Witness(leaf, EXAMPLES, str(i), note) if i in chosen else leaf for i, leaf in enumerate(leaves)]
            losses = objective(jax.tree.unflatten(tree, placed), batch)
            if losses.shape != (EXAMPLES,):
                raise OtherUse("losses are [batch]")
            return losses

        def see(place: str, arriving: Flows) -> Flows:
            sources.setdefault(place, set()).update(flow.source for flow in arriving)
            return arriving

        try:
            larger = enlarged()
            program = jax.make_jaxpr(run)(leaves, larger)
        except Exception:  # the user's function may raise anything here: it then has no weights
            return None
        from_params, from_data = (frozenset({Flow(name)}) for name in ("params", "data"))
        arguments = [from_params for _ in leaves] + [from_data for _ in jax.tree.leaves(larger)]
        sources_of_outputs(program, arguments, see)
        found = {int(place): seen for place, seen in sources.items() if place.isdigit()}
        return (
            {place: max(axes[place]) for place in found if len(axes[place]) == 1},
            {place for place, seen in found.items() if seen - {"data"}},
            sum(values),
        )

    candidates = [place for place, leaf in enumerate(leaves) if leaf.ndim >= 2]
    found = products_of(candidates)
    if found is None and len(candidates) > _ONE_BY_ONE:
        found = {}, set(), 0
    elif found is None:
        one_by_one = {i: products_of([i]) for i in candidates}
        found = products_of([i for i, own in one_by_one.items() if own and i in own[0]]) or ({}, set(), 0)
    met, above, values = found
    places = range(len(leaves))
    stacked = [leaves[i].ndim - met[i] if i in met else 0 for i in places]
    return Use([i in met for i in places], [i in met and i not in above for i in places], values, stacked)
