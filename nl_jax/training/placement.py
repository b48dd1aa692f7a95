"""Placement of a run's arrays when its data is sharded over a mesh of devices."""

from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from nl_jax.base import Array, Batch


def beside(batch: Batch, tree: Any) -> Any:
    """Places `tree` on the devices of `batch`: leaves on one device are copied to all, others stay as they are.

    JAX would copy them automatically, but only for the first step. That step's outputs are on the mesh, so the second
    step would be compiled again. With explicit axes, a derivative by an array that is not on the mesh would also be an
    error.
    """
    meshes = [
        x.sharding.mesh for x in jax.tree.leaves(batch) if isinstance(getattr(x, "sharding", None), NamedSharding)
    ]
    if not meshes:
        return tree
    everywhere = NamedSharding(meshes[0], PartitionSpec())
    return jax.tree.map(lambda x: x if isinstance(x.sharding, NamedSharding) else _copied(x, everywhere), tree)


def _copied(x: Array, to: NamedSharding) -> Array:
    """Copies `x` from one device to all; each of several processes provides its own `x`, and these must be equal."""
    if to.is_fully_addressable:
        return jax.device_put(x, to)
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_copied(jax.random.key_data(x), to), impl=jax.random.key_impl(x))
    here = np.asarray(x)
    return jax.make_array_from_callback(x.shape, to, lambda part: here[part])


def gather(x: Array, index: Array) -> Array:
    """Returns `x[index]` inside jit; with explicit axes it is sharded as `x` is, where the mesh divides its length."""
    sharding = jax.typeof(x).sharding
    laid = sharding.spec[0] if len(sharding.spec) else None
    if laid is None:
        return x.at[index].get(mode="promise_in_bounds")
    names = laid if isinstance(laid, tuple) else (laid,)
    devices = 1
    for name in names:
        devices *= sharding.mesh.shape[name]
    first = laid if index.shape[0] % devices == 0 else None
    to = NamedSharding(sharding.mesh, PartitionSpec(first, *sharding.spec[1:]))
    return x.at[index].get(mode="promise_in_bounds", out_sharding=to)
