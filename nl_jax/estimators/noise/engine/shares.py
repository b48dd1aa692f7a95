"""The division of random samples over devices, and what the devices exchange."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from nl_jax.base import Array, State


def require_sharding(sharding: Any, num_samples: int, sum_updates: bool | None = None) -> None:
    """Raises ValueError unless the sharding can divide the samples, or is None."""
    if sum_updates is not None and not isinstance(sum_updates, bool):
        raise ValueError(f"sum_updates must be True, False, or None (automatic); got {sum_updates!r}")
    if sharding is None:
        if sum_updates is not None:
            raise ValueError(f"sum_updates={sum_updates} needs sharding=, the devices that exchange updates")
        return
    if not isinstance(sharding, NamedSharding) or len(sharding.spec) != 1 or not isinstance(sharding.spec[0], str):
        raise ValueError(
            "sharding must divide the samples over one axis of a mesh, NamedSharding(mesh, PartitionSpec('samples')), "
            f"got {sharding!r}"
        )
    devices = sharding.mesh.shape[sharding.spec[0]]
    if num_samples % devices:
        raise ValueError(f"num_samples must be a multiple of the {devices} devices that share them, got {num_samples}")


def require_automatic(sharding: NamedSharding) -> None:
    """Raises ValueError unless the sharding's axis of the mesh is automatic: then the compiler divides the program."""
    (axis,) = sharding.spec
    if sharding.mesh.axis_types[sharding.mesh.axis_names.index(axis)] != AxisType.Auto:
        raise ValueError(
            f"sharding must be over an automatic axis, got {axis!r} of {sharding.mesh}: make the mesh with "
            "axis_types=(jax.sharding.AxisType.Auto, …)"
        )


class Share(NamedTuple):
    """The samples that one device evaluates, and its communication with the others.

    Attributes:
      indices: the global numbers of its samples, int32.
      axis: the axis of the mesh along which the samples are divided; None if all are on this device.
    """

    indices: Array
    axis: str | None

    def gathered(self, tree: State) -> State:
        """Gathers arrays with a leading axis of samples from all devices, in order."""
        return tree if self.axis is None else jax.lax.all_gather(tree, self.axis, tiled=True)

    def summed(self, tree: State) -> State:
        """Sums arrays over devices."""
        return tree if self.axis is None else jax.lax.psum(tree, self.axis)


def alone(num_samples: int) -> Share:
    """Returns all samples, on one device."""
    return Share(jnp.arange(num_samples, dtype=jnp.int32), None)


def shared_out(
    function: Callable[..., State], num_samples: int, sharding: NamedSharding | None
) -> Callable[..., State]:
    """Returns a function that calls `function(share, *arguments)` on every device, with its share of the samples.

    The samples are 0 … num_samples − 1. Every device has its own, by their global number, so that the result does not
    depend on the number of devices. Devices exchange only what `share` gathers or sums.

    Args:
      function: returns a tree of arrays, the same on all devices.
      num_samples: a multiple of the number of devices.
      sharding: the mesh and its axis along which samples are divided; None for no division. The mesh's other axes stay
        as they are: a batch or parameters may be sharded over them. Inside a `jax.shard_map` over that axis, the axis
        is taken from there.
    """
    if sharding is None:
        return lambda *arguments: function(alone(num_samples), *arguments)
    axis = sharding.spec[0]
    each = num_samples // sharding.mesh.shape[axis]

    def own(*arguments: Any) -> State:
        return function(Share(jax.lax.axis_index(axis) * each + jnp.arange(each, dtype=jnp.int32), axis), *arguments)

    def call(*arguments: Any) -> State:
        around = jax.sharding.get_abstract_mesh()
        if axis in around.manual_axes:
            return own(*arguments)
        none, mesh = PartitionSpec(), None if axis in around.axis_names else sharding.mesh
        return jax.shard_map(own, mesh=mesh, in_specs=none, out_specs=none, axis_names={axis}, check_vma=False)(
            *arguments
        )

    return call


def sums_updates(sharding: NamedSharding | None, footprint: int, components: int) -> bool:
    """Decides whether devices sum partial gradients, or exchange scalars and each add up the whole gradient.

    Adding K directions on every device takes time in proportion to K, while partial gradients are summed once, whatever
    K. So devices sum. They exchange scalars instead if directions are much smaller than the parameters, as rank-one
    noise is: one matrix product adds these, at little cost for one more direction.

    Args:
      sharding: of the samples.
      footprint: the count of numbers that a direction is drawn as.
      components: P, the number of components of the parameters.
    """
    if sharding is None or sharding.mesh.shape[sharding.spec[0]] == 1:
        return False
    return 2 * footprint > components
