"""Learning in place by a gradient that is a list of numbers: the memory of inference (Malladi et al. 2023)."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nl_jax.base import Array, Batch, GradientEstimator, Info, Key, Learner, LearnerState, Params
from nl_jax.checks import nonzero_number, typed_key

Schedule = Callable[[Array], Array]
"""`schedule(step) -> learning rate`, as optax has them."""


class Update(NamedTuple):
    """What a step changed the parameters by: scale · 1/K Σ_k rate_k ξ_k, all that a training log keeps of it.

    Attributes:
      key: the data of the step's key, uint32; the directions ξ are drawn from it.
      scale: minus the learning rate, a float32 scalar.
      rates: the losses' rates of change along the directions, [K, 1], or [K, batch] where every example has its own.
    """

    key: Array
    scale: Array
    rates: Array


def seeded(estimator: GradientEstimator, learning_rate: float | Schedule) -> Learner:
    """Joins a weight-space estimator and gradient descent so that no gradient is formed.

        W ← W − η/K Σ_k r_k ξ_k

    The directions ξ_k are drawn again, a block at a time, and added to the parameters in place. Beside the parameters a
    step holds what a forward pass does. `info.update` is the step's `Update`, a few numbers that `nl.TrainingLog` keeps
    and `nl.replay` repeats. For other optimizers use `nl.learner`, which forms the gradient.

    Args:
      estimator: one whose gradient is a list of numbers: `nl.weight_perturbation`, `nl.evolution_strategy`, or
        `nl.forward_gradient` in weights.
      learning_rate: η, a number other than 0 or an optax schedule.

    Returns:
      A `Learner`. Donate the state when you jit its step (`donate_argnums`), and to `nl.fit` by `donate=True`, or the
      parameters are copied.

    Raises:
      ValueError: if the estimator forms its gradient otherwise, or the learning rate is 0 or not finite.

    >>> import jax, jax.numpy as jnp, nl_jax as nl
    >>> objective = lambda w, batch: (batch @ w - 1) ** 2
    >>> learner = seeded(nl.weight_perturbation(objective, num_samples=4), 0.05)
    >>> state = learner.init(jax.random.key(0), jnp.zeros(2))
    >>> for t in range(100):
    ...     state, info = learner.step(jax.random.key(t), state, jnp.eye(2))
    >>> bool(info.loss < 0.01), info.update.rates.shape
    (True, (4, 1))
    """
    if not isinstance(estimator, GradientEstimator) or estimator.sample is None:
        raise ValueError(
            "estimator must be one whose gradient is a list of numbers, such as nl.weight_perturbation, "
            f"nl.evolution_strategy or nl.forward_gradient in weights; got {estimator!r}. For all others use nl.learner"
        )
    sample = estimator.sample
    rate = learning_rate if callable(learning_rate) else nonzero_number("learning_rate", learning_rate)

    def init(key: Key, params: Params) -> LearnerState:
        typed_key(key)
        return LearnerState(params, estimator.init(key, params), (), jnp.int32(0))

    def step(key: Key, state: LearnerState, batch: Batch) -> tuple[LearnerState, Info]:
        typed_key(key)
        sampled, estimator_state, info = sample(key, state.estimator, state.params, batch)
        scale = jnp.asarray(-(rate(state.step) if callable(rate) else rate), jnp.float32)
        # XLA would multiply the constants in the rates and the scale with each other; a replay has their values alone.
        rates, scale = jax.lax.optimization_barrier((sampled.rates, scale))
        params = dataclasses.replace(sampled, rates=rates).added(state.params, scale)
        update = Update(jax.random.key_data(key), scale, rates)
        return LearnerState(params, estimator_state, (), state.step + 1), info._replace(update=update)

    return Learner(init, step)
