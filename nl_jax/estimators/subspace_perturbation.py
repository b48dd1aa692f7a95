"""Perturbation of weights in a subspace of their inputs: AGZO (Lin et al. 2026), and the estimate of ZO-Muon."""

from jax.sharding import NamedSharding

from nl_jax.base import Array, GradientEstimator, Objective
from nl_jax.estimators import baselines, bases
from nl_jax.estimators.directions import Law, gaussian
from nl_jax.estimators.perturbation import perturbation
from nl_jax.estimators.spaces import subspace

_CLEAN, _GAUSSIAN, _INPUTS = baselines.clean(), gaussian(), bases.inputs()


def subspace_perturbation(
    objective: Objective,
    *,
    basis: bases.Basis = _INPUTS,
    sigma: float | Array | None = None,
    num_samples: int = 1,
    baseline: baselines.Baseline = _CLEAN,
    directions: Law = _GAUSSIAN,
    chunk: int | None = None,
    sharding: NamedSharding | None = None,
) -> GradientEstimator:
    """Estimates the gradient from the losses' response to noise Q G on weights, Q a basis of few columns.

        ∂E/∂W ≈ Q ⟨(Ẽ − E) G⟩ / σ,   G [rank, units] random, E GGᵀ = I

    A weight of `inputs` × `units` has rank × units noisy numbers instead of inputs × units. With the basis of its own
    inputs, the default, nothing of the gradient is lost where the rank is the batch's number of rows, and the
    relative variance is (P' + 1)/num_samples with P' = Σ rank · units + (all other parameters), Gaussian noise: less
    than weight perturbation's in the ratio P'/P. A lower rank has less variance and a bias (see `nl.bases.inputs`).

    Args:
      objective: a per-example objective; for the basis of inputs it must take `propagate`.
      basis: from `nl.bases`: `inputs(rank)` or `random(rank)`.
      sigma: σ, standard deviation of the noise in units of the parameters, above 0; by default what suits their
        dtype, see `nl_jax.estimators.step_size`.
      num_samples: K, independent G averaged; all have the same Q.
      baseline: from `nl.baselines`, as for `weight_perturbation`.
      directions: law of G and of the other parameters' noise, from `nl.directions`.
      chunk: samples evaluated at once; by default what suits the backend. The result does not depend on it.
      sharding: `NamedSharding(mesh, PartitionSpec("samples"))` divides the samples over an axis of a mesh. None for no
        division.

    Returns:
      An estimator with its baseline's state. By inputs it costs K + 2 evaluations (a clean pass, the sketch's local
      products, K displaced passes), 2 K + 2 antithetic; by a random basis K + 1 and 2 K. Its gradient is no list of
      numbers for `nl.seeded`: the basis depends on the batch.

    Raises:
      ValueError: if a setting is out of range, or the basis needs layers and the objective takes no `propagate`.

    >>> import jax, jax.numpy as jnp, nl_jax as nl
    >>> net = nl.mlp([50, 1], activation=nl.activations.tanh(), weight_init=jax.nn.initializers.ones)
    >>> objective = nl.supervised(net.apply, nl.losses.half_squared_error)
    >>> estimator = subspace_perturbation(objective, num_samples=1000)  # of 2 examples: 2 numbers, and the bias
    >>> at = (), net.init(jax.random.key(1)), (jnp.eye(2, 50), jnp.zeros([2, 1]))
    >>> guided = estimator.estimate(jax.random.key(0), *at)[0]
    >>> bool(nl.diagnostics.cosine(guided, nl.backprop(objective).estimate(jax.random.key(0), *at)[0]) > 0.99)
    True
    """
    return perturbation(
        subspace(objective, basis), baseline, directions, sigma=sigma, num_samples=num_samples, chunk=chunk,
        sharding=sharding,
    )  # fmt: skip
