"""Perturbation of weights in a subspace of their inputs: AGZO (Lin et al. 2026), and the estimate of ZO-Muon."""

from jax.sharding import NamedSharding

from nl_jax.base import Array, GradientEstimator, Objective
from nl_jax.estimators.noise import baselines
from nl_jax.estimators.noise.directions import Sampler, gaussian
from nl_jax.estimators.noise.engine.perturbation import perturbation
from nl_jax.estimators.noise.spaces import bases, subspace

_CLEAN, _GAUSSIAN, _INPUTS = baselines.clean(), gaussian(), bases.inputs()


def subspace_perturbation(
    objective: Objective,
    *,
    basis: bases.Basis = _INPUTS,
    sigma: float | Array | None = None,
    num_samples: int = 1,
    baseline: baselines.Baseline = _CLEAN,
    directions: Sampler = _GAUSSIAN,
    chunk: int | None = None,
    sharding: NamedSharding | None = None,
) -> GradientEstimator:
    """Estimates the gradient from the losses' response to noise Q G on weights, Q a basis of few columns.

        ∂E/∂W ≈ Q ⟨(Ẽ − E) G⟩ / σ,   G [rank, units] random, E GGᵀ = I

    A weight [inputs, units] is perturbed by rank × units random numbers instead of inputs × units. The default basis
    spans the weight's own inputs. If its rank is the batch's number of rows, no part of the gradient is lost, and the
    relative variance with Gaussian noise is (P' + 1)/num_samples with P' = Σ rank · units + (all other parameters):
    P'/P times that of weight perturbation. A lower rank has less variance, but a bias (see `nl.bases.inputs`).

    Args:
      objective: a per-example objective; for the basis of inputs it must take `propagate`.
      basis: from `nl.bases`: `inputs(rank)` or `random(rank)`.
      sigma: σ, standard deviation of the noise in units of the parameters, above 0; by default chosen for their dtype,
        see `nl_jax.estimators.noise.engine.step_size`.
      num_samples: K, the number of independent G averaged; all share the same Q.
      baseline: from `nl.baselines`, as for `weight_perturbation`.
      directions: sampler of G and of the other parameters' noise, from `nl.directions`.
      chunk: samples evaluated at once; by default chosen for the backend. The result does not depend on it.
      sharding: `NamedSharding(mesh, PartitionSpec("samples"))` divides the samples over an axis of a mesh. None: no
        division.

    Returns:
      An estimator with its baseline's state. With `inputs` it costs K + 2 evaluations (a clean pass, the sketch's local
      products, K displaced passes), 2 K + 2 antithetic; with `random`, K + 1 and 2 K. `nl.seeded` cannot use it: the
      basis depends on the batch, so that the gradient cannot be drawn again from the key.

    Raises:
      ValueError: if a setting is out of range, or the basis needs layers and the objective takes no `propagate`.

    >>> import jax, jax.numpy as jnp, nl_jax as nl
    >>> net = nl.mlp([50, 1], activation=nl.activations.tanh(), weight_init=jax.nn.initializers.ones)
    >>> objective = nl.supervised(net.apply, nl.losses.half_squared_error)
    >>> estimator = subspace_perturbation(objective, num_samples=1000)  # of 2 examples: 2 numbers, and the bias
    >>> at = (), net.init(jax.random.key(1)), (jnp.eye(2, 50), jnp.zeros([2, 1]))
    >>> guided = jax.jit(estimator.estimate)(jax.random.key(0), *at)[0]
    >>> bool(nl.diagnostics.cosine(guided, nl.backprop(objective).estimate(jax.random.key(0), *at)[0]) > 0.99)
    True
    """
    return perturbation(
        subspace(objective, basis), baseline, directions, sigma=sigma, num_samples=num_samples, chunk=chunk,
        sharding=sharding,
    )  # fmt: skip
