"""Direct feedback alignment: sends the highest layer's error to every layer."""

import itertools
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax.nn import initializers

from nl_jax._core.dependence import reached
from nl_jax._core.deprecation import deprecated_argument
from nl_jax._core.keys import layer_key
from nl_jax._core.require import layered, per_example, typed_key
from nl_jax.base import Array, Batch, GradientEstimator, Info, Initializer, Key, LayerCredit, Objective, Params, State
from nl_jax.estimators.feedback.received import steps_of_their_own
from nl_jax.propagation import Local, Site, interpret, local, loops_around, record
from nl_jax.propagation.interpretation import SEPARATOR


def direct_feedback_alignment(
    objective: Objective, example: Batch | None = None, *, weight_init: Initializer = initializers.lecun_normal()
) -> GradientEstimator:
    """Sends the highest layer's error to every hidden layer: δ^l = (B^l e) f'(ν^l), ∂E/∂W^l ≈ δ^l x^{l−1}.

    B^l is fixed and random. e = ∂L/∂ν of the highest layer, or of all layers that no other layer reads, such as the
    heads of a network with several outputs (Nøkland 2016). Layers here are those with parameters, however they are
    connected; each learns by the local derivative of its own connection. Operations above the highest layer are
    differentiated exactly. If the loss reads a hidden layer directly, that exact credit is added.

    In a loop every step receives an error. From a highest layer in the same loop it is the error of the same step; from
    one outside all loops it is the same for every step; from one in another loop it is the sum over that loop's steps.
    In a loop over depth, where parameters are stacked, every step has its own B^l.

    The highest layer receives its exact gradient, on the scale of `jax.grad`; the estimate for hidden layers is biased.
    A parameter used between layers or inside an activation receives credit through the weights it feeds. Under
    `nl.partition`, layers are those with parameters of this part; the error of the highest of them is exact.

    B^l has a row for each value of a layer, in a convolution for every position, so its shape is known only from a
    batch. The state therefore keeps a seed, from which every estimate draws the same B^l again: B^l is a function of
    the seed and the layer's name.

    Args:
      objective: a per-example objective that takes `propagate`.
      example: deprecated and without effect; leave it out.
      weight_init: initializer of B^l, of shape [units of layer l, units of the highest], that of a forward weight
        between the two; axes of steps with their own B^l come first. The default gives B^l a forward weight's usual
        size.

    Returns:
      An estimator whose state is the seed, uint32 of shape [2]. It uses its key only in `init`. A state {layer: B^l} of
      your own, with an entry for every layer that another layer reads, is used instead of drawn weights.
      `nl.direct_feedback_weights` shows the drawn ones in this form.

    Raises:
      ValueError: if the objective takes no `propagate`; when run, if no layer depends on the parameters or every layer
        is read by another, if layers share a name, if a layer's first axis is not the batch, or if a state of your own
        has other layers or shapes.

    >>> import jax, jax.numpy as jnp, nl_jax as nl
    >>> net = nl.mlp([3, 5, 4, 2], activation=nl.activations.tanh())
    >>> batch = jnp.ones([6, 3]), jnp.zeros(6, int)
    >>> estimator = direct_feedback_alignment(nl.supervised(net.apply, nl.losses.cross_entropy))
    >>> params = net.init(jax.random.key(0))
    >>> state = estimator.init(jax.random.key(1), params)
    >>> jax.jit(estimator.estimate)(jax.random.key(2), state, params, batch)[0]["hidden1"]["weight"].shape
    (3, 5)
    """
    layered("direct_feedback_alignment", objective)
    if example is not None:
        deprecated_argument(
            "direct_feedback_alignment", "example", "leave it out, the shapes of B are those of each batch"
        )

    def init(key: Key, params: Params) -> State:
        del params
        typed_key(key)
        return jax.random.bits(key, (2,), jnp.uint32)  # a seed: a key never lives in a state

    def told(state: State, params: Params, batch: Batch) -> tuple[Array, dict[str, Array], Callable[..., Params]]:
        """Returns the losses, δ of the mean loss by layer, and the function that turns δ into gradients."""
        losses, nus, _, pull = _learned(objective, params, batch)
        credit = jax.grad(lambda nus: jnp.mean(_held(objective, params, batch, nus)[0]))(nus)
        hidden = _read_by_others(objective, params, batch, nus)
        heads = [name for name in nus if name not in hidden]
        own = steps_of_their_own(objective, params, batch)
        weights = _given(state, hidden) if isinstance(state, Mapping) else _drawn(weight_init, state, nus, hidden, own)
        errors = {}
        for name, weight in weights.items():
            e = _heard(name, {head: credit[head] for head in heads})
            errors[name] = _sent(name, weight, own[name], e, nus[name])
        _, sent = interpret(objective, _through_activation)(params, batch, errors)
        return losses, credit | {name: credit[name] + delta for name, delta in sent.items()}, pull

    def estimate(key: Key, state: State, params: Params, batch: Batch) -> tuple[Params, State, Info]:
        del key
        losses, deltas, pull = told(state, params, batch)
        grads = pull(jnp.full_like(losses, 1 / len(losses)), deltas)
        return grads, state, Info(jnp.mean(losses), jnp.int32(3))

    def credit(key: Key, state: State, params: Params, batch: Batch) -> dict[str, LayerCredit]:
        del key
        losses, deltas, _ = told(state, params, batch)
        axons = record(objective)(params, batch)[1]
        return {name: LayerCredit(axons[name], None, delta * len(losses)) for name, delta in deltas.items()}

    return GradientEstimator(init, estimate, credit)


