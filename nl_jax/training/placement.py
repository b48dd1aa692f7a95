"""Placement of a run's arrays when its data is laid over a mesh of devices."""

from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from nl_jax.base import Array, Batch


def beside(batch: Batch, tree: Any) -> Any:
    """`tree` on the devices of `batch`: leaves that lie on one device are copied to all, others stay as they are.

    JAX would copy them by itself, but only for the first step; what this returns lies on the mesh as well, and so the
    second step would be compiled again. With explicit axes the derivative by an array that is not on the mesh
    would be an error besides.
    """
    meshes = [
        x.sharding.mesh for x in jax.tree.leaves(batch) if isinstance(getattr(x, "sharding", None), NamedSharding)
    ]
    if not meshes:
        return tree
    everywhere = NamedSharding(meshes[0], PartitionSpec())
    return jax.tree.map(lambda x: x if isinstance(x.sharding, NamedSharding) else _copied(x, everywhere), tree)


def _copied(x: Array, to: NamedSharding) -> Array:
    """`x`, which lies on one device, on all devices; of several processes each gives its own, which has to be equal."""
    if to.is_fully_addressable:
        return jax.device_put(x, to)
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_copied(jax.random.key_data(x), to), impl=jax.random.key_impl(x))
    here = np.asarray(x)
    return jax.make_array_from_callback(x.shape, to, lambda part: here[part])


def gather(x: Array, index: Array) -> Array:
    """`x[index]` by first axis, inside jit; with explicit axes laid out as `x` is, as far as the mesh divides it."""
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
