"""Unbiased online recurrent optimisation (Tallec & Ollivier 2018)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from nl_jax._core.require import positive_integer
from nl_jax.base import Array, GradientEstimator, Key, Objective
from nl_jax.estimators.online.forward_credit import (
    Derivative,
    Influence,
    Pull,
    Push,
    Run,
    by_influence,
    online_estimator,
)
from nl_jax.propagation.loops import Leaves


class RankOne(NamedTuple):
    """J ≈ h̃ θ̃ᵀ, by sample: lists of arrays like the state and like θ, samples first."""

    state: Leaves
    theta: Leaves


def uoro(objective: Objective, *, num_samples: int = 1, loop: str = "time") -> GradientEstimator:
    """Approximates `rtrl` by an unbiased influence matrix of rank one, J_t ≈ h̃_t θ̃_tᵀ (Tallec & Ollivier 2018).

        h̃ ← ρ_0 ∂h_t/∂h_{t−1} h̃ + ρ_1 ν,    θ̃ ← θ̃/ρ_0 + νᵀ ∂h_t/∂θ / ρ_1                         (their eq. 13–14)

    ν are independent signs, one for each component of the state. ρ_0 and ρ_1 are the square roots of ratios of norms
    that minimise the variance (their eq. 15–16). E h̃ θ̃ᵀ = J, so that the estimate is the gradient on average.

    Every example has its own products, except where a layer mixes examples: there one product stands for the whole
    batch, and its variance grows with the batch as well as with time. Outside layers, no example may act on another.
    Samples are averaged.

    Args:
      objective: a per-example objective that takes `propagate`, whose program has an `nl.scan` of this name.
      num_samples: K, the number of products averaged, at least 1.
      loop: the loop's name.

    Returns:
      An estimator without state, unbiased. It needs the memory of two vectors for each sample and example, like θ and
      like the state, whatever the number of steps, and 4 + 4 K evaluations.

    Raises:
      ValueError: if the objective takes no `propagate` or `num_samples` is not as described; when run, if the key is
        not typed or the program has no loop of this name.
    """
    num_samples = positive_integer("num_samples", num_samples)

    def derivative(key: Key) -> Derivative:
        return by_influence(lambda run: rank_one(run, key, num_samples))

    return online_estimator("uoro", objective, loop, derivative, lambda params: 4 + 4 * num_samples)


def rank_one(run: Run, key: Key, num_samples: int) -> Influence:
    """Carries K products of two vectors."""

    def one(J: RankOne, signs: Leaves, push: Push, pull: Pull) -> RankOne:
        along, fed = push(J.state), pull(signs)[0]
        rho_0, rho_1 = _balance(J.theta, along), _balance(fed, signs)
        state = [rho_0 * a + rho_1 * nu for a, nu in zip(along, signs, strict=True)]
        return RankOne(state, [past / rho_0 + new / rho_1 for past, new in zip(J.theta, fed, strict=True)])

    def move(J: RankOne, t: Array, push: Push, pull: Pull) -> RankOne:
        own = jax.random.fold_in(key, t)

        def sample(J: RankOne, k: Array) -> RankOne:
            keys = jax.random.split(jax.random.fold_in(own, k), len(run.start))
            signs = [jax.random.rademacher(k, h.shape, h.dtype) for k, h in zip(keys, run.start, strict=True)]
            return one(J, signs, push, pull)

        return jax.vmap(sample)(J, jnp.arange(num_samples, dtype=jnp.int32))

    def spend(J: RankOne, c: Leaves) -> Leaves:
        worth = jax.vmap(lambda h: optax.tree.vdot(c, h))(J.state) / num_samples
        return [jnp.tensordot(worth.astype(leaf.dtype), leaf, axes=1) for leaf in J.theta]

    begin = jax.tree.map(lambda leaf: jnp.zeros((num_samples, *leaf.shape), leaf.dtype), RankOne(run.start, run.theta))
    return Influence(begin, move, spend)


def _balance(theta: Leaves, state: Leaves) -> Array:
    """Computes √(‖θ̃‖/‖h̃‖), which gives both factors the same norm; 1 where either is zero."""
    ours, theirs = optax.tree.norm(theta), optax.tree.norm(state)
    known = (ours > 0) & (theirs > 0)
    return jnp.where(known, jnp.sqrt(jnp.where(known, ours, 1) / jnp.where(known, theirs, 1)), 1)
