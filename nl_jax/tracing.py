"""What a value depends on, found out while a program is traced."""

from collections.abc import Callable

import jax

from nl_jax.base import Array


def if_mapped(x: Array, note: Callable[[], None]) -> None:
    """Calls `note` if x is mapped over by the vmap around, that is, if it depends on what is mapped there."""

    @jax.custom_batching.custom_vmap
    def identity(x: Array) -> Array:
        return x

    @identity.def_vmap
    def rule(axis_size: int, in_batched: list[bool], x: Array) -> tuple[Array, bool]:
        del axis_size
        if in_batched[0]:
            note()
        return x, in_batched[0]

    identity(x)
