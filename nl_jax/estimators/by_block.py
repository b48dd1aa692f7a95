"""Trains blocks with local losses, each by its own estimator (Ren et al. 2022)."""

from typing import Any

import jax
import jax.numpy as jnp

from nl_jax._core.require import estimator_of, typed_key
from nl_jax.base import Batch, Factory, GradientEstimator, Info, Key, Params, State


def by_block(losses: Any, factory: Factory) -> GradientEstimator:
    """Estimates the gradient of each block's own losses, with a separate estimator for each block.

    A forward pass gives every block its inputs. Then each block is trained separately, with the others held. Noise in
    one block therefore changes only that block's losses, also for estimators that only evaluate. With groups or
    patches, noise is judged by the losses of its own group and position; in weight space, by all losses of the block
    together.

    Args:
      losses: made by `nl.local_losses`.
      factory: makes an estimator from an objective, such as `nl.backprop` or `functools.partial(nl.node_perturbation,
        num_samples=32)`.

    Returns:
      An estimator of the gradient of `losses.objective`, unbiased if the factory's is. Its state is the tuple of the
      blocks' states, its loss the sum of their losses, its residuals the tuple of theirs, its failures those of all.
      Evaluations are counted in passes through the whole network: one, plus as many as a block takes.

    Raises:
      ValueError: if `losses` was not made by `nl.local_losses`, or the factory makes no estimator or refuses a block's
        objective.

    >>> import functools, jax, jax.numpy as jnp, nl_jax as nl
    >>> trunk = nl.mlp([3, 6, 4], activation=nl.activations.tanh(), output_activation=nl.activations.tanh())
    >>> local = nl.local_losses(trunk, nl.losses.cross_entropy, 2)
    >>> estimator = by_block(local, functools.partial(nl.node_perturbation, num_samples=8))
    >>> params = local.init(jax.random.key(0))
    >>> state, batch = estimator.init(jax.random.key(1), params), (jnp.ones([5, 3]), jnp.zeros(5, int))
    >>> grads, state, info = jax.jit(estimator.estimate)(jax.random.key(2), state, params, batch)
    >>> jax.tree.structure(grads) == jax.tree.structure(params), int(info.evaluations)
    (True, 11)
    """
    if not all(hasattr(losses, name) for name in ("parts", "received", "objective")):
        raise ValueError(f"losses must be made by nl.local_losses, got {losses!r}")
    estimator_of("factory", factory, losses.objective)  # bad settings are errors here, not at the first step

    def init(key: Key, params: Params) -> State:
        typed_key(key)
        parts = losses.parts(params).values()
        keys = jax.random.split(key, len(parts))
        return tuple(factory(part.objective).init(k, part.params) for k, part in zip(keys, parts, strict=True))

    def estimate(key: Key, state: State, params: Params, batch: Batch) -> tuple[Params, State, Info]:
        typed_key(key)
        parts, received = losses.parts(params), losses.received(params, batch)
        if not isinstance(state, tuple) or len(state) != len(parts):
            raise ValueError(f"state must be the {len(parts)} states that init made, one for each block")
        grads: Params = jax.tree.map(jnp.zeros_like, params)
        states, infos = [], []
        for index, (name, part) in enumerate(parts.items()):
            own, after, info = factory(part.objective).estimate(
                jax.random.fold_in(key, index), state[index], part.params, received[name]
            )
            grads |= own
            states.append(after)
            infos.append(info)
        return grads, tuple(states), _of_all(infos)

    return GradientEstimator(init, estimate)


def _of_all(infos: list[Info]) -> Info:
    return Info(
        loss=jnp.sum(jnp.stack([info.loss for info in infos])),
        evaluations=1 + jnp.max(jnp.stack([info.evaluations for info in infos])),
        residuals=tuple(info.residuals for info in infos),
        failures=sum((info.failures for info in infos), start=()),
    )