def direct_feedback_weights(
    objective: Objective,
    seed: Array,
    params: Params,
    batch: Batch,
    *,
    weight_init: Initializer = initializers.lecun_normal(),
) -> dict[str, Array]:
    """Returns {layer: B^l}, the weights that `direct_feedback_alignment` draws from the seed in its state.

    Args:
      objective, weight_init: as given to `direct_feedback_alignment`.
      seed: the estimator's state, uint32 of shape [2].
      params: the parameters.
      batch: a batch, of arrays or `jax.ShapeDtypeStruct`, of which only the shapes are read.

    Raises:
      ValueError: as in `direct_feedback_alignment`.

    >>> import jax, jax.numpy as jnp, nl_jax as nl
    >>> net = nl.mlp([3, 5, 4, 2], activation=nl.activations.tanh())
    >>> objective, params = nl.supervised(net.apply, nl.losses.cross_entropy), net.init(jax.random.key(0))
    >>> seed = direct_feedback_alignment(objective).init(jax.random.key(1), params)
    >>> B = direct_feedback_weights(objective, seed, params, (jnp.ones([6, 3]), jnp.zeros(6, int)))
    >>> {layer: weight.shape for layer, weight in B.items()}
    {'hidden1': (5, 2), 'hidden2': (4, 2)}
    """
    nus = jax.eval_shape(lambda params, batch: _learned(objective, params, batch).responses, params, batch)
    hidden = _read_by_others(objective, params, batch, nus)
    return _drawn(weight_init, seed, nus, hidden, steps_of_their_own(objective, params, batch))


def _drawn(
    weight_init: Initializer,
    seed: Array,
    nus: Mapping[str, Array | jax.ShapeDtypeStruct],
    hidden: list[str],
    own: Mapping[str, tuple[int, ...]],
) -> dict[str, Array]:
    """Draws B of the hidden layers, each from the seed and its name: the same in every estimate."""
    key = jax.random.wrap_key_data(seed, impl="threefry2x32")  # of which two words are a key, whatever the default
    told = sum(_units(name, nu) for name, nu in nus.items() if name not in hidden)

    def one(name: str) -> Array:
        steps, shape = tuple(nus[name].shape[axis] for axis in own[name]), (_units(name, nus[name]), told)
        draw = lambda key: weight_init(key, shape, nus[name].dtype)
        for _ in steps:  # an initializer may scale by the whole shape, which the steps are no part of
            draw = jax.vmap(draw)
        return draw(jax.random.split(layer_key(key, name), steps) if steps else layer_key(key, name))

    return {name: one(name) for name in hidden}


def _given(weights: Mapping[str, Array], hidden: list[str]) -> Mapping[str, Array]:
    """Returns the weights of a user; ValueError unless they are those of the hidden layers."""
    if set(weights) != set(hidden):
        raise ValueError(
            f"direct_feedback_alignment: the state has B of the layers {', '.join(weights) or 'none'}, but those that "
            f"another layer reads are {', '.join(hidden) or 'none'}: give each of these its B, or the state of init"
        )
    return weights


