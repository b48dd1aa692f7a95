"""Formulas for β of conjugate gradients: how much of the last direction is kept (seed 003 eq. 36).

The seed writes them with r = −g. Here they use gradients g, y = g − g_prev and the search direction p. On a
quadratic function with exact line search all four are equal (seed 003 eq. 31–33).
"""

from collections.abc import Callable

from nl_jax._core.numerics import dot
from nl_jax.base import Array, Params
from nl_jax.optimizers.inner import difference, ratio

Beta = Callable[[Params, Params, Params], Array]
"""`beta(gradient, previous, direction) -> β`: g at x_{n+1}, g at x_n, and p_n, the direction from x_n to x_{n+1}."""


def fletcher_reeves(gradient: Params, previous: Params, direction: Params) -> Array:
    """Computes β = gᵀg / g_prevᵀg_prev (seed 003 eq. 33, 36; Fletcher and Reeves 1964)."""
    del direction
    return ratio(dot(gradient, gradient), dot(previous, previous))


def polak_ribiere(gradient: Params, previous: Params, direction: Params) -> Array:
    """Computes β = gᵀy / g_prevᵀg_prev (seed 003 eq. 36; Polak and Ribière 1969)."""
    del direction
    return ratio(dot(gradient, difference(gradient, previous)), dot(previous, previous))


def hestenes_stiefel(gradient: Params, previous: Params, direction: Params) -> Array:
    """Computes β = gᵀy / pᵀy (seed 003 eq. 36; Hestenes and Stiefel 1952)."""
    y = difference(gradient, previous)
    return ratio(dot(gradient, y), dot(direction, y))


def dai_yuan(gradient: Params, previous: Params, direction: Params) -> Array:
    """Computes β = gᵀg / pᵀy (seed 003 eq. 36; Dai and Yuan 1999)."""
    return ratio(dot(gradient, gradient), dot(direction, difference(gradient, previous)))
