"""Products of inputs with weights, and lazy weights, which are multiplied without being formed.

A weight displaced by a structured direction, W + σ V, need not be an array: layers only multiply by it,
and x (W + σ V) can be computed term by term. A lazy weight replaces the weight among the parameters. It supports
`x @ weight`, `weight.T`, `weight.astype`, `product` and, for tables that are looked up (a product with a row of the
identity), `weight[ids]`. A parameter that is used in other ways is not a weight in this sense; `use` tells which
parameters are weights.

`propagate` controls how a layer is run, but does not see how its connection uses a weight. A lazy weight controls this
inside any connection: written by hand, transposed or shared.
"""

import abc
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from nl_jax.base import Array

Bilinear = Callable[[Array, Array], Array]
"""`bilinear(x, weight) -> y`, linear in each: `x` [batch, …, inputs], `weight` […, inputs, units],
`y` [batch, …, units]; `y` has as many units as the weight."""


Part = Callable[[Array], Array]
"""A function applied to every part of a lazy weight, such as a change of dtype."""


def product(bilinear: Bilinear, x: Array, weight: Any) -> Array:
    """Returns `bilinear(x, weight)`, for a weight that is an array or a lazy weight.

    Connections whose product is not `x @ weight` call this, so that structured noise can reach their weight.

    >>> import jax.numpy as jnp
    >>> product(lambda x, w: jnp.einsum("bi,io->bo", x, w), jnp.ones([1, 2]), jnp.ones([2, 3]))
    Array([[2., 2., 2.]], dtype=float32)
    """
    return weight.product(bilinear, x) if isinstance(weight, LazyWeight) else bilinear(x, weight)


def looked_up(table: Any, ids: Array) -> Array:
    """Returns `table[ids]`, for a table that is an array or a lazy weight.

    >>> import jax.numpy as jnp
    >>> looked_up(jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([1, 1]))
    Array([[3., 4.],
           [3., 4.]], dtype=float32)
    """
    return table.rows(ids) if isinstance(table, LazyWeight) else table[ids]


class OtherUse(TypeError):
    """Raised when a lazy weight is used for more than a product."""


class LazyWeight(abc.ABC):
    """Replaces a weight among the parameters; supports only products and look-ups.

    It is deliberately not a pytree: a sum over all parameters' squares must fail, not run over a lazy weight's parts.
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
        """Returns the lazy weight with `function` applied to its parts; with `swap`, inputs and units change places."""

    @abc.abstractmethod
    def product(self, bilinear: Bilinear, x: Array) -> Array:
        """Returns `bilinear(x, weight)`, computed term by term."""

    def rows(self, ids: Array) -> Array:
        """Returns `weight[ids]`, […, units], computed term by term; `ids` are integers of any shape."""
        del ids
        raise OtherUse(f"a {type(self).__name__} of shape {self.shape} is not looked up")

    def as_slices(self) -> tuple[Any, Callable[[Any], "LazyWeight"]]:
        """Returns arrays for a loop to slice along their first axis, and a function from a slice to its lazy weight."""
        raise OtherUse(f"a {type(self).__name__} of shape {self.shape} is not sliced by a loop")

    def __rmatmul__(self, x: Array) -> Array:
        return self.product(jnp.matmul, x)

    def __getitem__(self, ids: Any) -> Array:
        if not isinstance(ids, Array | np.ndarray) or not ids.ndim or not jnp.issubdtype(ids.dtype, jnp.integer):
            raise OtherUse("a lazy weight can only be looked up by an array of integers")
        if self.ndim != 2:
            raise OtherUse("only a weight of two axes is looked up term by term")
        return self.rows(jnp.asarray(ids))


def _refuse(self: LazyWeight, *_: Any) -> Any:
    raise OtherUse("a lazy weight supports products only")


for _operator in (
    *("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "pow", "rpow", "matmul", "neg", "abs"),
    *("iter", "len", "float", "lt", "le", "gt", "ge"),
):
    setattr(LazyWeight, f"__{_operator}__", _refuse)


def as_slices(xs: Any) -> tuple[Any, Callable[[Any], Any]]:
    """Returns a tree's arrays, those of its lazy weights included, for a loop to slice; and a function of a slice.

    The function rebuilds the tree of one step, lazy weights included.
    """
    leaves, tree = jax.tree.flatten(xs, is_leaf=lambda leaf: isinstance(leaf, LazyWeight))
    parts = [leaf.as_slices() if isinstance(leaf, LazyWeight) else (leaf, lambda part: part) for leaf in leaves]
    rebuilt = lambda slices: jax.tree.unflatten(
        tree, [close(part) for part, (_, close) in zip(slices, parts, strict=True)]
    )
    return [part for part, _ in parts], rebuilt


class Shifted(LazyWeight):
    """W + scale · shift, multiplied term by term; products of one x with several shifts share x W.

    Args:
      weight: W.
      shift: an array of W's shape, or a lazy weight.
      scale: a number that multiplies the shift.
    """

    def __init__(self, weight: Array, shift: Array | LazyWeight, scale: Any) -> None:
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
    """Applies `function` to an array or a lazy weight, as `LazyWeight.map` does."""
    return part.map(function, swap=swap) if isinstance(part, LazyWeight) else function(part)
