"""The engine of every perturbation estimator: space × direction sampler × baseline × sample plan."""

from typing import Any

import jax.numpy as jnp
from jax.sharding import NamedSharding

from nl_jax._core.require import positive_hyperparameter, positive_integer, sampler, takes, typed_key
from nl_jax.base import Array, Batch, GradientEstimator, Info, Key, LayerCredit, Params, State
from nl_jax.estimators.noise.baselines import Baseline
from nl_jax.estimators.noise.directions import Sampler
from nl_jax.estimators.noise.engine.sampled_gradient import SampledGradient
from nl_jax.estimators.noise.engine.shares import Share, alone, require_sharding, shared_out
from nl_jax.estimators.noise.engine.step_size import step_size
from nl_jax.estimators.noise.spaces import Noise, Space, View
from nl_jax.estimators.noise.spaces.view import Measure


def perturbation(
    space: Space,
    baseline: Baseline,
    directions: Sampler,
    *,
    sigma: float | Array | None = None,
    num_samples: int = 1,
    chunk: int | None = None,
    sharding: NamedSharding | None = None,
    sum_updates: bool | None = None,
) -> GradientEstimator:
    """Estimates the gradient in any space, by any baseline and directions: all perturbation estimators are such.

        ĝ = ⟨(dE/dξ) ξ⟩ over K samples, since E (gᵀξ) ξ = g for directions of unit covariance

    Args:
      space: where to displace: `nl.spaces.weights(objective)`, `nl.spaces.nodes(objective)`, or your own
        `space(params, batch, noise) -> nl.spaces.View`.
      baseline: how to measure the losses' rate of change along a direction, from `nl.baselines`.
      directions: sampler of ξ, from `nl.directions`.
      sigma: σ, the step along a direction, above 0; None: chosen for the dtype.
      num_samples: K, the number of independent directions averaged, at least 1.
      chunk: samples evaluated at once, at least 1; None: chosen for the backend.
      sharding: how samples are divided over devices: see `nl.weight_perturbation`.
      sum_updates: what devices exchange to form a gradient in weight space: see `nl.weight_perturbation`.

    Returns:
      An estimator with its baseline's state.

    Raises:
      ValueError: if a setting is not as described.

    >>> import jax, jax.numpy as jnp, nl_jax as nl
    >>> objective = lambda w, batch: (batch @ w) ** 2
    >>> spsa = perturbation(nl.spaces.weights(objective), nl.baselines.antithetic(), nl.directions.rademacher())
    >>> int(spsa.estimate(jax.random.key(0), (), jnp.ones(2), jnp.eye(2))[2].evaluations)
    2
    """
    takes("space", space, 3, "nl.spaces.weights(objective), called with the objective")
    if not isinstance(baseline, Baseline):
        raise ValueError(f"baseline must be one of nl.baselines, made by a call such as clean(); got {baseline!r}")
    sampler("directions", directions)
    sigma = None if sigma is None else positive_hyperparameter("sigma", sigma)
    if sigma is not None and baseline.length is None:
        raise ValueError(f"sigma must be left out with tangent(), which makes no step; got {sigma}")
    num_samples = positive_integer("num_samples", num_samples)
    chunk = None if chunk is None else positive_integer("chunk", chunk)
    require_sharding(sharding, num_samples, sum_updates)

    def init(key: Key, params: Params) -> State:
        del key, params
        return baseline.init()

    def measured(key: Key, state: State, params: Params, batch: Batch) -> tuple[View, Measure, int]:
        typed_key(key)
        view = space(params, batch, Noise(directions, key, num_samples))
        rate = baseline.rate(view, step_size(sigma, baseline.length, view.dtypes, view.components), state)
        return view, rate.along, view.costs.fixed + rate.fixed_cost + num_samples * rate.cost_per_sample

    def found(key: Key, state: State, params: Params, batch: Batch) -> tuple[Any, State, Info]:
        """Returns a gradient: that of layers, or that of weights as rates along directions."""

        def of_share(share: Share, key: Key, state: State, params: Params, batch: Batch) -> tuple[Any, Array, Array]:
            view, measure, evaluations = measured(key, state, params, batch)
            judged, loss = view.judged(measure, chunk, share)
            return view.gradient(judged), loss, jnp.int32(evaluations)

        gradient, loss, evaluations = shared_out(of_share, num_samples, sharding)(key, state, params, batch)
        return gradient, baseline.update(state, loss), Info(loss, evaluations)

    def estimate(key: Key, state: State, params: Params, batch: Batch) -> tuple[Params, State, Info]:
        gradient, state, info = found(key, state, params, batch)
        sampled = isinstance(gradient, SampledGradient)
        return gradient.formed(params, sharding, sum_updates) if sampled else gradient, state, info

    def sample(key: Key, state: State, params: Params, batch: Batch) -> tuple[SampledGradient, State, Info]:
        gradient, state, info = found(key, state, params, batch)
        if not isinstance(gradient, SampledGradient):
            raise ValueError(
                "the gradient of noise in nodes, or in a subspace of the batch's inputs, cannot be stored as rates, "
                "because its directions depend on more than the key. Use weight_perturbation, "
                "forward_gradient(space=nl.spaces.weights) or evolution_strategy"
            )
        return gradient, state, info

    def credit(key: Key, state: State, params: Params, batch: Batch) -> dict[str, LayerCredit]:
        view, measure, _ = measured(key, state, params, batch)
        return view.credit(view.judged(measure, chunk, alone(num_samples))[0])

    return GradientEstimator(init, estimate, credit, sample)
