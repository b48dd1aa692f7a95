"""Eligibility traces: the influence of a weight on the state of its own unit alone.

For each layer l of the loop, let ν_j be the pre-activation of unit j, and s_j the state that the unit carries itself by
the program's own arithmetic (a leak, a threshold, a reset). Then

    ε_s,ij ← Σ_s' ∂s_j/∂s'_j ε_s',ij + ∂s_j/∂ν_j ∂ν_j/∂W_ij                        (Bellec et al. 2020, eq. 13–14)
    ∂L/∂W_ij ≈ Σ_t Σ_s ∂L_t/∂s_j ε_s,ij(t−1) + ∂L_t/∂ν_j ∂ν_j/∂W_ij

with one trace for each weight, example and part of the state. Recurrent connections, which are inputs of layers from
the previous step, pass no credit (or only that of a unit to itself). Layers of one step do, so that a read-out or a
second layer in the loop sends it down. Without recurrent connections this is the gradient, if one layer has a state
and the program joins its units only by layers. ∂L_t/∂s_j is the learning signal: with feedback weights B, layers send
it down through B.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nl_jax._core.require import per_example
from nl_jax.base import Array, Batch, Objective, Params
from nl_jax.estimators.feedback.feedback_path import taught, transposed
from nl_jax.estimators.online.forward_credit import require_loop
from nl_jax.estimators.online.traced_layers import Layers
from nl_jax.estimators.online.traces import lessons_of_loop
from nl_jax.propagation import Site, interpret, plain_loop
from nl_jax.propagation.loops import Leaves, differentiable, require_steps


class Estimate(NamedTuple):
    """A gradient by traces.

    Attributes:
      losses: [batch].
      grads: a tree like the parameters, on the scale of the mean loss.
    """

    losses: Array
    grads: Params


def by_traces(
    name: str,
    objective: Objective,
    loop: str,
    params: Params,
    batch: Batch,
    feedback: Params | None = None,
    own: bool = False,
) -> Estimate:
    """Computes the gradient of the mean loss, by traces in the loop.

    A first run finds the loss and the credit of the loop's results; a second one passes that credit to the parameters.

    Args:
      name: the estimator's, for messages.
      objective: a per-example objective that takes `propagate`.
      loop: the name of its loop over time.
      params: the program's parameters.
      batch: as the objective takes it.
      feedback: B, a tree like `params`, or None for the weights themselves.
      own: whether a recurrent connection passes a unit's credit to the unit itself.

    Raises:
      ValueError: if the program has no loop of this name, the loop's start depends on parameters, or a layer moves a
        state of another shape than its own.
    """

    def beside(run: Callable[[Params, Array | None], Any], params: Params) -> Any:
        """Runs `run(params, pair)` with the feedback weights beside the parameters (`feedback_path.parted`)."""
        if feedback is None:
            return run(params, None)
        one = jnp.ones(())
        return jax.jvp(run, (params, one), (feedback, one))[0]

    def first(params: Params, moves: Leaves | None) -> tuple[Array, tuple[Array, Leaves]]:
        return beside(lambda params, pair: _first_run(objective, loop, batch, met, params, pair, moves), params)

    def second(params: Params, worth: Leaves) -> Array:
        layers = Layers(name, own)
        return beside(lambda params, pair: _second_run(layers, objective, loop, batch, params, pair, worth), params)

    met: list[str] = []
    shapes = jax.eval_shape(lambda params: first(params, None)[1][1], params)
    require_loop(name, loop, met)
    nowhere = [jnp.zeros(s.shape, s.dtype) for s in shapes]
    (_, (losses, _)), (outside, worth) = jax.value_and_grad(first, argnums=(0, 1), has_aux=True)(params, nowhere)
    inside = jax.grad(second)(params, worth)
    return Estimate(losses, jax.tree.map(lambda a, b: a + b.astype(a.dtype), outside, inside))


def _first_run(
    objective: Objective,
    loop: str,
    batch: Batch,
    met: list[str],
    params: Params,
    pair: Array | None,
    moves: Leaves | None,
) -> tuple[Array, tuple[Array, Leaves]]:
    """Computes the mean loss as a function of parameters outside the loop and of displacements of its results."""
    results: Leaves = []

    def run(own: str, body: Callable, carry: Any, xs: Any, length: int | None) -> tuple[Any, Any]:
        met.append(own)
        if own != loop:
            return plain_loop(own, body, carry, xs, length)
        leaves, tree = jax.tree.flatten(jax.lax.stop_gradient(plain_loop(own, body, carry, xs, length)))
        results.extend(leaf for leaf in leaves if differentiable(leaf))
        by = iter(moves or [])
        return jax.tree.unflatten(
            tree, [leaf + next(by) if moves and differentiable(leaf) else leaf for leaf in leaves]
        )

    def layer(site: Site, given: None) -> tuple[Array, None]:
        return taught(site, transposed, (), pair), None

    losses, _ = interpret(objective, layer, loop=run)(params, batch)
    return jnp.mean(per_example(losses)), (losses, results)


def _second_run(
    layers: Layers, objective: Objective, loop: str, batch: Batch, params: Params, pair: Array | None, worth: Leaves
) -> Array:
    """Computes ⟨what the loop reads, its credit⟩, whose gradient passes the credit on to the parameters."""
    lessons = [jnp.asarray(0.0)]

    def run(own: str, body: Callable, carry: Any, xs: Any, length: int | None) -> tuple[Any, Any]:
        if own != loop:
            return plain_loop(own, body, carry, xs, length)
        require_steps(own, xs, length)
        read, credit, results = lessons_of_loop(layers, body, carry, xs, length, worth, pair)
        pairs = zip(read, jax.lax.stop_gradient(credit), strict=True)
        lessons.extend(jnp.sum(leaf * c).astype(float) for leaf, c in pairs)
        return results

    interpret(objective, layers.layer, loop=run)(params, batch)
    return sum(lessons[1:], start=lessons[0])
