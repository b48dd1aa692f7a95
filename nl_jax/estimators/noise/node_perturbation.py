"""Node perturbation (seed 000; Williams 1992)."""

from jax.sharding import NamedSharding

from nl_jax._core.require import layered
from nl_jax.base import Array, GradientEstimator, Objective
from nl_jax.estimators.noise import baselines
from nl_jax.estimators.noise.directions import Sampler, gaussian
from nl_jax.estimators.noise.engine.perturbation import perturbation
from nl_jax.estimators.noise.spaces import Credit, nodes

_CLEAN, _GAUSSIAN = baselines.clean(), gaussian()


def node_perturbation(
    objective: Objective,
    *,
    sigma: float | Array | None = None,
    num_samples: int = 1,
    baseline: baselines.Baseline = _CLEAN,
    credit: Credit | None = None,
    directions: Sampler = _GAUSSIAN,
    chunk: int | None = None,
    sharding: NamedSharding | None = None,
) -> GradientEstimator:
    """Estimates the gradient from the losses' response to noise γ on every pre-activation (seed 000).

        ∂E/∂ν^l ≈ ⟨(Ẽ − E) γ^l⟩ / σ²,   ∂E/∂W^l = (∂E/∂ν^l) x^{l−1},   γ = σ ξ

    Noise is independent for every example, layer and sample. Needs the network's layers, but no derivative of
    activations or loss. Unbiased as σ → 0.

    Args:
      objective: a per-example objective that takes `propagate`.
      sigma: σ, standard deviation of the noise in units of the pre-activations, above 0; by default chosen for their
        dtype, see `nl_jax.estimators.noise.engine.step_size`.
      num_samples: K, the number of independent directions averaged.
      baseline: from `nl.baselines`, as for `weight_perturbation`.
      credit: `nl.spaces.per_example_credit()`, the default, or `per_batch_credit()` for objectives whose examples
        interact.
      directions: sampler of ξ, from `nl.directions`.
      chunk: samples evaluated at once; by default chosen for the backend. The result does not depend on it.
      sharding: `NamedSharding(mesh, PartitionSpec("samples"))` divides the samples over an axis of a mesh; up to
        rounding, the result does not depend on the devices. The credit of all nodes, [batch, units] of every layer, is
        summed over devices. None: no division.

    Returns:
      An estimator with its baseline's state: K + 2 evaluations (one clean pass, K perturbed ones, a local gradient),
      2 K + 2 antithetic.

    Raises:
      ValueError: if a setting is out of range or the objective takes no `propagate`; when run, if layers share a name,
        if a layer's first axis is not the batch, or if credit is per example and noise reaches a layer that mixes
        examples.

    >>> import jax, jax.numpy as jnp, nl_jax as nl
    >>> net = nl.mlp([2, 1], activation=nl.activations.tanh(), weight_init=jax.nn.initializers.ones)
    >>> objective = nl.supervised(net.apply, nl.losses.half_squared_error)
    >>> estimator = node_perturbation(objective, num_samples=1000)
    >>> batch = jnp.ones([4, 2]), jnp.zeros([4, 1])
    >>> grads, _, info = estimator.estimate(jax.random.key(0), (), net.init(jax.random.key(1)), batch)
    >>> round(float(grads["output"]["bias"][0])), int(info.evaluations)
    (2, 1002)
    """
    layered("node_perturbation", objective)
    if not (credit is None or isinstance(credit, Credit)):
        raise ValueError(
            f"credit must be nl.spaces.per_example_credit() or nl.spaces.per_batch_credit(), got {credit!r}"
        )
    return perturbation(
        nodes(objective, credit), baseline, directions, sigma=sigma, num_samples=num_samples, chunk=chunk,
        sharding=sharding,
    )  # fmt: skip
