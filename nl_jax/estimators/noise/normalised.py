"""A sampled gradient divided by the standard deviation of its rates (FZOO; Dang et al. 2025)."""

import dataclasses

import jax.numpy as jnp

from nl_jax._core.require import sample_function
from nl_jax.base import Array, Batch, GradientEstimator, Info, Key, Params, State
from nl_jax.estimators.noise.engine.sampled_gradient import SampledGradient


def normalised(estimator: GradientEstimator) -> GradientEstimator:
    """Divides an estimate by the standard deviation of its rates: **not calibrated**, independent of the loss's scale.

        ĝ = 1/K Σ_k r_k ξ_k / std(r),   std(r)² = 1/(K − 1) Σ_k (r_k − mean r)²

    For `nl.weight_perturbation` with the clean baseline, r_k = (ℓ_k − ℓ_0)/σ, this is FZOO's step,
    Σ (ℓ_k − ℓ_0) ξ_k / (K std(ℓ)). Its length adapts to the curvature: steps are shorter in steep regions.

    Args:
      estimator: one with a `sample` function, `nl.weight_perturbation` or `nl.forward_gradient` in weights,
        with 2 samples or more.

    Returns:
      An estimator with the state and evaluations of `estimator`. If all rates are equal, for example because rounding
      hides every difference, the estimate is 0.

    Raises:
      ValueError: if the estimator has no `sample` function; when run, if it has one sample.

    >>> import jax, jax.numpy as jnp, nl_jax as nl
    >>> def step(scale):
    ...     objective = lambda w, batch: scale * (batch @ w - 1) ** 2
    ...     fzoo = normalised(nl.weight_perturbation(objective, num_samples=8))
    ...     return fzoo.estimate(jax.random.key(0), (), jnp.zeros(2), jnp.eye(2))[0]
    >>> bool(jnp.allclose(step(1.0), step(100.0), rtol=1e-3))
    True
    """
    own = sample_function(estimator, "only rates have a standard deviation")

    def sample(key: Key, state: State, params: Params, batch: Batch) -> tuple[SampledGradient, State, Info]:
        sampled, state, info = own(key, state, params, batch)
        return dataclasses.replace(sampled, rates=_over_deviation(sampled.rates)), state, info

    def estimate(key: Key, state: State, params: Params, batch: Batch) -> tuple[Params, State, Info]:
        sampled, state, info = sample(key, state, params, batch)
        return sampled.formed(params), state, info

    return GradientEstimator(estimator.init, estimate, sample=sample)


def _over_deviation(rates: Array) -> Array:
    if rates.shape[0] < 2:
        raise ValueError("num_samples must be at least 2: a single rate of change has no standard deviation")
    deviation = jnp.std(jnp.mean(rates, axis=1), ddof=1)
    return jnp.where(deviation > 0, rates / jnp.where(deviation > 0, deviation, 1), 0)
