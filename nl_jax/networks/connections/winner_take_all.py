"""Competition among the units of a layer."""

import jax
import jax.numpy as jnp

from nl_jax._core.require import positive_integer
from nl_jax.base import Array, Params
from nl_jax.networks.connections.connection import ConnectionSpec, Joint, Shape


def winner_take_all(source: str | None = None, *, group: int | None = None) -> ConnectionSpec:
    """Passes only the largest of every group of neighbouring units, in its position; all others give 0.

    The seed defines it as a connection ν = x M of weight 1 on the largest input and 0 elsewhere (seed 003 eq. 11), so
    credit flows only to the winners. Among equal inputs the first wins, and a NaN wins over any number. The receiving
    layer has the source's shape. The version for images is `max_pool`, where each group gives one axon.

    Args:
      source: name of the lower layer; by default the layer listed just before.
      group: number of neighbours along the last axis that compete, a divisor of its size; by default all of them.

    Raises:
      ValueError: if group is not a whole number of at least 1.
    """
    if group is not None:
        positive_integer("group", group)

    def join(source_shape: Shape, shape: Shape | None) -> Joint:
        del shape
        units = source_shape[-1]
        rivals = units if group is None else group
        if units % rivals:
            raise ValueError(f"winner_take_all cannot part {units} units into groups of {rivals}: choose a divisor")

        def apply(params: Params, x: Array) -> Array:
            del params
            groups = x.reshape(*x.shape[:-1], units // rivals, rivals)
            wins = jax.nn.one_hot(jnp.argmax(groups, axis=-1), rivals, dtype=bool)
            return jnp.where(wins, groups, 0).reshape(x.shape)

        return Joint(source_shape, lambda key, dtype: {}, apply)

    return ConnectionSpec(join, source, "winner_take_all")
