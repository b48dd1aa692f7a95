"""The alternating direction method of multipliers, layer by layer (Boyd et al. 2011; Taylor et al. 2016)."""

import jax
import jax.numpy as jnp

from nl_jax._core.require import layered, per_example, positive_number
from nl_jax.base import Array, Axons, Batch, GradientEstimator, Objective, Params
from nl_jax.estimators.lagrangian import initial_activity, layer_solves
from nl_jax.estimators.lagrangian.lagrangian import gradients
from nl_jax.estimators.lagrangian.layer_solves import LayerSolve
from nl_jax.estimators.lagrangian.relaxation import Relaxation, distance
from nl_jax.estimators.lagrangian.saddle_point import Iterate, Iteration, ascended, saddle_point
from nl_jax.propagation import Site, clamp, interpret


def admm(
    objective: Objective,
    *,
    penalty: float = 1.0,
    solve: LayerSolve | None = None,
    num_steps: int | Array = 100,
    tolerance: float = 1e-3,
    start: initial_activity.Start = initial_activity.feedforward,
) -> GradientEstimator:
    """Alternates layer-wise minimisation and multiplier steps; at convergence the estimate is backprop's gradient.

    As the method of multipliers, but L_μ is minimised over one layer after the other, once each, from the last down, so
    that one sweep carries credit to the first layer. Then λ ← λ + μ r. Taylor et al. 2016 train networks this way, with
    pre-activations and weights as further blocks; here the weights are held, because their gradient is wanted. With
    more than two blocks, or curved activations, convergence is not guaranteed: if it fails, raise μ.

    Args:
      objective: a per-example objective that takes `propagate`, of layers that do not mix examples.
      penalty: μ, above 0.
      solve: how a layer is solved for: `nl.layer_solves.gauss_newton()` by default, or `gradient_descent()`.
      num_steps: K, the maximum number of sweeps.
      tolerance: as in `primal_dual`.
      start: `nl.initial_activity.feedforward` or `nl.initial_activity.zeros`; multipliers start at 0.

    Returns:
      An estimator without state or randomness, with a `KKT` in `info.residuals`; a sweep costs its layer solves and
      three evaluations.

    Raises:
      ValueError: if the objective takes no `propagate`, or a setting is out of range; when run, if a layer mixes
        examples, each of which is solved for separately, or is in a loop.
      FloatingPointError: when run, if the residual grows a thousandfold; under `jax.jit` see `info.failures`.
    """
    layered("admm", objective)
    penalty = positive_number("penalty", penalty)
    solve = layer_solves.gauss_newton() if solve is None else solve
    if not isinstance(solve, LayerSolve):
        raise ValueError(f"solve must be a LayerSolve such as nl.layer_solves.gauss_newton(), got {solve!r}")
    return saddle_point(
        objective,
        sweep(objective, penalty, solve),
        Relaxation(num_steps, tolerance),
        start=start,
        remedy=f"penalty={penalty}: choose a larger one, or a layer solve with a smaller step_size",
        evaluations=solve.evaluations + 3,
    )


def sweep(objective: Objective, penalty: float, solve: LayerSolve) -> Iteration:
    """Returns the iteration x_l ← argmin L_μ over x_l alone, from the last layer down; then λ ← λ + μ r."""
    forces = gradients(objective)

    def minimised(params: Params, downwards: list[str], at: Iterate, example: Batch) -> dict[str, Array]:
        axons = dict(at.axons)
        batch = _batch_of_one(example)

        def run(axons: Axons) -> tuple[Array, dict[str, Array]]:
            losses, layers = clamp(objective)(params, batch, _batch_of_one(axons))
            return per_example(losses)[0], {name: x - layers[name].predicted[0] for name, x in axons.items()}

        for name in downwards:

            def loss(x: Array, name: str = name) -> Array:
                return run({**axons, name: x})[0]

            def shifted(x: Array, name: str = name) -> dict[str, Array]:
                # λᵀr + μ/2 ‖r‖² = μ/2 ‖r + λ/μ‖² up to a constant (Boyd et al. 2011 §3.1.1).
                return ascended(run({**axons, name: x})[1], at.multipliers, 1 / penalty)

            axons[name] = solve.minimise(loss, shifted, penalty, axons[name])
        return axons

    def iteration(params: Params, batch: Batch, at: Iterate) -> tuple[Iterate, Array]:
        downwards = _unmixed(objective, params, batch)[::-1]
        axons = jax.vmap(lambda at, example: minimised(params, downwards, at, example))(at, batch)
        _, residuals = forces(params, axons, at.multipliers, batch)
        multipliers = ascended(at.multipliers, residuals, penalty)
        return Iterate(axons, multipliers), distance(*forces(params, *at, batch))

    return iteration


def _batch_of_one(example: Axons | Batch) -> Batch:
    return jax.tree.map(lambda leaf: jnp.expand_dims(leaf, 0), example)


def _unmixed(objective: Objective, params: Params, batch: Batch) -> list[str]:
    """Returns the layers' names in the order of propagation; ValueError if a layer mixes examples or is in a loop."""
    names: list[str] = []

    def layer(site: Site, given: None) -> tuple[Array, None]:
        if site.mixes_examples:
            raise ValueError(
                f"layer {site.name!r} mixes examples, and admm solves for each alone: use primal_dual, extragradient "
                "or augmented_lagrangian"
            )
        if site.steps:
            raise ValueError(
                f"admm: layer {site.name!r} is in a loop, but layers are solved for one after the other, and each step "
                "would run the whole loop: use augmented_lagrangian, which solves for all at once"
            )
        names.append(site.name)
        return site.axons(), None

    jax.eval_shape(interpret(objective, layer), params, batch)
    return names
