"""Contrastive Hebbian learning: compares the free network with the network whose outputs are clamped."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from nl_jax._core.dependence import reached
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
from nl_jax.estimators.equilibrium.certificate import certificate
from nl_jax.estimators.equilibrium.energy import EnergyNetwork, energy_network
from nl_jax.propagation import loops_around


class _Phases(NamedTuple):
    """The phases of one estimate: x, x̂, the losses at x, λ, evaluations, and failures."""

    free: Axons
    clamped: Axons
    losses: Array
    multipliers: Axons
    evaluations: Array
    failures: tuple[Failure, ...]


def contrastive_hebbian(
    objective: Objective,
    *,
    feedback_strength: float | Array = 0.1,
    rate: float = 1.0,
    num_steps: int | Array = 20,
    tolerance: float = 0.0,
) -> GradientEstimator:
    """Estimates the gradient from Hebbian products in a clamped and a free phase (Movellan 1991; Xie & Seung 2003).

    The network is an energy network whose feedback weights are γ times its forward weights
    (`nl_jax.estimators.equilibrium.energy`). With x its free equilibrium (activity at rest) and x̂ its equilibrium with
    clamped outputs,

        ∂E/∂W_l ≈ −γ^{l−L} (x̂_l x̂_{l−1} − x_l x_{l−1}),

    which is backprop's gradient of the *feedforward* network as γ → 0, with an error of order γ.

    Outputs are clamped to x̂_L = x_L − ∂C/∂ν_L. This is the target itself for every loss that matches the output units:
    squared error for linear ones, cross-entropy for sigmoid or softmax ones. For any other loss, such as the
    cross-entropy of linear outputs (logits), it is the target whose squared error has the loss's gradient.

    Args:
      objective: a per-example objective that takes `propagate` and reads the axons of the last layer alone. Its network
        must be as for `nl.equilibrium_propagation`.
      feedback_strength: γ, above 0. The differences between the phases are of order γ^{L−l}: in a deep network with
        small γ they are lost in rounding, which is amplified by γ^{l−L} at layer l.
      rate: the step of the damped iteration x ← x + rate (f(…) − x) of all layers at once, above 0 and at most 1.
      num_steps: the maximum number of iterations of each phase, at least 1. Take at least as many as there are layers,
        so that the clamped outputs reach all of them: the error of a phase that is cut short is amplified by γ^{l−L}.
      tolerance: a phase ends once its residual is at most this fraction of its first one, in [0, 1).

    Returns:
      An estimator without state or randomness. Its `info.loss` is that of the free phase. Its `info.residuals` is a
      `KKT` as for `nl.equilibrium_propagation`, with λ_L = −∂C/∂x_L and, below it, λ_l the difference of the forces.
      Its `credit` is as there, for the free phase.

    Raises:
      ValueError: if the objective takes no `propagate` or a setting is out of range; when run, if an activation holds
        parameters, γ^{L−1} is lost in rounding, the loss reads a layer other than the last, or that
        layer is in a loop.
      FloatingPointError: when run, if a phase diverges; under `jax.jit` see `info.failures`.

    >>> import jax, jax.numpy as jnp, nl_jax as nl
    >>> net = nl.mlp([3, 4, 2], activation=nl.activations.tanh())
    >>> objective = nl.supervised(net.apply, nl.losses.cross_entropy)
    >>> at = jax.random.key(0), (), net.init(jax.random.key(1)), (jnp.ones([5, 3]), jnp.zeros(5, int))
    >>> estimated, _, info = jax.jit(contrastive_hebbian(objective, feedback_strength=0.01).estimate)(*at)
    >>> exact, _, _ = jax.jit(nl.backprop(objective).estimate)(*at)
    >>> bool(jnp.allclose(estimated["hidden1"]["weight"], exact["hidden1"]["weight"], rtol=0.05))
    True
    """
    network = energy_network("contrastive_hebbian", objective, feedback_strength, rate, num_steps, tolerance)

    def phases(params: Params, batch: Batch) -> _Phases:
        start = network.start(params, batch)
        network.refuse_lost_feedback(start)
        *lower, output = start
        _refuse_loop_around(output)
        _refuse_loss_of(lower, network, params, start, batch)
        free, taken, failures = network.settle(params, start, batch)
        losses = per_example(network.outputs(params, free, batch))
        slopes = jax.grad(lambda x: jnp.sum(network.outputs(params, x, batch)))(free)
        forces = network.forces(params, free, batch)

        answer = lambda force: network.answers(params, free, batch, {**forces, output: force})[output]
        to_preactivation = jax.vjp(answer, forces[output])[1]
        clamp = {output: free[output] - to_preactivation(slopes[output])[0]}
        clamped, retaken, more_failures = network.settle(params, {**free, **clamp}, batch, held=clamp)
        moved = jax.tree.map(jnp.subtract, network.forces(params, clamped, batch), forces)
        multipliers = {**moved, output: -slopes[output]}
        evaluations = 1 + 2 * taken + 2 * retaken + 2
        return _Phases(free, clamped, losses, multipliers, evaluations, failures + more_failures)

    def estimate(key: Key, state: State, params: Params, batch: Batch) -> tuple[Params, State, Info]:
        del key
        free, clamped, losses, multipliers, evaluations, failures = phases(params, batch)

        def contrast(params: Params) -> Array:
            """Computes Φ(x) − Φ(x̂), plus the loss, for parameters that the loss uses itself."""
            of_free = network.harmony(params, free, batch, nudge=-1.0)
            return (of_free - network.harmony(params, clamped, batch)) / losses.size

        grads = jax.grad(contrast)(params)
        residuals = certificate(network, params, free, multipliers, batch, grads)
        return grads, state, Info(jnp.mean(losses), evaluations, residuals, failures)

    def credit(key: Key, state: State, params: Params, batch: Batch) -> dict[str, LayerCredit]:
        del key, state
        found = phases(params, batch)
        return network.credit(params, found.free, batch, found.multipliers)

    return GradientEstimator(stateless, estimate, credit)


def _refuse_loop_around(output: str) -> None:
    """Raises ValueError for outputs at several steps: the earlier ones are farther from the end by powers of γ."""
    if loops_around(output):
        raise ValueError(
            f"contrastive_hebbian: the last layer {output!r} is in a loop, but outputs are clamped once: call the "
            "output layer after the loop, or use equilibrium_propagation"
        )


def _refuse_loss_of(lower: list[str], network: EnergyNetwork, params: Params, axons: Axons, batch: Batch) -> None:
    """Raises ValueError if the loss reads these layers, which are not clamped: their credit would not fade with γ."""

    def losses(*values: Array) -> Array:
        return network.outputs(params, {**axons, **dict(zip(lower, values, strict=True))}, batch)

    for i in reached(losses, *(axons[name] for name in lower)):
        raise ValueError(
            f"the loss reads the axons of layer {lower[i]!r}, but contrastive Hebbian learning clamps those of the "
            "last layer alone: nl.equilibrium_propagation takes such a loss"
        )
