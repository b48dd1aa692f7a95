"""The values that a connection multiplies its weights with."""

import math
from collections.abc import Sequence
from typing import Self

import jax
import jax.numpy as jnp

from nl_jax._core.paths import path_name
from nl_jax._core.products.lazy_weight import Bilinear, LazyWeight, OtherUse, Part
from nl_jax.base import Array, Connection, Params


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


class _Unfolding(LazyWeight):
    """A lazy weight that stands for a weight and records the values it is multiplied with."""

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
