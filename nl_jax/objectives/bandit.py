"""Reward objectives: the network acts, and the environment returns a number."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nl_jax.base import Array, Batch, Forward, Objective
from nl_jax.checks import takes
from nl_jax.objectives.judged import Run, judged, one_per_example, pair


def greedy(outputs: Array) -> Array:
    """The action of the greatest output, int32 of shape [batch]; of a `categorical` unit's axons, the one drawn.

    Args:
      outputs: shape [batch, actions].
    """
    return jnp.argmax(outputs, axis=1).astype(jnp.int32)


def graded(outputs: Any) -> Any:
    """The outputs themselves, as an action that can be more or less."""
    return outputs


def bandit(forward: Forward, reward: Callable[[Any, Any], Array], *, act: Callable[[Any], Any] = greedy) -> Objective:
    """−reward(action, context): one number for what was done, and nothing about what should have been (Williams 1992).

    A label may be part of the context, by which the environment tells good from bad: it enters nowhere but in
    `reward`, and no derivative is ever taken of that. To differentiate is an error, not a silent 0. Left are the
    estimators that only evaluate: `nl.reinforce`, where stochastic units explore, and `nl.weight_perturbation` and
    `nl.node_perturbation`, whose own noise does; of a greedy action this must be large enough to change it, so give
    their sigma yourself. `nl.reinforce` alone is exact at any amount of noise.

    Args:
      forward: `forward(params, inputs, propagate=feedforward) -> outputs`, as for `nl.supervised`.
      reward: `reward(action, context) -> [batch]`, the more the better; numbers of any kind, True and False too. It
        need not be differentiable.
      act: `act(outputs) -> action`: `greedy`, or `graded` for the outputs as they are, or any other function.

    Returns:
      `objective(params, (inputs, context), propagate=feedforward) -> losses`, shape [batch].

    Raises:
      ValueError: if reward or act takes other arguments; when called, if the batch is not a pair or the reward not one
        number per example; when differentiated.

    >>> import jax.numpy as jnp
    >>> objective = bandit(lambda w, x: x @ w, lambda action, label: action == label)
    >>> objective(jnp.eye(2), (jnp.array([[0.0, 1.0], [0.0, 1.0]]), jnp.array([1, 0])))
    Array([-1., -0.], dtype=float32)
    """
    takes("reward", reward, 2, "a function of actions and contexts that returns one number per example")
    takes("act", act, 1, "a function of outputs, such as nl.objectives.greedy (not called)")

    @jax.custom_jvp
    def environment(outputs: Any, context: Any) -> Array:
        rewards = jnp.asarray(one_per_example("reward", reward(act(outputs), context), "context", context))
        floating = jnp.issubdtype(rewards.dtype, jnp.floating)
        return -(rewards if floating else rewards.astype(jnp.result_type(float)))

    @environment.defjvp
    def _tangent(primals: Any, tangents: Any) -> Any:
        raise ValueError(
            "a reward has no derivative: the environment returns a number and no more. Use an estimator that only "
            "evaluates (reinforce, node_perturbation, weight_perturbation), and use no parameter outside the layers "
            "that it reaches"
        )

    def judge(run: Run, batch: Batch) -> Array:
        inputs, context = pair(batch, "context")
        return environment(run(inputs), context)

    return judged(forward, judge)
