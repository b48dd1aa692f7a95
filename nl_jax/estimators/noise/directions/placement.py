"""How a parameter is sharded over devices, as far as its noise has to know."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from nl_jax.base import Array


def specification(sharding: NamedSharding, ndim: int) -> list[Any]:
    """Returns the axes of the mesh that divide each axis of an array. Its inputs are left to XLA."""
    spec: list[Any] = [*sharding.spec, *[None] * (ndim - len(sharding.spec))]
    if ndim > 1:
        # The loop runs over units, not over inputs: it must know where its blocks are, and within a block XLA divides
        # the noise as it divides the array.
        spec[-2] = None
    return spec


def dividing_axes(sharding: NamedSharding | None, ndim: int) -> set[str]:
    """Returns the axes of the mesh that divide an array's units or leading axes."""
    if sharding is None:
        return set()
    named = [
        names if isinstance(names, tuple) else (names,) for names in specification(sharding, ndim) if names is not None
    ]
    return {name for names in named for name in names if sharding.mesh.shape[name] > 1}


def placed(leaf: Any, sharding: Any = None) -> NamedSharding | None:
    """Returns how a parameter is sharded, as far as its noise has to know; None if nothing is divided.

    Args:
      leaf: an array, or its shape.
      sharding: what the caller knows. None for what is visible: the sharding of a concrete array, or of one that is
        traced on a mesh with explicit axes.
    """
    sharding = sharding or _seen(leaf)
    return sharding if sharding is not None and any(sharding.spec) else None


def on_mesh(leaves: Sequence[Any]) -> NamedSharding | None:
    """Returns the sharding of the first parameter that lies on a mesh, divided or not; None if none does."""
    return next((sharding for leaf in leaves if (sharding := _seen(leaf)) is not None), None)


def _seen(leaf: Any) -> NamedSharding | None:
    try:
        sharding = leaf.sharding
    except (AttributeError, jax.errors.ConcretizationTypeError):  # it is traced: its type has only explicit axes
        sharding = getattr(jax.typeof(leaf), "sharding", None)
    return sharding if isinstance(sharding, NamedSharding) and not sharding.mesh.empty else None


def without_first(sharding: NamedSharding | None) -> NamedSharding | None:
    """Returns the sharding of a slice along the first axis of an array with this one; None if no axis is divided."""
    if sharding is None:
        return None
    sliced = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    return sliced if any(sliced.spec) else None


def everywhere(parts: Sequence[Array], sharding: NamedSharding | None) -> list[Array]:
    """Replicates arrays over a parameter's mesh: XLA would divide their computation."""
    if sharding is None:
        return list(parts)
    return [lax.with_sharding_constraint(part, NamedSharding(sharding.mesh, PartitionSpec())) for part in parts]


def zeros(shape: tuple[int, ...], dtype: Any, sharding: NamedSharding | None) -> Array:
    """Returns zeros with a parameter's sharding."""
    return jnp.zeros(shape, dtype) if sharding is None else jnp.zeros(shape, dtype, device=sharding)
