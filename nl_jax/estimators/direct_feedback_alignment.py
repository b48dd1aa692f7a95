"""Direct feedback alignment: the highest layer's credit goes to every layer at once."""

import math
from collections.abc import Callable, Collection, Mapping

import jax
import jax.numpy as jnp
from jax.nn import initializers

from nl_jax.base import ActivationFn, Array, Batch, Connection, GradientEstimator, Info, Key, Objective, Params, State
from nl_jax.checks import layered, per_example, typed_key
from nl_jax.estimators.example import shapes_of
from nl_jax.estimators.feedback import Initializer
from nl_jax.estimators.sweep import through_activation
from nl_jax.propagation import Site, local, survey


def direct_feedback_alignment(
    objective: Objective, example: Batch, *, weight_init: Initializer = initializers.lecun_normal()
) -> GradientEstimator:
    """Every hidden layer is told the highest one's error: δ^l = (B^l e) f'(ν^l), ∂E/∂W^l ≈ δ^l x^{l−1}.

    With B^l fixed and random and e = ∂L/∂ν of the highest layer (Nøkland 2016). Layers here are those that have
    parameters, whatever connects them; each learns by the local derivative of its own connection. What lies above the
    highest is differentiated as it is. Where the loss reads a hidden layer directly, that exact credit is added.

    The highest layer gets its exact gradient, with the scale of `jax.grad`; hidden ones get an estimate which is not
    unbiased. A parameter used between layers or inside an activation is credited through the weights it feeds.

    Args:
      objective: a per-example objective that takes `propagate`.
      example: a batch of which only shapes are read, arrays or `jax.ShapeDtypeStruct`: B^l joins all values
        of a layer, of a convolution every position. Other batches may be of other sizes.
      weight_init: scheme for B^l, of shape [units of layer l, units of the highest], as a forward weight that joins
        the two has. By default of its usual size.

    Returns:
      An estimator whose state is {layer: B^l}, and which uses its key in `init` alone.

    Raises:
      ValueError: if the objective takes no `propagate`; when run, for layers that share a name or have another
        number of units than on the example.

    >>> import jax, jax.numpy as jnp, nl_jax as nl
    >>> net = nl.mlp([3, 5, 4, 2], activation=nl.activations.tanh())
    >>> batch = jnp.ones([6, 3]), jnp.zeros(6, int)
    >>> estimator = direct_feedback_alignment(nl.supervised(net.apply, nl.losses.cross_entropy), batch)
    >>> params = net.init(jax.random.key(0))
    >>> state = estimator.init(jax.random.key(1), params)
    >>> {layer: B.shape for layer, B in state.items()}
    {'hidden1': (5, 2), 'hidden2': (4, 2)}
    >>> jax.jit(estimator.estimate)(jax.random.key(2), state, params, batch)[0]["hidden1"]["weight"].shape
    (3, 5)
    """
    layered("direct_feedback_alignment", objective)

    def init(key: Key, params: Params) -> State:
        typed_key(key)
        order: list[str] = []

        def shapes(params: Params, batch: Batch) -> dict[str, Array]:
            nus = local(objective)(params, batch).preactivations
            order.extend(_upwards(nus, survey(objective)(params, batch)[1]))
            return nus

        nus = jax.eval_shape(shapes, params, shapes_of(example, params))
        *hidden, top = order
        keys = jax.random.split(key, len(order))
        return {
            name: weight_init(k, (_units(nus[name]), _units(nus[top])), nus[name].dtype)
            for name, k in zip(hidden, keys, strict=False)
        }

    def estimate(key: Key, state: State, params: Params, batch: Batch) -> tuple[Params, State, Info]:
        del key
        losses, nus, pull = local(objective)(params, batch)
        per_example(losses)
        _, sites = survey(objective)(params, batch)
        own = _own_credit(objective, params, batch)(nus)
        *hidden, top = _upwards(nus, sites)
        e = own[top].reshape(len(losses), -1)
        credit = {top: own[top]}
        for name in hidden:
            _fits(name, state[name], nus[name], e)
            told = (e @ state[name].T).reshape(nus[name].shape)
            credit[name] = own[name] + through_activation(sites[name], nus[name], told)
        grads = pull(jnp.full_like(losses, 1 / len(losses)), credit)
        return grads, state, Info(jnp.mean(losses), jnp.int32(3))

    return GradientEstimator(init, estimate)


def _upwards(learned: Collection[str], sites: Mapping[str, Site]) -> list[str]:
    """The layers that learn, in the order of propagation."""
    return [name for name in sites if name in learned]


def _own_credit(
    objective: Objective, params: Params, batch: Batch
) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
    """∂L/∂ν of each layer that learns, as far as it reaches the loss by no other such layer."""

    def mean_loss(nus: Mapping[str, Array]) -> Array:
        def propagate(
            name: str, connection: Connection, activation: ActivationFn, params: Params, /, *inputs: Array
        ) -> Array:
            return activation(nus[name] if name in nus else connection(params, *inputs))

        return jnp.mean(objective(params, batch, propagate=propagate))

    return jax.grad(mean_loss)


def _units(nu: Array | jax.ShapeDtypeStruct) -> int:
    return math.prod(nu.shape[1:])


def _fits(name: str, weight: Array, nu: Array, e: Array) -> None:
    expected = _units(nu), e.shape[1]
    if weight.shape != expected:
        raise ValueError(
            f"layer {name!r}: B has shape {weight.shape}, as the example has it, but [units, units of the highest] are "
            f"{expected} on this batch: give an example of the shapes of the batches, whatever their size"
        )
