"""Compiler options for programs that run only a few times."""

from typing import Any


def options(quick: bool) -> dict[str, Any] | None:
    """Returns `compiler_options` for `jax.jit`; None means JAX's defaults.

    A quick run optimises less, because optimising takes longer than running the program.
    """
    return {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True} if quick else None
