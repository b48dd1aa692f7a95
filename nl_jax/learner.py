"""A learner: a gradient estimator and an optimizer, joined to one step."""

import jax.numpy as jnp
import optax

from nl_jax.base import Batch, GradientEstimator, Info, Key, Learner, LearnerState, Params
from nl_jax.checks import typed_key


def learner(estimator: GradientEstimator, optimizer: optax.GradientTransformation) -> Learner:
    """Joins an estimator and an optimizer: estimate the gradient, transform it, apply it.

    Args:
      estimator: any `GradientEstimator`.
      optimizer: any `optax.GradientTransformation`. Those that take extra arguments get `value` (the loss)
        and `grad`.

    Returns:
      A `Learner` of pure functions, `init(key, params) -> state` and `step(key, state, batch) -> (state, info)`.
      Jit the step; give each step a key of its own.

    Raises:
      ValueError: if either is not what it should be; when run, if a key is not a typed one.

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
    if not isinstance(estimator, GradientEstimator):
        raise ValueError(f"estimator must be a GradientEstimator such as nl.backprop(objective), got {estimator!r}")
    if not isinstance(optimizer, optax.GradientTransformation):
        raise ValueError(f"optimizer must be an optax optimizer such as optax.adam(1e-3), got {optimizer!r}")
    optimizer = optax.with_extra_args_support(optimizer)

    def init(key: Key, params: Params) -> LearnerState:
        typed_key(key)
        return LearnerState(params, estimator.init(key, params), optimizer.init(params), jnp.int32(0))

    def step(key: Key, state: LearnerState, batch: Batch) -> tuple[LearnerState, Info]:
        typed_key(key)
        grads, estimator_state, info = estimator.estimate(key, state.estimator, state.params, batch)
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params, value=info.loss, grad=grads)
        params = optax.apply_updates(state.params, updates)
        return LearnerState(params, estimator_state, optimizer_state, state.step + 1), info

    return Learner(init, step)
