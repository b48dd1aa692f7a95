"""Products of inputs with weights, and stand-ins for weights that are multiplied without being formed.

A weight displaced by a structured direction, W + σ V, need not be an array: layers only multiply by it,
and x (W + σ V) can be computed term by term. A stand-in replaces the weight among the parameters. It supports
`x @ weight`, `weight.T`, `weight.astype`, `product` and, for tables that are looked up (a product with a row of the
identity), `weight[ids]`. A parameter that is used in other ways is not a weight in this sense; `use` tells which
parameters are weights.

`propagate` controls how a layer is run, but does not see how its connection uses a weight. A stand-in controls this
inside any connection: written by hand, transposed or shared.
"""

import abc
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from nl_jax.base import Array, Batch, Connection, Objective, Params
from nl_jax.checks import path_name
from nl_jax.dependence import Flow, Flows, mark, sources_of_outputs

Bilinear = Callable[[Array, Array], Array]
"""`bilinear(x, weight) -> y`, linear in each: `x` [batch, …, inputs], `weight` […, inputs, units],
`y` [batch, …, units]; `y` has as many units as the weight."""


Part = Callable[[Array], Array]
"""A function applied to every part of a stand-in, such as a change of dtype."""


def product(bilinear: Bilinear, x: Array, weight: Any) -> Array:
    """Returns `bilinear(x, weight)`, for a weight that is an array or a stand-in for one.

    Connections whose product is not `x @ weight` call this, so that structured noise can reach their weight.

    >>> import jax.numpy as jnp
    >>> product(lambda x, w: jnp.einsum("bi,io->bo", x, w), jnp.ones([1, 2]), jnp.ones([2, 3]))
    Array([[2., 2., 2.]], dtype=float32)
    """
    return weight.product(bilinear, x) if isinstance(weight, StandIn) else bilinear(x, weight)


def looked_up(table: Any, ids: Array) -> Array:
    """Returns `table[ids]`, for a table that is an array or a stand-in for one.

    >>> import jax.numpy as jnp
    >>> looked_up(jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([1, 1]))
    Array([[3., 4.],
           [3., 4.]], dtype=float32)
    """
    return table.rows(ids) if isinstance(table, StandIn) else table[ids]


class OtherUse(TypeError):
    """Raised when a stand-in is used for more than a product."""


class StandIn(abc.ABC):
    """Replaces a weight among the parameters; supports only products and look-ups.

    It is deliberately not a pytree: a sum over all parameters' squares must fail, not run over a stand-in's parts.
    """

    __array_ufunc__ = None  # makes x @ weight call __rmatmul__ for a NumPy x

    def __init__(self, weight: Array) -> None:
        self.weight = weight

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape

    @property
    def ndim(self) -> int:
        return self.weight.ndim

    @property
    def size(self) -> int:
        return self.weight.size

    @property
    def dtype(self) -> jnp.dtype:
        return self.weight.dtype

    @property
    def T(self) -> Self:  # noqa: N802 as arrays spell it
        if self.ndim != 2:
            raise OtherUse("only a weight of two axes is transposed term by term")
        return self.map(jnp.transpose, swap=True)

    def astype(self, dtype: jax.typing.DTypeLike) -> Self:
        return self.map(lambda part: part.astype(dtype), swap=False)

    @abc.abstractmethod
    def map(self, function: Part, *, swap: bool) -> Self:
        """Returns the stand-in with `function` applied to its parts; with `swap`, inputs and units change places."""

    @abc.abstractmethod
    def product(self, bilinear: Bilinear, x: Array) -> Array:
        """Returns `bilinear(x, weight)`, computed term by term."""

    def rows(self, ids: Array) -> Array:
        """Returns `weight[ids]`, […, units], computed term by term; `ids` are integers of any shape."""
        del ids
        raise OtherUse(f"a {type(self).__name__} of shape {self.shape} is not looked up")

    def opened(self) -> tuple[Any, Callable[[Any], "StandIn"]]:
        """Returns arrays for a loop to slice along their first axis, and a function from a slice to its stand-in."""
        raise OtherUse(f"a {type(self).__name__} of shape {self.shape} is not sliced by a loop")

    def __rmatmul__(self, x: Array) -> Array:
        return self.product(jnp.matmul, x)

    def __getitem__(self, ids: Any) -> Array:
        if not isinstance(ids, Array | np.ndarray) or not ids.ndim or not jnp.issubdtype(ids.dtype, jnp.integer):
            raise OtherUse("a weight's stand-in is looked up by an array of integers alone")
        if self.ndim != 2:
            raise OtherUse("only a weight of two axes is looked up term by term")
        return self.rows(jnp.asarray(ids))


def _refuse(self: StandIn, *_: Any) -> Any:
    raise OtherUse("a weight's stand-in answers products alone")


