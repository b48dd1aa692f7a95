"""Fast compilation, for experiments whose quick form compiles for longer than it runs."""

import contextlib
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def hasty() -> Iterator[None]:
    """Turns off most compiler optimisations: for a tiny model they take longer than the run itself."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)
