"""The engine of every perturbation estimator: space × direction law × baseline × sample plan."""

import jax
import jax.numpy as jnp

from nl_jax.base import Array, Batch, GradientEstimator, Info, Key, LayerCredit, Params, State, without_credit
from nl_jax.checks import positive_integer, positive_number, takes, typed_key
from nl_jax.estimators.baselines import Baseline, Rate
from nl_jax.estimators.directions import Law
from nl_jax.estimators.sampling import default_chunk, stacked, sum_over_samples
from nl_jax.estimators.spaces import Noise, Space, View
from nl_jax.estimators.step_size import step_size


def perturbation(
    space: Space,
    baseline: Baseline,
    directions: Law,
    *,
    sigma: float | None,
    num_samples: int,
    chunk: int | None,
) -> GradientEstimator:
    """ĝ = mean over K samples of (dE/dξ) ξ, since E (gᵀξ) ξ = g for directions of unit covariance.

    Args:
      space: where to displace, from `nl.spaces`.
      baseline: how to measure the losses' rate of change along a direction, from `nl.baselines`.
      directions: law of ξ, from `nl.directions`.
      sigma: σ, step along a direction, above 0; None for what suits the dtype.
      num_samples: K, at least 1.
      chunk: samples evaluated at once, at least 1; None for what suits the backend.

    Raises:
      ValueError: if a setting is not as described.
    """
    if not isinstance(baseline, Baseline):
        raise ValueError(f"baseline must be one of nl.baselines, made by a call such as clean(); got {baseline!r}")
    takes("directions", directions, 3, "a law (key, index, template) -> direction, such as nl.directions.gaussian()")
    sigma = None if sigma is None else positive_number("sigma", sigma)
    if sigma is not None and baseline.length is None:
        raise ValueError(f"sigma must be left out with tangent(), which makes no step; got {sigma}")
    num_samples = positive_integer("num_samples", num_samples)
    chunk = None if chunk is None else positive_integer("chunk", chunk)

    def init(key: Key, params: Params) -> State:
        del key, params
        return baseline.init()

    def judged(view: View, state: State) -> tuple[Rate, Params, Array]:
        """How change was measured, the mean credit, and the mean loss."""
        rate = baseline.rate(view, step_size(sigma, baseline.length, view.dtypes, view.components), state)

        def sample(index: Array) -> State:
            direction = view.draw(index)
            return direction, *rate.along(direction)

        def partial_sum(indices: Array) -> State:
            drawn, change, losses = stacked(sample)(indices)
            return view.credit(change, drawn), jnp.sum(jnp.mean(losses, axis=1))

        direction, _, losses = jax.eval_shape(sample, jnp.int32(0))
        at_once = chunk or default_chunk(num_samples, view.footprint(direction))
        credit, loss = sum_over_samples(partial_sum, num_samples, at_once)
        mean = jax.tree.map(lambda c: c / num_samples, credit)
        return rate, mean, (loss / num_samples).astype(losses.dtype)

    def seen(key: Key, params: Params, batch: Batch) -> View:
        typed_key(key)
        return space(params, batch, Noise(directions, key, num_samples))

    def estimate(key: Key, state: State, params: Params, batch: Batch) -> tuple[Params, State, Info]:
        view = seen(key, params, batch)
        rate, mean, loss = judged(view, state)
        evaluations = view.fixed_cost + rate.fixed_cost + num_samples * rate.cost_per_sample
        return view.gradient(mean), baseline.update(state, loss), Info(loss, jnp.int32(evaluations))

    def credit(key: Key, state: State, params: Params, batch: Batch) -> dict[str, LayerCredit]:
        view = seen(key, params, batch)
        if view.layers is None:
            return without_credit(key, state, params, batch)
        return view.layers(judged(view, state)[1])

    return GradientEstimator(init, estimate, credit)
