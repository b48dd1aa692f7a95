"""Feedback weights that carry credit down instead of the transposed forward weights.

Parameters with one value per unit, such as a bias or a gain γ, are not drawn: leaves of fewer than two axes start as
ones in B, or are their own signs where B is made of signs. Biases are never fed back.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jax.nn import initializers

from nl_jax._core.keys import own_key
from nl_jax._core.require import gradient_transformation, typed_key
from nl_jax.base import Array, EstimatorInitFn, Initializer, Key, Params, State
from nl_jax.estimators.feedback.drawing import drawn, normal_like
from nl_jax.estimators.feedback.feedback_path import Find, Seen
from nl_jax.propagation.loops import differentiable

_LECUN = initializers.lecun_normal()

Look = Callable[[Find, Params, Any], dict[str, Any]]


class UpdateFn(Protocol):
    """`update(key, state, params, grads, look) -> state`, called after every estimate.

    It is given the forward weights, their gradient estimate, and a function to inspect the layers:
    `look(find, B, extra)` runs the program once and returns what `find` returns for each layer, which sees B beside its
    weights (`feedback_path.beside`).
    """

    def __call__(self, key: Key, state: State, params: Params, grads: Params, look: Look) -> State: ...


class Feedback(NamedTuple):
    """A source of feedback weights.

    Attributes:
      init: `init(key, params) -> state`.
      weights: `weights(state, params) -> B`, a tree like `params`.
      update: `update(key, state, params, grads, look) -> state`, the learning of B from one estimate.
      evaluations: the cost of `update`, in evaluations of the objective.
      by_fan_in: whether the scale of `weights` is 1/√(fan in) by a shape [inputs, units], to be corrected for other
        layouts (`scale.scaled`).
    """

    init: EstimatorInitFn
    weights: Callable[[State, Params], Params]
    update: UpdateFn
    evaluations: int = 0
    by_fan_in: bool = False


def random(weight_init: Initializer | None = None) -> Feedback:
    """Draws B once and keeps it (Lillicrap et al. 2016).

    Uniform feedback, which sends the same credit to all units below, is `random(jax.nn.initializers.constant(b))`.

    Args:
      weight_init: initializer of B, in the shape of the forward weight, or of a stack of them in a loop over depth. By
        default LeCun's for each layer's own fan in, as in `nl.connections`, so that credit has its usual size. It does
        not depend on the forward weights' values.
    """
    init = functools.partial(drawn, weight_init or _LECUN)
    return Feedback(init, lambda state, params: state, _kept, by_fan_in=weight_init is None)


def sign_symmetric() -> Feedback:
    """Sets B = sign(W)/√(fan in), one bit of each forward weight (uSF of Liao et al. 2016)."""

    def weights(state: State, params: Params) -> Params:
        del state
        return jax.tree.map(lambda w: jnp.sign(w) / math.sqrt(math.prod(w.shape[:-1])), params)

    return Feedback(lambda key, params: (), weights, _kept, by_fan_in=True)


def sign_concordant(weight_init: Initializer | None = None) -> Feedback:
    """Sets B = |M| sign(W), one bit of each forward weight, with magnitudes M drawn once (frSF of Liao et al. 2016).

    Args:
      weight_init: initializer of M, as in `random`.
    """

    def weights(state: State, params: Params) -> Params:
        return jax.tree.map(lambda m, w: jnp.abs(m) * jnp.sign(w), state, params)

    init = functools.partial(drawn, weight_init or _LECUN)
    return Feedback(init, weights, _kept, by_fan_in=weight_init is None)


def kolen_pollack(optimizer: optax.GradientTransformation, weight_init: Initializer = _LECUN) -> Feedback:
    """Draws B at random, then updates it like W: ΔB = −η ∂L/∂W − λ B (Kolen & Pollack 1994; Akrout et al. 2019).

    If the same optimizer changes W, and its step decays weights by a factor 1 − λ, then W − B decays by this factor as
    well, and feedback alignment becomes backprop. Neither weight is ever copied to the other.

    Args:
      optimizer: optimizer of B; the learner's own, with decay, such as `optax.adamw(1e-3, weight_decay=1e-1)`. Without
        decay W − B stays constant. Apart from the decay, its step must depend on the gradients alone. W must be updated
        as often as B, which takes one step for every estimate: within `nl.average`, B takes several while W takes one.
      weight_init: initializer of the first B, in the shape of the forward weight. The default takes all axes but the
        last for inputs. For stacks of weights over depth give `jax.nn.initializers.lecun_normal(batch_axis=0)`, for
        weights [units, inputs] `lecun_normal(in_axis=-1, out_axis=-2)`, or a function of the shape that chooses.

    Raises:
      ValueError: if `optimizer` is not one of optax's.
    """
    gradient_transformation(optimizer)

    def update(key: Key, state: State, params: Params, grads: Params, look: Look) -> State:
        del key, params, look
        return _stepped(optimizer, state, grads)

    return Feedback(_init_learned(optimizer, weight_init), lambda state, params: state[0], update)


def weight_mirror(optimizer: optax.GradientTransformation, weight_init: Initializer = _LECUN) -> Feedback:
    """Draws B at random, then trains it on noise sent through W: ΔB = η ξ yᵀ − λ B with y = W ξ (Akrout et al. 2019).

    After each estimate every connection receives ξ ~ N(0, I) instead of its inputs, drawn for each example. y is its
    output minus its output for zero inputs (its bias). As E ξ yᵀ = Wᵀ, B aligns with W, and converges to W if η = λ. No
    weight is read, only axons.

    In general, −ξ yᵀ is the gradient of −⟨B ξ, y⟩ with respect to B, for any connection that is linear in its inputs.
    It is averaged over examples and over the positions of a convolution (all axes of y but the last, its channels).
    Each of several inputs has its own noise.

    Args:
      optimizer: optimizer of B for that gradient, with decay, without which B grows without bound: for η = λ = 0.01
        `optax.chain(optax.add_decayed_weights(1.0), optax.sgd(0.01))`.
      weight_init: initializer of the first B, in the shape of the forward weight. The default takes all axes but the
        last for inputs. For stacks of weights over depth give `jax.nn.initializers.lecun_normal(batch_axis=0)`, for
        weights [units, inputs] `lecun_normal(in_axis=-1, out_axis=-2)`, or a function of the shape that chooses.

    Raises:
      ValueError: if `optimizer` is not one of optax's.
    """
    gradient_transformation(optimizer)

    def agreement(layer: Seen, key: Key) -> Array | None:
        """Computes ⟨B ξ, y⟩ of one layer, averaged over examples and positions."""
        if not any(map(differentiable, layer.inputs)):
            return None
        noise = normal_like(own_key(key, layer), layer.inputs)
        silence = jax.tree.map(lambda x: jnp.zeros_like(x) if differentiable(x) else x, noise)
        y = layer.connection(*noise) - layer.connection(*silence)
        places = math.prod(y.shape[:-1] or y.shape)  # a single unit may have no axis
        return jnp.sum(layer.companion(*noise) * jax.lax.stop_gradient(y)) / places

    def update(key: Key, state: State, params: Params, grads: Params, look: Look) -> State:
        del grads
        typed_key(key)

        def disagreement(weights: Params) -> Array:
            return -sum((a.astype(float) for a in look(agreement, weights, key).values()), start=jnp.asarray(0.0))

        return _stepped(optimizer, state, jax.grad(disagreement)(state[0]))

    return Feedback(_init_learned(optimizer, weight_init), lambda state, params: state[0], update, evaluations=3)


def _kept(key: Key, state: State, params: Params, grads: Params, look: Look) -> State:
    del key, params, grads, look
    return state


def _init_learned(optimizer: optax.GradientTransformation, weight_init: Initializer) -> EstimatorInitFn:
    def init(key: Key, params: Params) -> State:
        weights = drawn(weight_init, key, params)
        return weights, optimizer.init(weights)

    return init


def _stepped(optimizer: optax.GradientTransformation, state: State, grads: Params) -> State:
    weights, inner = state
    updates, inner = optimizer.update(grads, inner, weights)
    return optax.apply_updates(weights, updates), inner
