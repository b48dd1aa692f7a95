"""Forward gradients (Baydin et al. 2022 in weights; Ren et al. 2022 in activities)."""

from collections.abc import Callable

from jax.sharding import NamedSharding

from nl_jax._core.require import takes
from nl_jax.base import GradientEstimator, Objective
from nl_jax.estimators.noise import baselines
from nl_jax.estimators.noise.directions import Sampler, gaussian
from nl_jax.estimators.noise.engine.perturbation import perturbation
from nl_jax.estimators.noise.spaces import Space, weights

_TANGENT, _GAUSSIAN = baselines.tangent(), gaussian()


def forward_gradient(
    objective: Objective,
    *,
    space: Callable[[Objective], Space] = weights,
    num_samples: int = 1,
    directions: Sampler = _GAUSSIAN,
    chunk: int | None = None,
    sharding: NamedSharding | None = None,
    sum_updates: bool | None = None,
) -> GradientEstimator:
    """Estimates the gradient from exact directional derivatives along random directions.

        ĝ = ⟨(∇E · ξ) ξ⟩

    This is the limit σ → 0 of the perturbation estimators. It is unbiased, with no step size and no rounding error of a
    difference. The objective must have a forward-mode derivative.

    Args:
      objective: a per-example objective; for node space it must take `propagate`.
      space: `nl.spaces.weights` (any JAX function; set its `params_sharding` with `functools.partial`),
        `nl.spaces.nodes` (per-example directions in the pre-activations, with far smaller variance), or
        `nl.spaces.subspace` (set its `basis` with `functools.partial`).
      num_samples: K, the number of independent directions averaged.
      directions: sampler of ξ, from `nl.directions`.
      chunk: samples evaluated at once; by default chosen for the backend. The result does not depend on it.
      sharding: `NamedSharding(mesh, PartitionSpec("samples"))` divides the samples over an axis of a mesh; up to
        rounding, the result does not depend on the devices. None: no division.
      sum_updates: what devices exchange to form a gradient. False: only the K rates of change, and each device adds up
        all K directions. True: each device adds up its own samples' directions, and these sums are summed over devices.
        None: the faster of the two by a rule, see docs/scaling.md. `nl.seeded` forms no gradient and exchanges rates.
        In node space the nodes' credit is always summed.

    Returns:
      An estimator without state: 2 K + 1 evaluations in weight space, K + 2 in node space.

    Raises:
      ValueError: if a setting is out of range, or `space` is `nl.spaces.nodes` and the objective takes no
        `propagate`; when run, if a parameter is not floating-point.

    >>> import jax, jax.numpy as jnp, nl_jax as nl
    >>> estimator = forward_gradient(lambda w, batch: (w * batch) ** 2, directions=nl.directions.rademacher())
    >>> grads, _, _ = estimator.estimate(jax.random.key(0), (), jnp.array([2.0]), jnp.array([3.0]))
    >>> float(grads[0])
    36.0
    """
    if not callable(space):
        raise ValueError(f"space must be nl.spaces.weights or nl.spaces.nodes, got {space!r}")
    takes("space", space, 1, "nl.spaces.weights or nl.spaces.nodes, not called with the objective")
    return perturbation(
        space(objective), _TANGENT, directions, sigma=None, num_samples=num_samples, chunk=chunk, sharding=sharding,
        sum_updates=sum_updates,
    )  # fmt: skip
