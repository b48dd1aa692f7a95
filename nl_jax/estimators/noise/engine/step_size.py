"""The step of a finite difference: large enough for the dtype, small enough to be local."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from nl_jax.base import Array

Length = Callable[[float], float]
"""`length(eps) -> ‖σ ξ‖`, the step length in a dtype that resolves eps next to 1."""


def balanced(order: int) -> Length:
    """Returns 8 eps^(1/(order + 1)), at most 1: balances the rounding error, about 30 eps/‖σ ξ‖, against curvature's.

    The best factor grows with the network, from 2 to 5 for 43 parameters to 15 and more for 269,000: in float32,
    float16 and bfloat16, with one-sided (order 1) and central (order 2) differences. Central ones in bfloat16 would be
    longer than 1. At that length, 1.6, curvature biases the small network's estimates by 18 ± 2 % of a layer's
    gradient, at length 1 by 8 ± 2 %; errors from rounding mostly average out.
    """
    return lambda eps: min(8 * eps ** (1 / (order + 1)), 1.0)


def unit(eps: float) -> float:
    """Returns 1, whatever the resolution: for comparisons in which the loss itself hides the effect of a small step."""
    del eps
    return 1.0


def step_size(
    sigma: float | Array | None, length: Length | None, dtypes: Sequence[jnp.dtype], components: int
) -> float | Array:
    """Returns σ as given, or ‖σ ξ‖/√P for directions ξ of P components.

    Raises:
      ValueError: if σ is a number so small that the difference would be rounding noise; an array is not checked.
    """
    if isinstance(sigma, jax.Array):
        return sigma
    if length is None or not components:
        return 1.0  # no step is made, or nothing is displaced
    coarsest = max(dtypes, key=lambda dtype: float(jnp.finfo(dtype).eps))
    eps, root = float(jnp.finfo(coarsest).eps), components**0.5
    if sigma is None:
        return length(max(eps, _products())) / root
    if sigma * root < 30 * eps:
        raise ValueError(
            f"sigma = {sigma} is lost in {coarsest}: a step of sigma times the root of {components} components is less "
            f"than {30 * eps:.1g}, and the losses' difference rounding noise. Leave sigma out for the default of "
            f"{length(eps) / root:.1g}, or use wider parameters"
        )
    return sigma


def _products() -> float:
    """The resolution of products: accelerators round factors unless `jax_default_matmul_precision` forbids it."""
    if getattr(jax.config, "jax_default_matmul_precision", None) in ("float32", "highest"):
        return 0.0
    return {"gpu": 2.0**-10, "tpu": 2.0**-7}.get(jax.default_backend(), 0.0)
