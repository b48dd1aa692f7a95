"""Direct feedback alignment: the highest layer's credit goes to every layer at once."""

import functools
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax.nn import initializers

from nl_jax.base import ActivationFn, Array, Batch, Connection, GradientEstimator, Info, Key, Objective, Params, State
from nl_jax.checks import layered, per_example, typed_key
from nl_jax.estimators.drawing import Initializer
from nl_jax.estimators.example import shapes_of
from nl_jax.estimators.sweep import through_activation
from nl_jax.propagation import Local, local, survey
from nl_jax.tracing import if_mapped


def direct_feedback_alignment(
    objective: Objective, example: Batch, *, weight_init: Initializer = initializers.lecun_normal()
) -> GradientEstimator:
    """Every hidden layer is told the highest one's error: δ^l = (B^l e) f'(ν^l), ∂E/∂W^l ≈ δ^l x^{l−1}.

    With B^l fixed and random and e = ∂L/∂ν of the highest layer, or of all that no other one reads, such as the heads
    of a network with several outputs (Nøkland 2016). Layers here are those that have parameters, whatever connects
    them; each learns by the local derivative of its own connection. What lies above the highest is differentiated as
    it is. Where the loss reads a hidden layer directly, that exact credit is added.

    The highest layer gets its exact gradient, with the scale of `jax.grad`; hidden ones get an estimate which is not
    unbiased. A parameter used between layers or inside an activation is credited through the weights it feeds. Under
    `nl.partition` layers are those that have parameters of this part: its highest one's error is the exact one.

    Args:
      objective: a per-example objective that takes `propagate`.
      example: a batch of which only shapes are read, arrays or `jax.ShapeDtypeStruct`: B^l joins all values
        of a layer, of a convolution every position. Other batches may be of other sizes.
      weight_init: scheme for B^l, of shape [units of layer l, units of the highest], as a forward weight that joins
        the two has. By default of its usual size.

    Returns:
      An estimator whose state is {layer: B^l}, and which uses its key in `init` alone.

    Raises:
      ValueError: if the objective takes no `propagate`; when run, if no layer depends on the parameters, or for
        layers that share a name, whose first axis is not the batch, or that have another number of units than on the
        example.

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
        hidden: list[str] = []

        def shapes(params: Params, batch: Batch) -> dict[str, Array]:
            nus = _learned(objective, params, batch)[1]
            hidden.extend(name for name in nus if _is_read(name, objective, params, batch, nus))
            return nus

        nus = jax.eval_shape(shapes, params, shapes_of(example, params))
        told = sum(_units(nu) for name, nu in nus.items() if name not in hidden)
        keys = jax.random.split(key, len(nus))
        return {
            name: weight_init(k, (_units(nus[name]), told), nus[name].dtype)
            for name, k in zip(hidden, keys, strict=False)
        }

    def estimate(key: Key, state: State, params: Params, batch: Batch) -> tuple[Params, State, Info]:
        del key
        losses, nus, pull = _learned(objective, params, batch)
        _, sites = survey(objective)(params, batch)
        credit = _own_credit(objective, params, batch)(nus)
        e = jnp.concatenate([credit[name].reshape(len(losses), -1) for name in nus if name not in state], axis=1)
        for name, weight in state.items():
            _fits(name, weight, nus[name], e)
            told = (e @ weight.T).reshape(nus[name].shape)
            credit[name] = credit[name] + through_activation(sites[name], nus[name], told)
        grads = pull(jnp.full_like(losses, 1 / len(losses)), credit)
        return grads, state, Info(jnp.mean(losses), jnp.int32(3))

    return GradientEstimator(init, estimate)


def _learned(objective: Objective, params: Params, batch: Batch) -> Local:
    """The program's run, its layers that learn of one ν an example; ValueError if others do, or none."""
    run = local(objective)(params, batch)
    examples = len(per_example(run.outputs))
    if not run.preactivations:
        raise ValueError("direct_feedback_alignment: no layer depends on the parameters: hand them to propagate")
    for name, nu in run.preactivations.items():
        if nu.shape[:1] != (examples,):
            raise ValueError(
                f"layer {name!r} has a pre-activation of shape {nu.shape}, whose first axis is not the batch of "
                f"{examples}: errors are sent example by example; give every layer the whole batch"
            )
    return run


def _is_read(name: str, objective: Objective, params: Params, batch: Batch, nus: Mapping[str, Array]) -> bool:
    """Whether another layer that learns depends on this one's ν."""
    readers: set[str] = set()

    def watch(nu: Array) -> None:
        def propagate(
            layer: str, connection: Connection, activation: ActivationFn, params: Params, /, *inputs: Array
        ) -> Array:
            made = connection(params, *inputs)
            if layer in nus and layer != name:
                if_mapped(made, functools.partial(readers.add, layer))
            return activation({**nus, name: nu}.get(layer, made))

        objective(params, batch, propagate=propagate)

    jax.vmap(watch)(nus[name][None])
    return bool(readers)


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
