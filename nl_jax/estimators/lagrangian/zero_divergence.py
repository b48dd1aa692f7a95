"""Zero-divergence inference learning, Z-IL (Song et al. 2020; Salvatori et al. 2022)."""

import jax
import jax.numpy as jnp

from nl_jax._core.require import layered
from nl_jax.base import Array, Batch, GradientEstimator, Objective, Params
from nl_jax.estimators.lagrangian.freedom import downhill
from nl_jax.estimators.lagrangian.solution import Point, solution
from nl_jax.propagation import clamp, loops_around, record

Stage = dict[str, Array]


def zero_divergence(objective: Objective) -> GradientEstimator:
    """Runs predictive coding in which each layer learns when its error first arrives, Z-IL (Song et al. 2020).

    Inference is that of `predictive_coding`, x ← x − ∂F/∂x with a step of 1 and μ = 1 from the feedforward axons
    (activity). Errors start at the top and move down one layer per step. When the error of layer l arrives, after L − l
    steps, nothing below it has moved: the credit that arrives is exactly backprop's, and the layer's inputs are those
    of the forward pass. At later steps this no longer holds. The updates are exactly the gradient, and are applied
    together.

    If paths differed in length, credit along the shorter ones would arrive early. Identity nodes therefore make all
    paths equally long (Salvatori et al. 2022). What a layer sends past the next one in the order of propagation, to a
    higher layer or to the loss, goes through one identity node for each layer passed over, each with its own prediction
    error. Every program becomes a chain of stages, the n-th of n nodes, and the theorem for chains applies. Memory and
    compile time grow with the square of the number of layers: this is for the study of predictive coding, not a
    replacement for backprop.

    Args:
      objective: a per-example objective that takes `propagate`.

    Returns:
      An estimator without state or randomness: 2 evaluations per layer and 2 more. It equals `backprop` up to the
      rounding of axons, not of credit, which is a difference of two axons: in float32 credit below 10⁻⁷ is lost.

    Raises:
      ValueError: if the objective takes no `propagate`; when run, if layers share a name, a layer is in a loop, or the
        first axis of a layer's axons is not the batch.

    >>> import jax, jax.numpy as jnp, nl_jax as nl
    >>> net = nl.mlp([3, 4, 2], activation=nl.activations.tanh())
    >>> objective = nl.supervised(net.apply, nl.losses.cross_entropy)
    >>> batch = jnp.ones([5, 3]), jnp.zeros(5, int)
    >>> key, params = jax.random.key(0), net.init(jax.random.key(1))
    >>> ours, _, _ = jax.jit(zero_divergence(objective).estimate)(key, (), params, batch)
    >>> exact, _, _ = nl.backprop(objective).estimate(key, (), params, batch)
    >>> bool(jnp.allclose(ours["hidden1"]["weight"], exact["hidden1"]["weight"], atol=1e-6))
    True
    """
    layered("zero_divergence", objective)

    def solve(params: Params, batch: Batch) -> Point:
        losses, feedforward = record(objective)(params, batch)
        *hidden, last = feedforward
        for name in filter(loops_around, feedforward):
            raise ValueError(
                f"zero_divergence: layer {name!r} is in a loop, but inference is a chain of single layers, and memory "
                "would grow with the square of the steps: use fixed_prediction or lagrangian_backprop, as exact"
            )
        arrival = {name: steps for steps, name in enumerate(reversed(hidden), start=1)}

        def energy(stages: dict[str, Stage]) -> tuple[Array, Stage]:
            """Returns F of the chain of stages, and each layer's prediction error, without those of identity nodes."""
            below: Stage = {}
            residuals, errors = [], {}
            for name in hidden:
                _, layers = clamp(objective)(params, batch, below)
                handed_on = {**below, name: layers[name].predicted}
                error = jax.tree.map(jnp.subtract, stages[name], handed_on)
                residuals += error.values()
                errors[name] = error[name]
                below = stages[name]
            losses, _ = clamp(objective)(params, batch, below)
            total = jnp.sum(losses)
            return total + 0.5 * sum(jnp.sum(jnp.square(r), dtype=total.dtype) for r in residuals), errors

        def step(taken: Array, carry: tuple[dict[str, Stage], Stage]) -> tuple[dict[str, Stage], Stage]:
            stages, learned = carry
            forces, errors = jax.grad(energy, has_aux=True)(stages)
            learned = {name: jnp.where(taken == arrival[name], errors[name], learned[name]) for name in hidden}
            return jax.tree.map(jnp.subtract, stages, forces), learned

        stages = {top: {name: feedforward[name] for name in hidden[: n + 1]} for n, top in enumerate(hidden)}
        nothing = {name: jnp.zeros_like(feedforward[name]) for name in hidden}
        _, learned = jax.lax.fori_loop(0, len(feedforward), step, (stages, nothing))
        multipliers = learned | downhill(objective, params, feedforward, batch, [last])
        return Point(losses, feedforward, multipliers, 2 * len(feedforward))

    return solution(objective, solve)
