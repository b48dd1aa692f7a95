"""Eligibility propagation, e-prop (Bellec et al. 2020)."""

import jax.numpy as jnp

from nl_jax._core.require import layered, loop_name, typed_key
from nl_jax.base import Batch, GradientEstimator, Info, Key, Objective, Params, State, stateless
from nl_jax.estimators.feedback.feedback_path import beside
from nl_jax.estimators.feedback.scale import scaled
from nl_jax.estimators.feedback.weights import Feedback
from nl_jax.estimators.online.eligibility import by_traces


def e_prop(objective: Objective, *, feedback: Feedback | None = None, loop: str = "time") -> GradientEstimator:
    """Multiplies a learning signal for each unit by an eligibility trace for each weight (Bellec et al. 2020, eq. 1).

        ∂L/∂W_ij ≈ Σ_t L_j^t e_ij^t,   L_j^t = Σ_k B_jk ∂L_t/∂y_k

    The trace e is the effect of weight ij on the state of its own unit j, carried forward (`eligibility.py` has the
    equations for any cell). The signal L is the error of the current step, sent down through B. A unit's effect on
    others by recurrent connections is neglected. The estimate is the exact gradient without recurrent connections, with
    symmetric feedback, if only one layer of the loop has a state and the arithmetic between layers joins none of its
    units: a lower layer's traces do not go on into the state of a higher one. Parameters that a step uses outside its
    layers receive the credit of that step alone. For spiking cells traces use the surrogate derivative.

    Args:
      objective: a per-example objective that takes `propagate`, whose program has an `nl.scan` of this name. Its step
        may have several layers and its own read-out. Each unit must have its own state, arrays [batch, units], that
        starts from constants. Each parameter of a layer with a state must act on one unit, that of its place on the
        last axis, as in x @ weight + bias. An encoder, in the loop or before it, receives only the credit of the
        current step.
      feedback: B, from `nl.feedback`: None for symmetric signals, through the weights themselves,
        `nl.feedback.random()`, or `nl.feedback.kolen_pollack(optimizer)`, which the paper calls adaptive. It acts from
        layers in the step to those below, and from layers after the loop.
      loop: the loop's name.

    Returns:
      An estimator with the feedback's state. It stores one trace for each example, weight in the loop and part of a
      unit's state, whatever the number of steps. It counts as six evaluations plus the feedback's own.

    Raises:
      ValueError: if the objective takes no `propagate` or `feedback` is none of `nl.feedback`; when run, if the program
        has no loop of this name, the loop's start depends on parameters, or a layer moves a state of another shape than
        its own, has parameters that act on other units than their own, mixes examples, or is in a loop within the loop.

    >>> import jax, nl_jax as nl
    >>> network = nl.recurrent(nl.cells.lif(8), 2, 3, read=nl.cells.mean)
    >>> estimator = e_prop(nl.supervised(network.apply, nl.losses.cross_entropy), feedback=nl.feedback.random())
    >>> params, batch = network.init(jax.random.key(0)), (jnp.ones([4, 20, 2]), jnp.arange(4) % 3)
    >>> state = estimator.init(jax.random.key(1), params)
    >>> jax.jit(estimator.estimate)(jax.random.key(2), state, params, batch)[0]["hidden"]["recurrent"].shape
    (8, 8)
    """
    return traced("e_prop", objective, feedback, loop)


def traced(
    name: str, objective: Objective, feedback: Feedback | None, loop: str, own: bool = False
) -> GradientEstimator:
    """Returns the estimator by traces, with the name of its user; `own` as in `eligibility.by_traces`."""
    layered(name, objective)
    if not (feedback is None or isinstance(feedback, Feedback)):
        raise ValueError(
            f"feedback must be one of nl.feedback, such as nl.feedback.random(), or None; got {feedback!r}"
        )
    loop_name("loop", loop)

    def estimate(key: Key, state: State, params: Params, batch: Batch) -> tuple[Params, State, Info]:
        typed_key(key)
        weights = None if feedback is None else scaled(feedback, objective, state, params, batch)
        losses, grads = by_traces(name, objective, loop, params, batch, weights, own)
        cost = 6
        if feedback is not None:
            look = lambda find, companion, extra: beside(objective, find)(params, companion, batch, extra)
            state = feedback.update(key, state, params, grads, look)
            cost += feedback.evaluations
        return grads, state, Info(jnp.mean(losses), jnp.int32(cost))

    return GradientEstimator(stateless if feedback is None else feedback.init, estimate)
