"""Feedback alignment: backpropagation through separate feedback weights."""

from typing import Any

import jax.numpy as jnp

from nl_jax._core.require import layered
from nl_jax.base import Batch, GradientEstimator, Info, Key, LayerCredit, Objective, Params, State
from nl_jax.estimators.feedback import weights as feedbacks
from nl_jax.estimators.feedback.feedback_path import Find, beside, feedback_path
from nl_jax.estimators.feedback.scale import scaled
from nl_jax.estimators.feedback.weights import Feedback


def feedback_alignment(objective: Objective, *, feedback: Feedback | None = None) -> GradientEstimator:
    """Sends credit down through B instead of Wᵀ: δ^l = (B^{l+1} δ^{l+1}) f'(ν^l), ∂E/∂W^l ≈ δ^l x^{l−1}.

    With B fixed and random this is Lillicrap et al. 2016; see `nl.feedback` for others.

    It works for any network. The forward pass is the network's own. The backward pass through a layer is the derivative
    of the same connection with B instead of its parameters, at the same axons (activity). This covers convolutions,
    skip connections and tied weights; the B of tied weights are tied as well. What a program does between its layers is
    differentiated exactly. So are, under `nl.partition`, layers with another part's parameters: they carry credit by
    their own W.

    The highest layer receives its exact gradient, on the scale of `jax.grad`. The estimate for lower layers is biased,
    for any draw of B, but approaches the gradient as W aligns with B.

    Args:
      objective: a per-example objective that takes `propagate`.
      feedback: where B comes from: `nl.feedback.random()` by default, `sign_symmetric()`, `sign_concordant()`,
        `kolen_pollack(optimizer)`, `weight_mirror(optimizer)`.

    Returns:
      An estimator with the feedback's state. It uses its key in `init` and for the feedback's own learning. B in the
      state is on the scale of its shape; estimates bring it to that of each layer's own fan in, where these differ.

    Raises:
      ValueError: if the objective takes no `propagate` or `feedback` is not a `Feedback`; when run, if layers share a
        name.

    >>> import jax, jax.numpy as jnp, nl_jax as nl
    >>> net = nl.mlp([3, 4, 2], activation=nl.activations.tanh())
    >>> estimator = feedback_alignment(nl.supervised(net.apply, nl.losses.cross_entropy))
    >>> params, batch = net.init(jax.random.key(0)), (jnp.ones([5, 3]), jnp.zeros(5, int))
    >>> state = estimator.init(jax.random.key(1), params)
    >>> state["output"]["weight"].shape  # B^2
    (4, 2)
    >>> estimator.estimate(jax.random.key(2), state, params, batch)[0]["hidden1"]["weight"].shape
    (3, 4)
    """
    layered("feedback_alignment", objective)
    source = feedbacks.random() if feedback is None else feedback
    if not isinstance(source, Feedback):
        raise ValueError(f"feedback must be one of nl.feedback, such as nl.feedback.random(), got {feedback!r}")

    def weights(state: State, params: Params, batch: Batch) -> Params:
        return scaled(source, objective, state, params, batch)

    def estimate(key: Key, state: State, params: Params, batch: Batch) -> tuple[Params, State, Info]:
        losses, grads, _ = feedback_path(objective, params, batch, companion=weights(state, params, batch))

        def look(find: Find, companion: Params, extra: Any) -> dict[str, Any]:
            return beside(objective, find)(params, companion, batch, extra)

        state = source.update(key, state, params, grads, look)
        return grads, state, Info(jnp.mean(losses), jnp.int32(3 + source.evaluations))

    def credit(key: Key, state: State, params: Params, batch: Batch) -> dict[str, LayerCredit]:
        del key
        return feedback_path(objective, params, batch, companion=weights(state, params, batch), credit=True).credit

    return GradientEstimator(source.init, estimate, credit)
