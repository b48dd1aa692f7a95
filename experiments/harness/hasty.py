"""Quick compilation, for experiments whose quick form compiles for longer than it runs."""

import contextlib
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def hasty(quick: bool) -> Iterator[None]:
    """Turns off most compiler optimisations if `quick`: for a small run they take longer than the run itself."""
    if not quick:
        yield
        return
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)
