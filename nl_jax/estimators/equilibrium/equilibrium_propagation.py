"""Equilibrium propagation: the gradient from how a small nudge moves an equilibrium."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nl_jax._core.require import per_example
from nl_jax.base import (
    Array,
    Axons,
    Batch,
    Failure,
    GradientEstimator,
    Info,
    Key,
    LayerCredit,
    Objective,
    Params,
    State,
    stateless,
)  # fmt: skip
from nl_jax.estimators.equilibrium import nudges
from nl_jax.estimators.equilibrium.certificate import certificate
from nl_jax.estimators.equilibrium.energy import energy_network
from nl_jax.estimators.equilibrium.nudges import Nudge


class _Phases(NamedTuple):
    """The phases of one estimate: x_0, the losses there, d/dβ of −∂F/∂θ, λ, evaluations, and failures."""

    free: Axons
    losses: Array
    uphill: Params
    multipliers: Axons
    evaluations: Array
    failures: tuple[Failure, ...]


def equilibrium_propagation(
    objective: Objective,
    *,
    nudge: Nudge | None = None,
    feedback_strength: float | Array = 1.0,
    rate: float = 0.5,
    num_steps: int | Array = 100,
    tolerance: float = 1e-5,
) -> GradientEstimator:
    """Estimates the gradient of the loss at equilibrium from two or more phases (Scellier & Bengio 2017).

    The network is an energy network, `F = E + β C`: axons (activity) relax under inputs from the layers below *and*
    above, through the same weights (`nl_jax.estimators.equilibrium.energy`). From the free equilibrium x_0 the loss's
    force, −β ∂C/∂x, moves them to x_β, and

        dC(x_0)/dθ = d/dβ [∂F/∂θ at x_β] at β = 0,

    by finite differences of ∂F/∂θ, which for a dense layer is the Hebbian −x_l x_{l−1}ᵀ. The only derivative propagated
    is that of each connection with respect to its own inputs. The error is that of the finite difference (`nl.nudges`),
    and of phases that have not come to rest: a one-sided nudge mistakes unfinished relaxation for the effect of β.

    The loss is that of the network at rest, not of its feedforward run; so is `info.loss`. The gradient to compare with
    is `nl.backprop(nl.at_equilibrium(objective))`, and the trained network's outputs are `nl.at_equilibrium(forward)`.
    As γ → 0 all become those of the feedforward network.

    Args:
      objective: a per-example objective that takes `propagate`. It may read any layer's axons. Activations must be
        gradients of functions (all elementwise ones, the softmax) and hold no parameters. Layers without parameters
        (pooling) belong to the connections of those above.
      nudge: the strengths β, by default `nl.nudges.symmetric(0.1)`; `one_sided`, `n_point` and `circle` are others.
      feedback_strength: γ, above 0: feedback weights are γ times the forward weights, per layer in the order of
        propagation. 1 is Scellier & Bengio's.
      rate: the step of the damped iteration x ← x + rate (f(…) − x) of all layers at once, above 0 and at most 1.
      num_steps: the maximum number of iterations of each phase, at least 1; with fewer than there are layers the lowest
        learn nothing, because the nudge has not reached them.
      tolerance: a phase ends once its residual is at most this fraction of its first one, in [0, 1).

    Returns:
      An estimator without state or randomness. Its `info.residuals` is a `KKT` of L = C(x) + λᵀ(x − f(∂Φ/∂x)) at x_0:
      its `primal` measures how far the free phase is from rest, its `dual` how far the estimate is from the gradient
      there. The report is not counted in `info.evaluations`, which count two for each iteration of a phase, one forward
      and one backward. Its `credit` is at x_0, with z = −λ at each layer's output; a weight learns at both its ends, by
      the δ above it and the δ below.

    Raises:
      ValueError: if the objective takes no `propagate` or a setting is out of range; when run, if an activation
        holds parameters, or γ^{L−1} is lost in rounding.
      FloatingPointError: when run, if a phase diverges; under `jax.jit` see `info.failures`.

    >>> import jax, jax.numpy as jnp, nl_jax as nl
    >>> net = nl.mlp([3, 4, 2], activation=nl.activations.tanh())
    >>> objective = nl.supervised(net.apply, nl.losses.cross_entropy)
    >>> at = jax.random.key(0), (), net.init(jax.random.key(1)), (jnp.ones([5, 3]), jnp.zeros(5, int))
    >>> estimated, _, info = jax.jit(equilibrium_propagation(objective).estimate)(*at)
    >>> exact, _, _ = jax.jit(nl.backprop(nl.at_equilibrium(objective)).estimate)(*at)
    >>> bool(jnp.allclose(estimated["hidden1"]["weight"], exact["hidden1"]["weight"], rtol=0.02))
    True
    """
    network = energy_network("equilibrium_propagation", objective, feedback_strength, rate, num_steps, tolerance)
    nudge = _checked(nudges.symmetric(0.1) if nudge is None else nudge)
    holomorphic = any(jnp.iscomplexobj(beta) for beta in nudge.strengths)

    def phases(params: Params, batch: Batch) -> _Phases:
        start = network.start(params, batch)
        network.refuse_lost_feedback(start)
        free, taken, failures = network.settle(params, start, batch)
        losses = per_example(network.outputs(params, free, batch))

        lift = _complex if holomorphic else lambda tree: tree
        lifted, still, given = lift(params), lift(free), lift(batch)
        dtype = jax.tree.leaves(still)[0].dtype
        strengths, weights = jnp.asarray(nudge.strengths, dtype), jnp.asarray(nudge.weights, dtype)
        nudged, retaken, more_failures = network.settle_all(lifted, still, given, strengths)

        def slope(params: Params, shift: Axons) -> Array:
            """Computes Σ_k w_k [(Φ − β_k C)(x_k) − Φ(x_0)].

            Its derivatives by θ, and by all of x at once, are finite differences in β of those of Φ − β C.
            """

            def harmony(axons: Axons, beta: Array | None = None) -> Array:
                return network.harmony(params, jax.tree.map(jnp.add, axons, shift), given, beta)

            return jnp.sum(weights * (jax.vmap(harmony)(nudged, strengths) - harmony(still)))

        unmoved = jax.tree.map(jnp.zeros_like, still)
        uphill, moved = jax.grad(slope, argnums=(0, 1), holomorphic=holomorphic)(lifted, unmoved)
        count = len(nudge.strengths)
        evaluations = 1 + 2 * taken + 2 * count * retaken + (count + 1)
        return _Phases(free, losses, uphill, jax.tree.map(jnp.real, moved), evaluations, failures + more_failures)

    def estimate(key: Key, state: State, params: Params, batch: Batch) -> tuple[Params, State, Info]:
        del key
        free, losses, uphill, multipliers, evaluations, failures = phases(params, batch)
        grads = jax.tree.map(lambda p, g: -jnp.real(g).astype(p.dtype) / losses.size, params, uphill)
        residuals = certificate(network, params, free, multipliers, batch, grads)
        return grads, state, Info(jnp.mean(losses), evaluations, residuals, failures)

    def credit(key: Key, state: State, params: Params, batch: Batch) -> dict[str, LayerCredit]:
        del key, state
        found = phases(params, batch)
        return network.credit(params, found.free, batch, found.multipliers)

    return GradientEstimator(stateless, estimate, credit)


def _checked(nudge: Nudge) -> Nudge:
    if not isinstance(nudge, Nudge):
        raise ValueError(f"nudge must be one of nl.nudges, such as nl.nudges.symmetric(0.1), got {nudge!r}")
    known = [beta for beta in nudge.strengths if not isinstance(beta, jax.Array)]
    if not nudge.strengths or 0 in known or len({*known}) < len(known) or not np.all(np.isfinite(known)):
        raise ValueError(f"nudge must have finite strengths, all different and not 0, got {nudge.strengths}")
    return nudge


def _complex(tree: Any) -> Any:
    """Returns the tree with its floating-point leaves as complex numbers."""

    def cast(x: Array) -> Array:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        return x.astype(jnp.complex128 if x.dtype == jnp.float64 else jnp.complex64)

    return jax.tree.map(cast, tree)