def _learned(objective: Objective, params: Params, batch: Batch) -> Local:
    """Runs the program; ValueError unless it has learning layers, each with one pre-activation per example."""
    run = local(objective)(params, batch)
    examples = len(per_example(run.outputs))
    if not run.responses:
        raise ValueError("direct_feedback_alignment: no layer depends on the parameters: pass them to propagate")
    for name, nu in run.responses.items():
        if nu.shape[loops_around(name) :][:1] != (examples,):
            raise ValueError(
                f"layer {name!r} has a pre-activation of shape {nu.shape[loops_around(name) :]}, whose first axis is "
                f"not the batch of {examples}: errors are sent example by example; give every layer the whole batch"
            )
    return run


def _held(
    objective: Objective, params: Params, batch: Batch, nus: Mapping[str, Array]
) -> tuple[Array, dict[str, Array]]:
    """Runs the program with given pre-activations, and also returns the pre-activations that its layers compute.

    ∂L/∂ν of a layer is then the part that reaches the loss through no other learning layer.
    """

    def layer(site: Site, given: Array | None) -> tuple[Array, Array]:
        made = site.preactivation()
        return site.activation(made if given is None else given), made

    return interpret(objective, layer)(params, batch, nus)


def _read_by_others(
    objective: Objective, params: Params, batch: Batch, nus: Mapping[str, Array | jax.ShapeDtypeStruct]
) -> list[str]:
    """Returns the layers whose ν another learning layer depends on; ValueError if these are all layers."""

    def made(batch: Batch, *values: Array) -> dict[str, Array]:
        found = _held(objective, params, batch, dict(zip(nus, values, strict=True)))[1]
        return {name: found[name] for name in nus}

    sources = reached(made, batch, *nus.values())  # argument 1 + i is the i-th layer
    # A layer of a loop that depends on itself is read by its later steps.
    hidden = [name for i, name in enumerate(nus) if any(1 + i in found for found in sources.values())]
    if len(hidden) == len(nus):
        raise ValueError(
            f"direct_feedback_alignment: every layer is read by another, {', '.join(hidden)} in turn, and none is "
            "the highest: let an output layer read the loop's results"
        )
    return hidden


def _heard(name: str, errors: Mapping[str, Array]) -> Array:
    """Returns the highest layers' errors as a layer receives them, [steps, batch, units]; size 1 for shared steps."""
    heard = [_told_by(head, e, name) for head, e in errors.items()]
    steps = jnp.broadcast_shapes(*(e.shape[:-1] for e in heard))  # a head outside a loop tells all its steps the same
    return jnp.concatenate([jnp.broadcast_to(e, (*steps, e.shape[-1])) for e in heard], axis=-1)


def _told_by(head: str, e: Array, name: str) -> Array:
    """Returns what one highest layer tells a layer: its own error at each step of loops that the two share."""
    loops, theirs = loops_around(name), loops_around(head)
    scopes = zip(name.split(SEPARATOR)[:-1], head.split(SEPARATOR)[:-1], strict=False)
    common = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], scopes))
    e = e.sum(axis=tuple(range(common, theirs)))
    return e.reshape(*e.shape[:common], *[1] * (loops - common), e.shape[common], -1)


def _sent(name: str, weight: Array, own: tuple[int, ...], e: Array, nu: Array) -> Array:
    """Computes B e, in the shape of ν."""
    loops = loops_around(name)
    expected = *(nu.shape[axis] for axis in own), _units(name, nu), e.shape[-1]
    if weight.shape != expected:
        raise ValueError(
            f"layer {name!r}: the state's B has shape {weight.shape}, but [units, units of the highest] are {expected} "
            "on this batch: give B this shape, or the state of init, which draws it for every batch"
        )
    steps = [nu.shape[axis] if axis in own else 1 for axis in range(loops)]
    sent = jnp.matmul(e, jnp.swapaxes(weight.reshape(*steps, *expected[-2:]), -1, -2))
    return jnp.broadcast_to(sent, (*nu.shape[: loops + 1], expected[-2])).reshape(nu.shape)


def _through_activation(site: Site, told: Array | None) -> tuple[Array, Array | None]:
    """Computes δ = z f'(ν) of the received error, f' from the value if the activation defines it (seed 003 eq. 10)."""
    nu = site.preactivation()
    axons, to_preactivation = jax.vjp(site.activation, nu)
    if told is None:
        return axons, None
    derivative = getattr(site.activation, "derivative", None)
    return axons, to_preactivation(told)[0] if derivative is None else (told * derivative(axons)).astype(nu.dtype)


def _units(name: str, nu: Array | jax.ShapeDtypeStruct) -> int:
    return math.prod(nu.shape[loops_around(name) + 1 :])
