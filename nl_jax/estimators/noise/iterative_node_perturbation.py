"""Node perturbation of one layer at a time (Dalm et al. 2023)."""

from jax.sharding import NamedSharding

from nl_jax._core.require import positive_integer
from nl_jax.base import Array, Batch, GradientEstimator, Info, Key, LayerCredit, Objective, Params, State
from nl_jax.estimators.noise import baselines
from nl_jax.estimators.noise.directions import Sampler, layerwise, sphere
from nl_jax.estimators.noise.node_perturbation import node_perturbation
from nl_jax.estimators.noise.spaces import Credit
from nl_jax.estimators.noise.spaces.node_space import layers_at_once

_CLEAN, _SPHERE = baselines.clean(), sphere()


def iterative_node_perturbation(
    objective: Objective,
    *,
    sigma: float | Array | None = None,
    num_samples: int = 1,
    baseline: baselines.Baseline = _CLEAN,
    credit: Credit | None = None,
    directions: Sampler = _SPHERE,
    chunk: int | None = None,
    sharding: NamedSharding | None = None,
) -> GradientEstimator:
    """Estimates the gradient layer by layer: each pass perturbs the pre-activations of one layer only.

        ∂E/∂ν^l ≈ N_l ⟨(Ẽ − E) γ^l⟩ / ‖γ^l‖²,   ∂E/∂W^l = (∂E/∂ν^l) x^{l−1}

    This is iterative node perturbation, INP (Dalm et al. 2023). (Ẽ − E)/‖γ^l‖ is the loss's directional derivative
    along layer l's noise; the factor N_l, the layer's number of units, calibrates its mean. Noise in other layers does
    not disturb the measurement: with signs or noise of fixed length, the estimate for a layer has the relative variance
    (N_l − 1)/K. It is `node_perturbation` with the directions `nl.directions.layerwise(directions)` and L passes for
    each of the K samples. Unbiased as σ → 0.

    In a loop (`nl.scan`), each pass perturbs one layer at each step of the loop, and at the same time one of the layers
    outside it.

    Args:
      objective: a per-example objective that takes `propagate`.
      sigma: σ, standard deviation of the noise in units of the pre-activations, averaged over all layers, above 0: the
        perturbed layer gets √L σ. By default chosen for their dtype, see `nl_jax.estimators.noise.engine.step_size`.
      num_samples: K, the number of independent directions averaged for each layer.
      baseline: from `nl.baselines`, as for `node_perturbation`.
      credit: as for `node_perturbation`.
      directions: sampler of a layer's noise, from `nl.directions`. The default is `sphere()`, noise of length √N_l, for
        which the equation above is exact.
      chunk: passes evaluated at once; by default chosen for the backend. The result does not depend on it.
      sharding: as for `node_perturbation`; K L, the number of passes, must be a multiple of the number of devices.

    Returns:
      An estimator with its baseline's state: K L + 2 evaluations for L layers with parameters (one clean pass, K L
      perturbed ones, a local gradient), 2 K L + 2 antithetic.

    Raises:
      ValueError: as for `node_perturbation`.

    >>> import jax, jax.numpy as jnp, nl_jax as nl
    >>> net = nl.mlp([2, 3, 1], activation=nl.activations.tanh())
    >>> objective = nl.supervised(net.apply, nl.losses.half_squared_error)
    >>> estimator = iterative_node_perturbation(objective, num_samples=10)
    >>> batch = jnp.ones([4, 2]), jnp.zeros([4, 1])
    >>> grads, _, info = jax.jit(estimator.estimate)(jax.random.key(0), (), net.init(jax.random.key(1)), batch)
    >>> int(info.evaluations)  # two layers
    22
    """
    num_samples = positive_integer("num_samples", num_samples)

    def of_passes(count: int, sharding: NamedSharding | None = None) -> GradientEstimator:
        return node_perturbation(
            objective, sigma=sigma, num_samples=count, baseline=baseline, credit=credit,
            directions=layerwise(directions), chunk=chunk, sharding=sharding,
        )  # fmt: skip

    init = of_passes(num_samples).init  # bad settings are errors here, not at the first step

    def of(params: Params, batch: Batch) -> GradientEstimator:
        return of_passes(num_samples * layers_at_once(objective, params, batch), sharding)

    def estimate(key: Key, state: State, params: Params, batch: Batch) -> tuple[Params, State, Info]:
        return of(params, batch).estimate(key, state, params, batch)

    def credited(key: Key, state: State, params: Params, batch: Batch) -> dict[str, LayerCredit]:
        return of(params, batch).credit(key, state, params, batch)

    return GradientEstimator(init, estimate, credited)