for _operator in (
    *("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "pow", "rpow", "matmul", "neg", "abs"),
    *("iter", "len", "float", "lt", "le", "gt", "ge"),
):
    setattr(StandIn, f"__{_operator}__", _refuse)


def opened(xs: Any) -> tuple[Any, Callable[[Any], Any]]:
    """Opens the stand-ins in a tree for a loop to slice; returns the arrays, and a function that rebuilds a slice."""
    leaves, tree = jax.tree.flatten(xs, is_leaf=lambda leaf: isinstance(leaf, StandIn))
    parts = [leaf.opened() if isinstance(leaf, StandIn) else (leaf, lambda part: part) for leaf in leaves]
    rebuilt = lambda slices: jax.tree.unflatten(
        tree, [close(part) for part, (_, close) in zip(slices, parts, strict=True)]
    )
    return [part for part, _ in parts], rebuilt


class Shifted(StandIn):
    """Stands in for W + scale · shift, multiplied term by term; products of one x with several shifts share x W.

    Args:
      weight: W.
      shift: an array of W's shape, or a stand-in for one.
      scale: a number that multiplies the shift.
    """

    def __init__(self, weight: Array, shift: Array | StandIn, scale: Any) -> None:
        super().__init__(weight)
        self.shift, self.scale = shift, scale

    def map(self, function: Part, *, swap: bool) -> Self:
        return type(self)(function(self.weight), mapped(self.shift, function, swap=swap), self.scale)

    def product(self, bilinear: Bilinear, x: Array) -> Array:
        shifted = product(bilinear, x, self.shift)
        return bilinear(x, self.weight) + jnp.asarray(self.scale, shifted.dtype) * shifted

    def rows(self, ids: Array) -> Array:
        shifted = looked_up(self.shift, ids)
        return self.weight[ids] + jnp.asarray(self.scale, shifted.dtype) * shifted


def mapped(part: Any, function: Part, *, swap: bool) -> Any:
    """Applies `function` to an array or a stand-in, as `StandIn.map` does."""
    return part.map(function, swap=swap) if isinstance(part, StandIn) else function(part)


def unfold(connection: Connection, params: Params, *inputs: Array, which: Sequence[int] | None = None) -> list[Array]:
    """Returns the values that a connection multiplies its weights with, a row per product: for convolutions, patches.

    Args:
      connection: any connection with one product for each weight, by `x @ params["weight"]` or by `product`.
      params: its parameters; a weight is of shape […, units].
      *inputs: the connection's inputs, batch axis first.
      which: the weights, by their index among the leaves of `params`; by default all leaves of two axes or more.

    Returns:
      For each weight [products, inputs], such that `unfolded @ weight.reshape(inputs, units)` is [products, units].

    Raises:
      OtherUse: if a weight is used in another way. JAX's own functions of a weight raise another TypeError.

    >>> import jax.numpy as jnp
    >>> unfold(lambda params, x: x @ params["weight"], {"weight": jnp.ones([3, 2])}, jnp.ones([4, 5, 3]))[0].shape
    (20, 3)
    """
    leaves, tree = jax.tree.flatten(params)
    places = [i for i, leaf in enumerate(leaves) if leaf.ndim >= 2] if which is None else which
    noted: dict[int, list[Array]] = {i: [] for i in places}
    standing = [_Unfolding(leaf, noted[i]) if i in noted else leaf for i, leaf in enumerate(leaves)]
    connection(jax.tree.unflatten(tree, standing), *inputs)
    for i, found in noted.items():
        if len(found) != 1:
            name = path_name(jax.tree_util.tree_leaves_with_path(params)[i][0])
            raise OtherUse(f"{name or 'the weight'} is in {len(found)} products, not in one")
    return [found[0] for found in noted.values()]


class _Unfolding(StandIn):
    """Stands in for a weight and records the values it is multiplied with."""

    def __init__(self, weight: Array, noted: list[Array]) -> None:
        super().__init__(weight)
        self.noted = noted

    def map(self, function: Part, *, swap: bool) -> Self:
        if swap:
            raise OtherUse("a transposed weight has its units first")
        return type(self)(function(self.weight), self.noted)

    def product(self, bilinear: Bilinear, x: Array) -> Array:
        *window, _ = self.shape
        inputs = math.prod(window)
        if bilinear is jnp.matmul and self.ndim == 2:
            unfolded = x
        else:  # an identity weight, whose units each return one input
            with jax.default_matmul_precision("highest"):
                unfolded = bilinear(x, jnp.eye(inputs, dtype=self.dtype).reshape(*window, inputs))
        self.noted.append(unfolded.reshape(-1, inputs))
        return bilinear(x, self.weight)


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


class _Witness(StandIn):
    """Stands in for a weight without displacing it, and marks the values it is multiplied with."""

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

    def opened(self) -> tuple[Any, Callable[[Any], Self]]:
        return self.weight, lambda weight: type(self)(weight, self.examples, self.place, self.note)


def use(objective: Objective, params: Params, batch: Batch) -> Use:
    """Finds how the objective uses its parameters, by running it abstractly with witnesses instead of them."""
    leaves, tree = jax.tree.flatten(params)
    # A number of examples that no other axis is likely to have, so that no axis is mistaken for the batch.
    examples = 10_007

    def enlarged() -> Batch:
        (number,) = jax.eval_shape(objective, params, batch).shape

        def enlarge(x: Array) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((examples, *x.shape[1:]) if x.shape[:1] == (number,) else x.shape, x.dtype)

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
            placed = [_Witness(leaf, examples, str(i), note) if i in chosen else leaf for i, leaf in enumerate(leaves)]
            losses = objective(jax.tree.unflatten(tree, placed), batch)
            if losses.shape != (examples,):
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
