"""The engine of every perturbation estimator: space × direction law × rate of change × sample plan."""

from collections.abc import Callable

import jax.numpy as jnp

from nl_jax.base import Batch, GradientEstimator, Info, Key, Params, State, stateless
from nl_jax.checks import positive_integer, takes, typed_key
from nl_jax.estimators.baselines import Rate
from nl_jax.estimators.directions import Direction
from nl_jax.estimators.sampling import default_chunk, mean_over_samples
from nl_jax.estimators.spaces import Space, View


def perturbation(
    space: Space, rate: Callable[[View], Rate], directions: Direction, *, num_samples: int, chunk: int | None
) -> GradientEstimator:
    """ĝ = mean over K samples of (dE/dξ) ξ, since E (gᵀξ) ξ = g for directions of unit covariance.

    Args:
      space: where to displace, from `nl.spaces`.
      rate: how to measure the losses' rate of change, from `nl.baselines`, with its step size given.
      directions: law of ξ, from `nl.directions`.
      num_samples: K, at least 1.
      chunk: samples evaluated at once, at least 1; None for what suits the backend.

    Raises:
      ValueError: if `num_samples` or `chunk` is not a whole number of at least 1.
    """
    num_samples = positive_integer("num_samples", num_samples)
    if chunk is not None:
        chunk = positive_integer("chunk", chunk)
    takes("directions", directions, 2, "a law (key, template) -> direction, such as nl.directions.gaussian()")

    def estimate(key: Key, state: State, params: Params, batch: Batch) -> tuple[Params, State, Info]:
        typed_key(key)
        view = space(params, batch)
        measure = rate(view)

        def sample(key: Key) -> State:
            direction = directions(key, view.template)
            change, losses = measure.along(direction)
            return view.credit(change, direction), jnp.mean(losses)

        credit, loss = mean_over_samples(sample, key, num_samples, chunk or default_chunk(num_samples, view.template))
        evaluations = view.fixed_cost + measure.fixed_cost + num_samples * measure.cost_per_sample
        return view.gradient(credit), state, Info(loss, jnp.int32(evaluations))

    return GradientEstimator(stateless, estimate)
