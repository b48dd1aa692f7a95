"""Reward objectives: the network acts, and the environment returns a number."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nl_jax._core.numerics import as_floating
from nl_jax._core.require import takes
from nl_jax.base import Array, Batch, Forward, Objective
from nl_jax.objectives.judged import Run, judged, one_per_example, pair


def greedy(outputs: Array) -> Array:
    """Returns the action with the greatest output, int32 [batch]; for axons of a `categorical` unit, the one drawn.

    Args:
      outputs: shape [batch, actions].
    """
    return jnp.argmax(outputs, axis=1).astype(jnp.int32)


def graded(outputs: Any) -> Any:
    """Returns the outputs themselves, as a continuous action."""
    return outputs


def bandit(forward: Forward, reward: Callable[[Any, Any], Array], *, act: Callable[[Any], Any] = greedy) -> Objective:
    """Returns −reward(action, context): it scores the action taken, and does not reveal the right one (Williams 1992).

    A label may be part of the context, from which the environment determines the reward. It enters only `reward`, and
    no derivative of `reward` is taken: differentiating raises an error instead of returning 0. Use an estimator that
    only evaluates. In `nl.reinforce` stochastic units explore; in `nl.weight_perturbation` and `nl.node_perturbation`
    the estimator's noise does. With a greedy action this noise must be large enough to change the action, so set their
    sigma yourself. Only `nl.reinforce` is exact at any noise level.

    Args:
      forward: `forward(params, inputs, propagate=feedforward) -> outputs`, as for `nl.supervised`.
      reward: `reward(action, context) -> [batch]`, higher is better; numbers of any kind, including booleans. It
        need not be differentiable.
      act: `act(outputs) -> action`: `greedy`, or `graded` for the outputs as they are, or any other function.

    Returns:
      `objective(params, (inputs, context), propagate=feedforward) -> losses`, shape [batch].

    Raises:
      ValueError: if reward or act has the wrong number of arguments; when called, if the batch is not a pair or the
        reward is not one number per example; when differentiated.

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
        return -as_floating(rewards)

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
