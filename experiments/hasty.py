"""Compiling in haste, for experiments whose quick form compiles for longer than it runs."""

import contextlib
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def hasty() -> Iterator[None]:
    """Machine code that is not optimised: of a tiny model, optimising takes longer than all that is then run."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)
