"""Weights to carry credit down, in the place of the transposed forward ones.

What a layer has one of for each unit, such as a bias or a gain γ, is not drawn: leaves of fewer than two axes are
ones in B. Biases are never fed back.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.nn import initializers

from nl_jax.base import Array, EstimatorInitFn, Key, Params, State
from nl_jax.checks import typed_key

Initializer = Callable[..., Array]
"""`initializer(key, shape, dtype) -> array`, as `jax.nn.initializers` makes them."""


class Feedback(NamedTuple):
    """A way to come by feedback weights.

    Attributes:
      init: `init(key, params) -> state`.
      weights: `weights(state, params) -> B`, a tree like `params`.
      update: `update(state, grads) -> state`, given what the forward weights are taught.
    """

    init: EstimatorInitFn
    weights: Callable[[State, Params], Params]
    update: Callable[[State, Params], State]


def random(weight_init: Initializer = initializers.lecun_normal()) -> Feedback:
    """B drawn once and kept (Lillicrap et al. 2016).

    Args:
      weight_init: scheme for B, of the shape of the forward weight; by default what `nl.connections` draw theirs by,
        so that credit is of its usual size. It sees no weight.
    """
    return Feedback(lambda key, params: _drawn(weight_init, key, params), lambda state, params: state, _kept)


def sign_symmetric() -> Feedback:
    """B = sign(W)/√(fan in), one bit of each forward weight (uSF of Liao et al. 2016)."""

    def weights(state: State, params: Params) -> Params:
        del state
        return jax.tree.map(lambda w: jnp.sign(w) / math.sqrt(_fan_in(w.shape)), params)

    return Feedback(lambda key, params: (), weights, _kept)


def kolen_pollack(
    optimizer: optax.GradientTransformation, weight_init: Initializer = initializers.lecun_normal()
) -> Feedback:
    """B drawn at random, then changed as W is: ΔB = −η ∂L/∂W − λ B (Kolen & Pollack 1994; Akrout et al. 2019).

    If W is changed by the same optimizer, whose step decays weights by a factor 1 − λ, then W − B decays by it as well,
    and feedback alignment becomes backprop, though neither weight is ever sent to the other's place.

    Args:
      optimizer: what changes B; the learner's own, with decay, such as `optax.adamw(1e-3, weight_decay=1e-1)`. Without
        decay W − B stays as it is. It must make its step of the gradients alone, but for the decay.
      weight_init: scheme for the first B, as in `random`.
    """

    def init(key: Key, params: Params) -> State:
        drawn = _drawn(weight_init, key, params)
        return drawn, optimizer.init(drawn)

    def update(state: State, grads: Params) -> State:
        weights, inner = state
        updates, inner = optimizer.update(grads, inner, weights)
        return optax.apply_updates(weights, updates), inner

    return Feedback(init, lambda state, params: state[0], update)


def _kept(state: State, grads: Params) -> State:
    del grads
    return state


def _drawn(weight_init: Initializer, key: Key, params: Params) -> Params:
    typed_key(key)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(tree, [_leaf(weight_init, k, leaf) for k, leaf in zip(keys, leaves, strict=True)])


def _leaf(weight_init: Initializer, key: Key, leaf: Any) -> Array:
    return weight_init(key, leaf.shape, leaf.dtype) if len(leaf.shape) > 1 else jnp.ones(leaf.shape, leaf.dtype)


def _fan_in(shape: tuple[int, ...]) -> int:
    return math.prod(shape[:-1])
