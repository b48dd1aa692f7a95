"""Rates of change along a direction: three finite differences and the exact derivative.

With Ẽ(ε) the losses displaced by ε ξ, each function here makes, for a view of a space, the function
`rate(direction) -> (change, losses)`: the losses' rate of change along ξ, [batch], and the losses it
learned them from, [batch], an estimate of the undisplaced ones.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nl_jax.base import Array, Params
from nl_jax.estimators.spaces import View


class Rate(NamedTuple):
    """How to measure a rate of change, and what it costs in evaluations of the objective."""

    along: Callable[[Params], tuple[Array, Array]]
    fixed_cost: int
    cost_per_sample: int


Baseline = Callable[[View, float], Rate]


def none(view: View, sigma: float) -> Rate:
    """Ẽ(σ)/σ: no baseline, the update of seed 000 to the letter, −η Ẽ Ω.

    Unbiased as the others, for E is independent of the noise; but its variance grows as (E/σ)².
    """

    def along(direction: Params) -> tuple[Array, Array]:
        losses = view.displaced(_times(sigma, direction))
        return losses / sigma, losses

    return Rate(along, 0, 1)


def clean(view: View, sigma: float) -> Rate:
    """(Ẽ(σ) − E)/σ: the difference of perturbed and unperturbed error (seed 000)."""
    losses = view.clean()

    def along(direction: Params) -> tuple[Array, Array]:
        return (view.displaced(_times(sigma, direction)) - losses) / sigma, losses

    return Rate(along, view.clean_cost, 1)


def antithetic(view: View, sigma: float) -> Rate:
    """(Ẽ(σ) − Ẽ(−σ))/2σ: the central difference, whose error is of second order in σ (SPSA; Spall 1992)."""

    def along(direction: Params) -> tuple[Array, Array]:
        above, below = view.displaced(_times(sigma, direction)), view.displaced(_times(-sigma, direction))
        return (above - below) / (2 * sigma), (above + below) / 2

    return Rate(along, 0, 2)


def tangent(view: View) -> Rate:
    """dẼ/dσ at σ = 0: the exact directional derivative, by linearising once (forward-mode autodiff)."""
    origin = jax.tree.map(jnp.zeros_like, view.template)
    losses, derivative = jax.linearize(view.displaced, origin)

    def along(direction: Params) -> tuple[Array, Array]:
        return derivative(direction), losses

    return Rate(along, view.clean_cost, view.tangent_cost)


def _times(sigma: float, direction: Params) -> Params:
    for leaf in jax.tree.leaves(direction):
        resolution = float(jnp.finfo(leaf.dtype).eps)
        if abs(sigma) < resolution:
            raise ValueError(
                f"sigma = {abs(sigma)} is lost in {leaf.dtype}, which resolves {resolution:.1g} next to 1: use a sigma "
                f"of {30 * resolution:.1g} or more, or wider parameters"
            )
    return jax.tree.map(lambda xi: sigma * xi, direction)
