"""A hierarchy that is taught by local rules alone, and what it answers by itself."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nl_jax as nl
from nl_jax import rules
from nl_jax.base import Array, Key, Params, Propagate
from nl_jax.propagation import Site, interpret
from nl_jax.rules.stacked import Stacked, examples

SPREAD = 0.95  # of activity that goes on along the links at every step
STEPS = 60  # after which 5 % of what went in is still on its way
BEGINNINGS = 10  # of the layer of concepts, of which the one that fits best is kept
CHUNK = 250  # images run at once
SHARP = 0.04  # of cosines: memories that answer worse than the best by as much recall 1/e as strongly; by validation
_linear = nl.activations.identity()


class Size(NamedTuple):
    """Units of a hierarchy.

    Attributes:
      features: of either convolutional layer.
      memories: prototypes.
      neighbours: how many next best prototypes are linked to the best.
      updates: of either convolutional layer; the memories have three times as many.
      concepts: how many groups the memories are to form.
    """

    features: int = 64
    memories: int = 300
    neighbours: int = 3
    updates: int = 200
    concepts: int = 10


def above_mean(nu: Array) -> Array:
    """max(0, ν − its mean over a position's units): those silence one another (after Coates et al. 2011)."""
    return jax.nn.relu(nu - nu.mean(axis=-1, keepdims=True))


HEIGHTS = ("pixels", "low", "low and mid")
"""What the memories read: the image, the first layer, or the first and the second, by two connections."""


@functools.cache
def network(size: Size, height: str) -> nl.Network:
    """From an image [28, 28, 1] to "memory", whose units answer by the cosine of what they remember, and "links"."""
    c = nl.connections
    remembered: dict[str, list[tuple[str, int]]] = {
        "pixels": [("image", 28)], "low": [("narrow", 3)], "low and mid": [("narrow", 3), ("wide", 4)],
    }  # fmt: skip
    eye = [
        nl.Layer("low", None, c.standardised_conv(7, "image", channels=size.features), above_mean),
        nl.Layer("pooled", None, c.max_pool(2)),
        nl.Layer("narrow", None, c.max_pool(3)),
        nl.Layer("mid", None, c.standardised_conv(3, "pooled", channels=size.features), above_mean),
        nl.Layer("wide", None, c.max_pool(2)),
    ]
    eye = {"pixels": [], "low": eye[:3], "low and mid": eye}[height]
    sources = [c.standardised_conv(window, name, channels=size.memories) for name, window in remembered[height]]
    return nl.network(
        nl.Layer("image", (28, 28, 1)), *eye,
        nl.Layer("map", None, sources),
        nl.Layer("memory", None, c.flatten()),
        nl.Layer("links", size.memories, c.dense(bias=False)),
    )  # fmt: skip


class Mind(NamedTuple):
    """A hierarchy with what it learned.

    Attributes:
      plan: size and height, of which `network(*plan)` is made.
      params: of the network, and of "concept" [memories, concepts] and "recall" [memories, pixels].
    """

    plan: "Plan"
    params: Params


Plan = tuple[Size, str]


def taught(key: Key, size: Size, height: str, images: np.ndarray, *, features: bool, memory: bool) -> Mind:
    """Teaches a hierarchy layer by layer, from below; no layer hears of any other's error, and no label is used.

    Args:
      key: of weights and batches.
      size: of the layers.
      height: one of `HEIGHTS`.
      images: [examples, 784], in [0, 1].
      features: whether "low" and "mid" learn; otherwise their weights stay random.
      memory: whether the memories, their links and concepts learn; otherwise they stay random.
    """
    plan = size, height
    net = network(*plan)
    keys = jax.random.split(key, 8)
    params = {name: _unit(own) if name in ("low", "mid", "map") else own for name, own in net.init(keys[0]).items()}
    x = jnp.asarray(images).reshape(-1, 28, 28, 1)
    for name, learns, steps, batch, k in (
        ("low", features, size.updates, 20, keys[1]),
        ("mid", features, size.updates, 20, keys[2]),
        ("map", memory, 3 * size.updates, 100, keys[3]),
    ):
        if learns and name in params:
            params = _layer_taught(k, plan, params, name, x, steps, min(batch, len(x)))
    answers = _by_chunks(_memory, plan, params, x)
    if memory:
        joined = nl.local_learning(_links, {"links": rules.competitive_hebbian(neighbours=size.neighbours)})
        own = {"links": jax.tree.map(jnp.zeros_like, params["links"])}
        # One step at rate 1 from nothing: how often two are the best, over all images.
        change, _, _ = joined.estimate(keys[4], joined.init(keys[4], own), own, jnp.asarray(answers))
        params |= {"links": {"weight": -change["links"]["weight"]}}
        params |= {"concept": _concepts(keys[5], params, answers, size)}
    else:
        weight = jax.random.uniform(keys[4], (size.memories, size.memories))
        params |= {"links": {"weight": weight + weight.T}}
        params |= {"concept": _unit({"weight": jax.random.normal(keys[5], (size.memories, size.concepts))})}
    return Mind(plan, params | {"recall": _recall(answers, images, size)})


def _unit(own: Params) -> Params:
    """Weights of norm 1 by unit, over all connections."""
    parts = Stacked("", own)
    norm = jnp.linalg.norm(parts.flat(own)["weight"], axis=0)
    return jax.tree.map(lambda leaf: leaf / norm.reshape(*[1] * (leaf.ndim - 1), -1), own)


def _layer_taught(key: Key, plan: Plan, params: Params, name: str, x: Array, steps: int, batch: int) -> Params:
    """One layer by `spherical`: units begin as inputs that it has received, and come to be their groups' means."""
    below, learner = _learner(plan, name, steps)
    params_below = {layer: params[layer] for layer in below.shapes if layer in params}
    keys = jax.random.split(key, 4)
    own = _imprinted(keys[0], below, params_below, name, x[jax.random.choice(keys[1], len(x), (batch * 3,))])
    state = learner.init(keys[2], params_below | {name: own})
    state, _ = nl.fit(learner, keys[3], state, x, num_steps=steps, batch_size=batch, progress=False)
    return params | {name: state.params[name]}


@functools.cache  # so that all seeds share what is compiled
def _learner(plan: Plan, name: str, steps: int) -> tuple[nl.Network, nl.Learner]:
    """The network up to a layer, and what teaches this layer."""
    net = network(*plan)
    below = nl.network(*net.layers[: [layer.name for layer in net.layers].index(name) + 1])
    rule = nl.local_learning(below.apply, {name: rules.spherical()})
    return below, nl.learner(rule, optax.sgd(optax.linear_schedule(0.3, 0.0, steps)))


def _imprinted(key: Key, net: nl.Network, params: Params, name: str, x: Array) -> Params:
    """Weights that are inputs of the layer, of those that are not even."""

    def layer(site: Site, given: None) -> tuple[Array, Array | None]:
        axons = site.axons()
        return axons, examples(site, axons)[0] if site.name == name else None

    pre = interpret(net.apply, layer)(params, x)[1][name]
    parts = Stacked(name, params[name])
    norms = jnp.linalg.norm(pre, axis=1)
    units = parts.flat(params[name])["weight"].shape[1]
    chosen = jax.random.choice(key, len(pre), (units,), replace=False, p=norms > 0.7 * norms.max())
    return parts.parted(params[name], {"weight": (pre[chosen] / norms[chosen][:, None]).T})


def _links(params: Params, answers: Array, propagate: Propagate = nl.propagation.feedforward) -> Array:
    return propagate("links", lambda own, x: x @ own["weight"], _linear, params["links"], answers)


def settled(params: Params, answers: Array, propagate: Propagate = nl.propagation.feedforward) -> Array:
    """The best memory's activity, spread along the links until it rests: of norm 1, [batch, memories]."""
    winner = jax.nn.one_hot(jnp.argmax(answers, axis=1), answers.shape[1])
    links = params["links"]["weight"]
    share = links / jnp.maximum(links.sum(axis=1, keepdims=True), 1e-9)

    def step(activity: Array, _: None, propagate: Propagate) -> tuple[Array, None]:
        spread = lambda share, activity: SPREAD * (activity @ share) + (1 - SPREAD) * winner
        return propagate("spread", spread, _linear, share, activity), None

    activity, _ = nl.scan("settling", step, winner, None, propagate, length=STEPS)
    return activity / jnp.linalg.norm(activity, axis=1, keepdims=True)


def _concepts(key: Key, params: Params, answers: np.ndarray, size: Size) -> Params:
    """A layer of concepts on settled activity, by `spherical` again; of several beginnings the best fit is kept."""
    x = jnp.asarray(_by_chunks(_settled, None, params["links"], jnp.asarray(answers)))
    weights, fits = _groups(jax.random.split(key, BEGINNINGS), x, size.concepts)
    return {"weight": weights[jnp.argmax(fits)]}


@functools.partial(jax.jit, static_argnums=2)
@functools.partial(jax.vmap, in_axes=(0, None, None))
def _groups(key: Key, x: Array, units: int) -> tuple[Array, Array]:
    """Weights of so many units, and how well they fit."""
    rule = rules.spherical()

    def step(W: Array, _: None) -> tuple[Array, None]:
        change, _ = rule.change((), {"weight": W}, x, x @ W, None)
        return W + 0.5 * change["weight"], None

    W = jax.lax.scan(step, _spread_out(key, x, units), length=100)[0]
    return W, jnp.mean(jnp.max(x @ W, axis=1))


def _spread_out(key: Key, x: Array, units: int) -> Array:
    """Inputs far from one another for a beginning: each new one is drawn by how little the others answer it."""

    def draw(W: Array, at: tuple[Array, Key]) -> tuple[Array, None]:
        place, key = at
        unlike = jnp.maximum(1 - jnp.max(x @ W, axis=1), 1e-9)
        return W.at[:, place].set(x[jax.random.choice(key, len(x), p=unlike / unlike.sum())]), None

    keys = jax.random.split(key, units)
    return jax.lax.scan(draw, jnp.zeros((x.shape[1], units)), (jnp.arange(units), keys))[0]


def _recall(answers: np.ndarray, images: np.ndarray, size: Size) -> Params:
    """What each memory recalls: the mean image of those it answers best, the fixed point of the delta rule."""
    wins = np.eye(size.memories, dtype=np.float32)[answers.argmax(axis=1)]
    count = wins.sum(axis=0)[:, None]
    return {"weight": jnp.asarray(np.where(count > 0, wins.T @ images / np.maximum(count, 1), images.mean(axis=0)))}


class Answers(NamedTuple):
    """What a hierarchy says of images.

    Attributes:
      concept: the concept that answers best, [images].
      certainty: how well it does, at most 1.
      familiarity: how well the best memory does.
      recalled: the image that the memories recall, weighted by how well they answer, [images, pixels].
    """

    concept: np.ndarray
    certainty: np.ndarray
    familiarity: np.ndarray
    recalled: np.ndarray


def asked(mind: Mind, images: np.ndarray) -> Answers:
    """The hierarchy's own answers."""
    x = jnp.asarray(images).reshape(-1, 28, 28, 1)
    memory = _by_chunks(_memory, mind.plan, mind.params, x)
    concepts = _by_chunks(_settled, None, mind.params["links"], jnp.asarray(memory)) @ mind.params["concept"]["weight"]
    recalled = jax.nn.softmax(memory / SHARP, axis=1) @ mind.params["recall"]["weight"]
    return Answers(
        np.asarray(concepts.argmax(axis=1)), np.asarray(concepts.max(axis=1)), memory.max(axis=1), np.asarray(recalled)
    )


@functools.partial(jax.jit, static_argnums=0)
def _memory(plan: Plan, params: Params, x: Array) -> Array:
    net = network(*plan)
    return net.axons({name: params[name] for name in net.shapes if name in params}, x)["memory"]


@functools.partial(jax.jit, static_argnums=0)
def _settled(_: None, links: Params, answers: Array) -> Array:
    return settled({"links": links}, answers)


def _by_chunks(function: Callable[..., Array], static: Any, params: Params, x: Array) -> np.ndarray:
    return np.concatenate([np.asarray(function(static, params, x[i : i + CHUNK])) for i in range(0, len(x), CHUNK)])
