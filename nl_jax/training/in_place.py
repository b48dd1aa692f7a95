"""In-place updates by a gradient given as a list of rates, with the memory of inference (Malladi et al. 2023)."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nl_jax._core.require import fraction, nonzero_hyperparameter, positive_integer, sample_function, typed_key
from nl_jax.base import Array, Batch, GradientEstimator, Info, Key, Learner, LearnerState, Params
from nl_jax.estimators.noise.engine.sampled_gradient import SampledGradient

Schedule = Callable[[Array], Array]
"""`schedule(step) -> learning rate`, as in optax."""


class Update(NamedTuple):
    """The parameter change of one step, scale · 1/K Σ_k rate_k ξ_k; a training log keeps nothing else of the step.

    With momentum, the gradients of the steps before it are added as well.

    Attributes:
      key: the data of the step's key, uint32; the directions ξ are drawn from it.
      scale: minus the learning rate, a float32 scalar.
      rates: the losses' rates of change along the directions, [K, 1], or [K, batch] where every example has its own.
      momentum: c_0 … c_H, float32; factors of the scale for this step's gradient and those before it. c_0 = 1.
    """

    key: Array
    scale: Array
    rates: Array
    momentum: Array


class Past(NamedTuple):
    """The last H gradients as lists of numbers, the newest first: keys, uint32 [H, words], and rates [H, K, …]."""

    keys: Array
    rates: Array


def seeded(
    estimator: GradientEstimator,
    learning_rate: float | Schedule,
    *,
    momentum: float = 0.0,
    window: int = 8,
    example: Batch | None = None,
) -> Learner:
    """Joins a weight-space estimator and gradient descent without forming the gradient.

        W ← W − η/K Σ_k r_k ξ_k

    The directions ξ_k are drawn again, one block at a time, and added to the parameters in place. In addition to the
    parameters, a step needs the memory of a forward pass. `info.update` is the step's `Update`: a few numbers that
    `nl.TrainingLog` keeps and `nl.replay` repeats. For other optimizers use `nl.learner`, which forms the gradient.

    With momentum μ the last H gradients ĝ are kept as lists of numbers, and their directions are also drawn again:

        W ← W − η (Σ_{i<H} μ^i ĝ_{t−i} + μ^H/(1 − μ) ĝ_{t−H})

    For H steps this is heavy-ball momentum, W ← W − η m_t, m_t = μ m_{t−1} + ĝ_t (Polyak 1964). After H steps, the
    remaining effect of a gradient is applied at once. In total a gradient moves the parameters by 1/(1 − μ) times
    itself, as in heavy-ball momentum. A step draws the directions of H + 1 gradients.

    Args:
      estimator: one with a `sample` function: `nl.weight_perturbation`, `nl.evolution_strategy`, or
        `nl.forward_gradient` in weights.
      learning_rate: η, a number other than 0 or an optax schedule. `nl.sweep` can try many numbers.
      momentum: μ, at least 0 and below 1; 0 for none.
      window: H, at least 1. Without momentum no gradients are kept.
      example: with momentum, a batch or its shapes, which determine the number of rates.

    Returns:
      A `Learner`. Donate the state when you jit its step (`donate_argnums`), and pass `donate=True` to `nl.fit`;
      otherwise the parameters are copied.

    Raises:
      ValueError: if the estimator has no `sample` function, or the learning rate is 0 or not finite; when run, if with
        momentum the keys of `init` and `step` are of different generators.

    >>> import jax, jax.numpy as jnp, nl_jax as nl
    >>> objective = lambda w, batch: (batch @ w - 1) ** 2
    >>> learner = seeded(nl.weight_perturbation(objective, num_samples=4), 0.05)
    >>> state, step = learner.init(jax.random.key(0), jnp.zeros(2)), jax.jit(learner.step)
    >>> for t in range(100):
    ...     state, info = step(jax.random.key(t), state, jnp.eye(2))
    >>> bool(info.loss < 0.01), info.update.rates.shape
    (True, (4, 1))
    """
    sample = sample_function(estimator, "for all others use nl.learner")
    coefficients = coefficients_of(momentum, window)
    if momentum and example is None:
        raise ValueError("momentum needs example=, a batch or its shapes: past gradients are stored as rates")
    rate = learning_rate if callable(learning_rate) else nonzero_hyperparameter("learning_rate", learning_rate)

    def init(key: Key, params: Params) -> LearnerState:
        typed_key(key)
        own = estimator.init(key, params)
        if not momentum:
            return LearnerState(params, own, (), jnp.int32(0))
        sampled, _, _ = jax.eval_shape(sample, key, own, params, example)
        return LearnerState(params, own, nothing_yet(jax.random.key_data(key), sampled.rates, window), jnp.int32(0))

    def step(key: Key, state: LearnerState, batch: Batch) -> tuple[LearnerState, Info]:
        typed_key(key)
        if momentum and state.optimizer.keys.shape[1:] != jax.random.key_data(key).shape:
            raise ValueError(
                f"key is of {jax.random.key_impl(key)}, but init was given a key of another generator, and momentum "
                "keeps past keys: make both by the same"
            )
        sampled, estimator_state, info = sample(key, state.estimator, state.params, batch)
        scale = jnp.asarray(-(rate(state.step) if callable(rate) else rate), jnp.float32)
        # Without the barrier XLA would merge constants of the rates and the scale; a replay only has their values.
        rates, scale = jax.lax.optimization_barrier((sampled.rates, scale))
        update = Update(jax.random.key_data(key), scale, rates, jnp.array(coefficients, jnp.float32))
        params, past = advanced(sampled, state.params, state.optimizer, update)
        return LearnerState(params, estimator_state, past, state.step + 1), info._replace(update=update)

    return Learner(init, step)


def advanced(
    like: SampledGradient, params: Params, past: Past | tuple[()], update: Update
) -> tuple[Params, Past | tuple[()]]:
    """Returns the parameters after an update and the past for the next; `like` has its directions and key type."""

    def of(key: Array, rates: Array) -> SampledGradient:
        return dataclasses.replace(like, key=jax.random.wrap_key_data(key, impl=generator), rates=rates)

    generator = jax.random.key_impl(like.key)
    if not isinstance(past, Past):
        return of(update.key, update.rates).added(params, update.scale), past
    keys, rates = (
        jnp.concatenate([jnp.expand_dims(new, 0), old])
        for new, old in zip((update.key, update.rates), past, strict=True)
    )

    def add(params: Params, one: tuple[Array, Array, Array]) -> tuple[Params, None]:
        key, rates, scale = one
        return of(key, rates).added(params, scale), None

    params, _ = jax.lax.scan(add, params, (keys, rates, update.scale * update.momentum))
    return params, Past(keys[:-1], rates[:-1])


def nothing_yet(key: Any, rates: Any, window: int) -> Past:
    """Returns the past of the first step: gradients of 0, with the shapes and dtypes of a key's data and the rates."""
    keys, none = (jnp.zeros((window, *part.shape), part.dtype) for part in (key, rates))
    return Past(keys, none)


def coefficients_of(momentum: float, window: int) -> list[float]:
    """Returns c_0 … c_H of `Update`; only 1 without momentum."""
    momentum = fraction("momentum", momentum, or_zero=True)
    window = positive_integer("window", window)
    return [*(momentum**i for i in range(window)), momentum**window / (1 - momentum)] if momentum else [1.0]
