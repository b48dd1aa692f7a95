"""Baselines: what a perturbed loss is compared with, or the exact directional derivative.

Let Ẽ(σ) be the losses displaced by σ ξ. For a view of a space, a baseline makes the function
`along(direction) -> (change, losses)`: the losses' rate of change along ξ, [batch], and the losses it was measured
from, [batch], an estimate of the undisplaced ones.
"""

from collections.abc import Callable
from typing import NamedTuple

from nl_jax._core.require import fraction
from nl_jax.base import Array, State
from nl_jax.estimators.noise.directions import Direction
from nl_jax.estimators.noise.engine.running_mean import nothing_seen
from nl_jax.estimators.noise.engine.step_size import Length, balanced, unit
from nl_jax.estimators.noise.spaces.view import View


class Rate(NamedTuple):
    """How to measure a rate of change, and what it costs in evaluations of the objective."""

    along: Callable[[Direction], tuple[Array, Array]]
    fixed_cost: int
    cost_per_sample: int


class Baseline(NamedTuple):
    """A way to measure rates of change.

    Attributes:
      init: `init() -> state`, the state carried from one estimate to the next.
      rate: `rate(view, sigma, state) -> Rate`.
      update: `update(state, loss) -> state`, given the mean loss of the estimate.
      length: the step length for a default σ; None where there is no step.
    """

    init: Callable[[], State]
    rate: Callable[[View, float | Array, State], Rate]
    update: Callable[[State, Array], State]
    length: Length | None


def none() -> Baseline:
    """Uses no baseline, Ẽ(σ)/σ: exactly the update of seed 000, −η Ẽ Ω.

    Unbiased as σ → 0 like the others, because E is independent of the noise; but its variance grows as (E/σ)², and its
    default σ is therefore large: a step of length 1, biased where the loss is curved.
    """

    def rate(view: View, sigma: float | Array, state: State) -> Rate:
        del state

        def along(direction: Direction) -> tuple[Array, Array]:
            losses = view.displaced(direction, sigma)
            return losses / sigma, losses

        return Rate(along, 0, 1)

    return _stateless(rate, unit)


def clean() -> Baseline:
    """Compares with a clean pass, (Ẽ(σ) − E)/σ: the difference of perturbed and unperturbed error (seed 000)."""

    def rate(view: View, sigma: float | Array, state: State) -> Rate:
        del state
        losses = view.clean()

        def along(direction: Direction) -> tuple[Array, Array]:
            return (view.displaced(direction, sigma) - losses) / sigma, losses

        return Rate(along, view.costs.clean, 1)

    return _stateless(rate, balanced(1))


def antithetic() -> Baseline:
    """Takes the central difference, (Ẽ(σ) − Ẽ(−σ))/2σ, whose error is of second order in σ (SPSA; Spall 1992)."""

    def rate(view: View, sigma: float | Array, state: State) -> Rate:
        del state

        def along(direction: Direction) -> tuple[Array, Array]:
            above, below = view.both_sides(direction, sigma)
            return (above - below) / (2 * sigma), (above + below) / 2

        return Rate(along, 0, 2)

    return _stateless(rate, balanced(2))


def running_mean(decay: float = 0.9) -> Baseline:
    """Compares with the mean loss of past estimates, (Ẽ(σ) − Ē)/σ (Williams 1992, reinforcement baseline).

    Needs no clean pass. Unbiased as σ → 0, because past losses are independent of the present noise. The remaining
    loss, which differs between batches and examples, adds ((E − Ē)/σ)² to the variance. This is far better than no
    baseline, but increasingly worse than the clean one as σ decreases; the default step has length 1, as without one.

    Args:
      decay: weight of the past in the exponential mean, at least 0 and below 1. The mean is corrected for its start;
        the very first estimate has no baseline.
    """
    decay = fraction("decay", decay, or_zero=True)

    def rate(view: View, sigma: float | Array, state: State) -> Rate:
        def along(direction: Direction) -> tuple[Array, Array]:
            losses = view.displaced(direction, sigma)
            return (losses - state.mean.astype(losses.dtype)) / sigma, losses

        return Rate(along, 0, 1)

    return Baseline(nothing_seen, rate, lambda state, loss: state.seen(loss, decay), unit)


def tangent() -> Baseline:
    """Computes the exact directional derivative dẼ/dσ at σ = 0, by forward-mode autodiff; there is no σ to choose."""

    def rate(view: View, sigma: float | Array, state: State) -> Rate:
        del sigma, state
        losses, derivative = view.tangent()
        return Rate(lambda direction: (derivative(direction), losses), view.costs.clean, view.costs.tangent)

    return _stateless(rate, None)


def _stateless(rate: Callable[[View, float | Array, State], Rate], length: Length | None) -> Baseline:
    return Baseline(lambda: (), rate, lambda state, loss: state, length)
