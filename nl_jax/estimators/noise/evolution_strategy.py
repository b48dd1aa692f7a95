"""Evolution strategies with fitness shaping (Wierstra et al. 2014; Salimans et al. 2017)."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from nl_jax._core.require import positive_hyperparameter, positive_integer, sampler, takes, typed_key
from nl_jax.base import Array, Batch, GradientEstimator, Info, Key, Objective, Params, State, stateless
from nl_jax.estimators.noise.directions import Sampler, Structured, gaussian
from nl_jax.estimators.noise.directions.structured import parts
from nl_jax.estimators.noise.engine.sampled_gradient import SampledGradient
from nl_jax.estimators.noise.engine.shares import Share, require_sharding, shared_out
from nl_jax.estimators.noise.engine.step_size import step_size, unit
from nl_jax.estimators.noise.shaping import Shaping, centred_ranks
from nl_jax.estimators.noise.spaces import Noise
from nl_jax.estimators.noise.spaces.weight_space import WeightView

_GAUSSIAN = gaussian()


def evolution_strategy(
    objective: Objective,
    *,
    sigma: float | Array | None = None,
    num_samples: int = 32,
    antithetic: bool = True,
    shaping: Shaping = centred_ranks,
    directions: Sampler = _GAUSSIAN,
    chunk: int | None = None,
    sharding: NamedSharding | None = None,
    sum_updates: bool | None = None,
    params_sharding: Any = None,
) -> GradientEstimator:
    """Computes a search direction from shaped fitness: **not calibrated**, with the gradient's sign but not its scale.

        ĝ = 1/(K σ) Σ_k u_k ξ_k,   u = shaping(Ẽ_1 … Ẽ_K);   antithetic: u_k = (u_k⁺ − u_k⁻)/2

    All K (or 2 K) mean losses are ranked or standardised together. Outliers and the loss's scale therefore do not
    matter, and the optimizer alone sets the step length. For a calibrated estimate use `weight_perturbation`.

    Directions are drawn twice, once for evaluation and once for the sum: memory grows with K only by one number per
    evaluation.

    Args:
      objective: any per-example objective.
      sigma: σ, standard deviation of the population in units of the parameters, above 0; by default such that the step
        ‖σ ξ‖ has length 1.
      num_samples: K, the number of directions per estimate, at least 2.
      antithetic: whether each direction is evaluated with both signs.
      shaping: from `nl.shaping`, or any function of the losses [n] to utilities [n].
      directions: sampler of ξ, from `nl.directions`.
      chunk: samples evaluated at once; by default chosen for the backend.
      sharding, sum_updates: how samples are divided over devices and what devices exchange, as for
        `weight_perturbation`; losses are gathered so that they can be shaped together.
      params_sharding: how the parameters are sharded over devices, as for `weight_perturbation`.

    Returns:
      An estimator without state: K evaluations, or 2 K antithetic.

    Raises:
      ValueError: if a setting is not as described; when run, if a parameter is not floating-point or σ is too small for
        its dtype.
    """
    sigma = None if sigma is None else positive_hyperparameter("sigma", sigma)
    num_samples = positive_integer("num_samples", num_samples)
    if num_samples < 2:
        raise ValueError("num_samples must be at least 2: a single fitness has no rank among others")
    takes("shaping", shaping, 1, "a function of all losses [n], such as nl.shaping.centred_ranks (not called)")
    sampler("directions", directions)
    chunk = None if chunk is None else positive_integer("chunk", chunk)
    require_sharding(sharding, num_samples, sum_updates)

    def sample(key: Key, state: State, params: Params, batch: Batch) -> tuple[SampledGradient, State, Info]:
        typed_key(key)
        return shared_out(of_share, num_samples, sharding)(key, state, params, batch)

    def of_share(
        share: Share, key: Key, state: State, params: Params, batch: Batch
    ) -> tuple[SampledGradient, State, Info]:
        noise = Noise(directions, key, num_samples)
        view = WeightView(objective, params, batch, noise, params_sharding=params_sharding)
        step = step_size(sigma, unit, view.dtypes, view.components)

        def losses_along(index: Array) -> Array:
            direction = view.draw(index)
            tried = view.both_sides(direction, step) if antithetic else (view.displaced(direction, step),)
            return jnp.mean(jnp.stack(tried), axis=1)

        direction = jax.eval_shape(view.draw, jnp.int32(0))
        if any(xi.of_each_example for xi in parts(direction) if isinstance(xi, Structured)):
            raise ValueError(
                "directions must be shared by the batch, for its mean loss is one fitness; of nl.directions, flipout() "
                "gives every example its own: take another sampler, or weight_perturbation"
            )
        at_once = min(chunk or view.chunk, len(share.indices))
        fitness = share.gathered(jax.lax.map(losses_along, share.indices, batch_size=at_once))
        utilities = shaping(fitness.reshape(-1))
        if utilities.shape != (fitness.size,):
            raise ValueError(
                f"shaping must return one utility per loss, shape {(fitness.size,)}, got {utilities.shape}"
            )
        utilities = utilities.reshape(fitness.shape)
        rates = (utilities[:, 0] - utilities[:, 1]) / 2 if antithetic else utilities[:, 0]
        sampled = SampledGradient(key, jnp.expand_dims(rates / step, 1), view.directions)
        return sampled, state, Info(jnp.mean(fitness), jnp.int32(fitness.size))

    def estimate(key: Key, state: State, params: Params, batch: Batch) -> tuple[Params, State, Info]:
        sampled, state, info = sample(key, state, params, batch)
        return sampled.formed(params, sharding, sum_updates), state, info

    return GradientEstimator(stateless, estimate, sample=sample)
