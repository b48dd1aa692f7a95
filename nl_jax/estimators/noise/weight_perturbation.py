"""Weight perturbation (seed 000; Jabri & Flower 1992)."""

from typing import Any

from jax.sharding import NamedSharding

from nl_jax.base import Array, GradientEstimator, Objective
from nl_jax.estimators.noise import baselines
from nl_jax.estimators.noise.directions import Sampler, gaussian
from nl_jax.estimators.noise.engine.perturbation import perturbation
from nl_jax.estimators.noise.spaces import weights

_CLEAN, _GAUSSIAN = baselines.clean(), gaussian()


def weight_perturbation(
    objective: Objective,
    *,
    sigma: float | Array | None = None,
    num_samples: int = 1,
    baseline: baselines.Baseline = _CLEAN,
    directions: Sampler = _GAUSSIAN,
    chunk: int | None = None,
    sharding: NamedSharding | None = None,
    sum_updates: bool | None = None,
    params_sharding: Any = None,
) -> GradientEstimator:
    """Estimates the gradient from the losses' response to noise Ω on every parameter (seed 000).

        ∂E/∂W ≈ ⟨(Ẽ − E) Ω⟩ / σ²,   Ω = σ ξ

    Needs no derivative and no layers: any JAX function works. Unbiased as σ → 0, with relative variance
    (P + 1)/num_samples for P parameters and Gaussian noise (`clean` and `antithetic` baselines).

    Args:
      objective: any per-example objective.
      sigma: σ, standard deviation of the noise in units of the parameters, above 0; by default chosen for their dtype,
        see `nl_jax.estimators.noise.engine.step_size`.
      num_samples: K, the number of independent directions averaged.
      baseline: from `nl.baselines`, such as `none()` (Ẽ Ω/σ², the seed's update), `clean()` (Ẽ − E) or `antithetic()`
        (two-sided, SPSA).
      directions: sampler of ξ, from `nl.directions`.
      chunk: samples evaluated at once; by default chosen for the backend. The result does not depend on it.
      sharding: `NamedSharding(mesh, PartitionSpec("samples"))` divides the samples over an axis of a mesh; up to
        rounding, the result does not depend on the devices. None: no division.
      sum_updates: what devices exchange to form a gradient. False: only the K rates of change, and each device adds up
        all K directions. True: each device adds up its own samples' directions, and these sums are summed over devices.
        None: the faster of the two by a rule, see docs/scaling.md. `nl.seeded` forms no gradient and exchanges rates.
      params_sharding: how the parameters are sharded over devices, a tree like them, so that noise is drawn where they
        are: see `nl.spaces.weights`. None if they are not sharded, or are sharded over a mesh with explicit axes.

    Returns:
      An estimator with its baseline's state: K evaluations without baseline, K + 1 with the clean one, 2 K antithetic.

    Raises:
      ValueError: if a setting is out of range; when run, if a parameter is not floating-point.

    >>> import jax, jax.numpy as jnp, nl_jax as nl
    >>> objective = lambda w, batch: (w @ batch) ** 2
    >>> estimator = weight_perturbation(objective, num_samples=1000, directions=nl.directions.rademacher())
    >>> grads, _, info = estimator.estimate(jax.random.key(0), (), jnp.ones(2), jnp.ones([2, 1]))
    >>> [round(float(g)) for g in grads], int(info.evaluations)
    ([4, 4], 1001)
    """
    return perturbation(
        weights(objective, params_sharding=params_sharding), baseline, directions, sigma=sigma, num_samples=num_samples,
        chunk=chunk, sharding=sharding, sum_updates=sum_updates,
    )  # fmt: skip
