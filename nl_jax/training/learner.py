"""Joins a gradient estimator and an optimizer into a learner."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nl_jax._core.paths import path_name
from nl_jax._core.require import arrays, gradient_estimator, gradient_transformation, typed_key
from nl_jax.base import Array, Batch, GradientEstimator, Info, Key, Learner, LearnerState, Params, State


def learner(estimator: GradientEstimator, optimizer: optax.GradientTransformation | optax.MultiSteps) -> Learner:
    """Joins an estimator and an optimizer: estimate the gradient, transform it, apply it.

    Args:
      estimator: any `GradientEstimator`.
      optimizer: any `optax.GradientTransformation`, or an `optax.MultiSteps`. Optimizers that take extra arguments get
        `value` (the loss), `grad` and, for line searches, `value_fn`. `value_fn` is the loss as a function of the
        parameters; its gradient is the estimator's, and its key and batch are fixed within one step. A search thus
        needs no derivative that the estimator does not need, and all its trials evaluate the same function.

    Returns:
      A `Learner` of pure functions, `init(key, params) -> state` and `step(key, state, batch) -> (state, info)`.
      Jit the step; give each step its own key. `info.evaluations` counts each trial of an optax line search as one
      more estimate; the number of trials is read from the optimizer's state. For a step that `optax.apply_if_finite`
      rejects, the previous step's trials are counted; a search in `optax.MultiSteps` runs at every step, but only the
      last update's trials are counted.

    Raises:
      ValueError: if either argument has the wrong type; when run, if a key is not a typed key, if parameters have
        leaves that are not arrays, or if the state was made with another optimizer.

    >>> import jax, jax.numpy as jnp, optax, nl_jax as nl
    >>> network = nl.mlp([3, 4, 2], activation=nl.activations.tanh())
    >>> objective = nl.supervised(network.apply, nl.losses.cross_entropy)
    >>> ours = nl.learner(nl.backprop(objective), optax.adam(1e-2))
    >>> state = ours.init(jax.random.key(0), network.init(jax.random.key(1)))
    >>> batch = jnp.ones([5, 3]), jnp.zeros(5, int)
    >>> for t in range(20):
    ...     state, info = ours.step(jax.random.key(t), state, batch)
    >>> int(state.step), bool(info.loss < 0.5)
    (20, True)
    """
    gradient_estimator("estimator", estimator)
    if isinstance(optimizer, optax.MultiSteps):  # accumulates gradients; not a GradientTransformation in optax
        optimizer = optax.GradientTransformationExtraArgs(optimizer.init, optimizer.update)
    gradient_transformation(optimizer)
    optimizer = optax.with_extra_args_support(optimizer)

    def init(key: Key, params: Params) -> LearnerState:
        typed_key(key)
        arrays("params", params)
        # optax's line searches start with weakly typed numbers, which later become strong: this avoids recompilation.
        optimizer_state = jax.tree.map(_strongly_typed, optimizer.init(params))
        return LearnerState(params, estimator.init(key, params), optimizer_state, jnp.int32(0))

    def step(key: Key, state: LearnerState, batch: Batch) -> tuple[LearnerState, Info]:
        typed_key(key)
        _require_state_of(optimizer, state)

        def estimate(params: Params) -> tuple[Params, State, Info]:
            return estimator.estimate(key, state.estimator, params, batch)

        grads, estimator_state, info = estimate(state.params)
        updates, optimizer_state = optimizer.update(
            grads, state.optimizer, state.params, value=info.loss, grad=grads, value_fn=_loss_with_gradient(estimate)
        )
        params = optax.apply_updates(state.params, updates)
        info = info._replace(evaluations=info.evaluations * (1 + _trials(optimizer_state)))
        return LearnerState(params, estimator_state, optimizer_state, state.step + 1), info

    return Learner(init, step)


def _strongly_typed(x: Any) -> Array:
    weak = getattr(x, "weak_type", False)  # typed keys have no weak_type
    return x if isinstance(x, jax.Array) and not weak else jnp.asarray(x, jnp.result_type(x))


def _require_state_of(optimizer: optax.GradientTransformation, state: LearnerState) -> None:
    """Raises a ValueError unless the state has the optimizer's tree; optax would accept some states of others."""
    expected = jax.eval_shape(optimizer.init, state.params)
    found: Any = jax.tree.structure(state.optimizer)
    if found == jax.tree.structure(expected):
        return
    there, here = ({path_name(path) for path, _ in jax.tree.leaves_with_path(x)} for x in (state.optimizer, expected))
    if there - here:
        differs = f"has {min(there - here)!r} too much"
    else:
        differs = f"lacks {min(here - there)!r}" if here - there else "has other nodes"
    remedy = "make the state with learner.init(key, params)"
    raise ValueError(f"state.optimizer is of another optimizer, it {differs}: {remedy}")


def _loss_with_gradient(estimate: Callable[[Params], tuple[Params, State, Info]]) -> Callable[[Params], Array]:
    """Returns the loss that an estimator reports, with the estimate as its gradient."""

    def loss_and_grads(params: Params) -> tuple[Array, Params]:
        grads, _, info = estimate(params)
        return info.loss, grads

    @jax.custom_vjp
    def loss(params: Params) -> Array:
        return loss_and_grads(params)[0]

    loss.defvjp(
        loss_and_grads, lambda grads, weight: (jax.tree.map(lambda g: jnp.asarray(weight, g.dtype) * g, grads),)
    )
    return loss


def _trials(optimizer_state: State) -> Array:
    """Returns how often the line searches in an optimizer's state evaluated the loss in the last step."""
    found = optax.tree.get_all_with_path(optimizer_state, "num_linesearch_steps")
    return sum((jnp.int32(trials) for _, trials in found), start=jnp.int32(0))
