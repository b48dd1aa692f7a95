"""How programs are compiled that run only a few times."""

from typing import Any


def options(quick: bool) -> dict[str, Any] | None:
    """`compiler_options` of `jax.jit`: a quick run optimises less, since that takes longer than to run the program.

    None for JAX's own.
    """
    return {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True} if quick else None
