"""A rule with free coefficients: a polynomial of inputs, outputs and weights (Mehta et al. 2024)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from nl_jax.base import Array, Params
from nl_jax.rules.rule import Change, Rule, mean_outer, unsupervised

POWERS = 3
"""Powers 0, 1 and 2 of each of x, y and w."""

SHAPE = (POWERS, POWERS, POWERS)

Theta = Array | Mapping[tuple[int, int, int], float]
"""θ [3, 3, 3], where θ[a, b, c] is the coefficient of x^a y^b w^c; or only the nonzero ones, `{(a, b, c): value}`."""


def parametric(theta: Theta) -> Rule:
    """Polynomial rule, Δw_ij = ⟨Σ_abc θ_abc x_i^a y_j^b w_ij^c⟩ with powers 0 to 2 (Mehta et al. 2024).

    The coefficients define the rule: Hebb's has only θ_110 = 1, and Oja's also has θ_021 = −1. The rule is
    differentiable in θ through any number of steps; `nl.diagnostics.plasticity_from_weights` and
    `nl.diagnostics.plasticity_from_activity` fit θ to observations. Biases do not change.

    Args:
      theta: θ [3, 3, 3], or a mapping {(a, b, c): coefficient} of the nonzero ones. Values of any sign.

    Raises:
      ValueError: if theta has another shape, or names powers that are not 0, 1 or 2.

    >>> import jax.numpy as jnp, nl_jax as nl
    >>> params, x, y = {"weight": jnp.ones((2, 1))}, jnp.ones((4, 2)), 2 * jnp.ones((4, 1))
    >>> by_coefficients = nl.rules.parametric({(1, 1, 0): 1.0, (0, 2, 1): -1.0})
    >>> changes = [rule.change((), params, x, y, None)[0]["weight"] for rule in (by_coefficients, nl.rules.oja())]
    >>> [change.tolist() for change in changes]
    [[[-2.0], [-2.0]], [[-2.0], [-2.0]]]
    """
    coefficients = as_array(theta)

    def change(params: Params, x: Array, y: Array) -> Change:
        terms = monomials(params["weight"], x, y)
        return {"weight": jnp.tensordot(coefficients.astype(terms.dtype), terms, axes=3)}

    return unsupervised(change)


def monomials(W: Array, x: Array, y: Array) -> Array:
    """Computes ⟨x_i^a y_j^b⟩ w_ij^c for all powers, [3, 3, 3, inputs, units], the terms that θ multiplies."""
    together = jax.vmap(jax.vmap(mean_outer, (None, 0)), (0, None))(_powers(x), _powers(y))
    return jnp.einsum("abij,cij->abcij", together, _powers(W))


def as_array(theta: Theta) -> Array:
    """Converts θ to an array [3, 3, 3]; raises a ValueError if it is not valid."""
    if isinstance(theta, Mapping):
        dense = np.zeros(SHAPE)
        for powers, value in theta.items():
            if not isinstance(powers, tuple) or len(powers) != 3 or not all(p in range(POWERS) for p in powers):
                raise ValueError(
                    f"theta has a coefficient of {powers!r}: give the powers (a, b, c) of x^a y^b w^c, each 0, 1 or 2"
                )
            dense[powers] = value
        return jnp.asarray(dense)
    if np.shape(theta) != SHAPE:
        raise ValueError(
            f"theta must be of shape {SHAPE}, a coefficient for each of the powers 0 to 2 of x, y and w, "
            f"got {np.shape(theta)}; a mapping such as {{(1, 1, 0): 1.0}} names those that are not 0"
        )
    return jnp.asarray(theta)


def _powers(a: Array) -> Array:
    """Stacks 1, a and a²; uses a product because the derivative of a power at 0 would be NaN."""
    return jnp.stack([jnp.ones_like(a), a, a * a])
