"""Divides a network into blocks that have local losses."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nl_jax._core.require import positive_integer
from nl_jax.base import ActivationFn, Array, Connection, Params, Propagate
from nl_jax.objectives.judged import one_per_example

_HEAD = ".head"


class Block(NamedTuple):
    """A block of layers; it has the name of its last layer, which its heads read."""

    name: str
    layers: tuple[str, ...]
    shape: tuple[int, ...]
    groups: int
    patches: bool

    @property
    def head(self) -> str:
        return self.name + _HEAD

    @property
    def losses(self) -> int:
        """The number of losses per example in this block."""
        return self.groups * (math.prod(self.shape[:-1]) if self.patches else 1)

    def apart(self, x: Array) -> Array:
        """Moves all that has a separate loss to the first axis of x [batch, …, channels], in the order of losses."""
        grouped = x.reshape(*x.shape[:-1], self.groups, -1)
        if self.patches:
            return grouped.reshape(-1, grouped.shape[-1])
        return jnp.moveaxis(grouped, -2, 1).reshape(-1, *self.shape[:-1], grouped.shape[-1])

    def together(self, x: Array) -> Array:
        """Inverts `apart`."""
        if self.patches:
            return x.reshape(-1, *self.shape)
        grouped = x.reshape(-1, self.groups, *x.shape[1:])
        return jnp.moveaxis(grouped, 1, -2).reshape(-1, *self.shape)

    def taken_apart(self, connection: Connection) -> Connection:
        """Returns the connection into the block's last layer, with `apart` applied to its pre-activation."""
        if self.losses == 1:
            return connection

        def separate(params: Params, *inputs: Array) -> Array:
            return self.apart(connection(params, *inputs))

        separate.mixes_examples = getattr(connection, "mixes_examples", False)  # type: ignore[attr-defined]
        return separate

    def predict(self, params: Params, x: Array) -> Array:
        """Returns the heads' outputs, one row per loss, for `apart`'s result; an image is averaged over positions.

        All positions share one head; every group has its own.
        """
        x = jnp.mean(x, axis=tuple(range(1, x.ndim - 1)))
        grouped = x.reshape(-1, self.groups, x.shape[-1])
        if self.groups == 1:
            return x @ params["weight"] + params["bias"][None]
        answers = jnp.einsum("ngc,gco->ngo", grouped, params["weight"]) + params["bias"][None]
        return answers.reshape(-1, answers.shape[-1])

    def judge(self, loss: Callable[[Any, Any], Array], outputs: Array, targets: Any) -> Array:
        """Returns one loss for each row of `outputs`."""
        repeated = jax.tree.map(lambda t: jnp.repeat(t, self.losses, axis=0), targets)
        return one_per_example("loss", loss(outputs, repeated), "targets", repeated)


def run_block(
    network: Any,
    block: Block,
    params: Params,
    inputs: Array,
    below: Mapping[str, Array],
    propagate: Propagate,
    *,
    apart: bool = False,
) -> dict[str, Array]:
    """Returns the axons of a block's layers, computed from those of the layers below it; runs no other layer."""
    found: dict[str, Array] = {}

    def within(
        name: str, connection: Connection, activation: ActivationFn, params: Params, /, *received: Array
    ) -> Array:
        if name not in block.layers:
            return below.get(name, received[0])  # the values of layers above are not used
        if not apart or name != block.name:
            found[name] = propagate(name, connection, activation, params, *received)
            return found[name]
        found[name] = propagate(name, block.taken_apart(connection), activation, params, *received)
        return block.together(found[name])

    network.apply(params, inputs, propagate=within)
    return found


def split(network: Any, blocks: Sequence[str] | None, groups: int, patches: bool) -> list[Block]:
    """Returns the blocks from the input up; raises ValueError for invalid settings."""
    groups = positive_integer("groups", groups)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    learning = [name for name in network.shapes if jax.tree.leaves(shapes.get(name, {}))]
    ends = learning if blocks is None else list(blocks)
    for name in ends:
        if name not in learning:
            raise ValueError(f"blocks must end at layers with parameters, {', '.join(learning)}; got {name!r}")
    if ends != [name for name in learning if name in ends] or ends[-1:] != learning[-1:]:
        raise ValueError(
            f"blocks must be in the order of the layers, and the last must end at {learning[-1]!r}, or what is above "
            f"it would learn nothing; got {', '.join(ends) or 'none'}"
        )
    if patches and not any(len(network.shapes[name]) > 1 for name in ends):
        raise ValueError("patches=True needs a block that ends at an image [height, width, channels]; all are vectors")
    found, above = [], list(network.shapes)[1:]
    for end in ends:
        own, above = above[: above.index(end) + 1], above[above.index(end) + 1 :]
        channels, several = network.shapes[end][-1], [name for name in own if name in learning]
        if channels % groups:
            raise ValueError(f"groups must divide the {channels} channels of layer {end!r}, got {groups}")
        if (groups > 1 or patches) and len(several) > 1:
            raise ValueError(
                f"with groups or patches a block has one layer with parameters, for a unit must feed a single loss; "
                f"the block of {end!r} has {', '.join(several)}: end a block at each of them"
            )
        if end + _HEAD in shapes:
            raise ValueError(f"layer {end + _HEAD!r} is named like the head of {end!r}: rename it")
        found.append(Block(end, tuple(own), network.shapes[end], groups, patches))
    return found
