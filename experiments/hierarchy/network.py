"""A hierarchy whose layers learn one after another by local rules, and its answers.

image → low → mid                        features: convolutions, by competition
image, or low, or low and mid → memory   prototypes of images, by competition
memory → links                           which prototypes respond to the same images, by competitive Hebbian learning
memory → settled → concept               activity spreads along the links; its clusters, by competition
memory → recall                          the image that a prototype represents, by the delta rule
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nl_jax as nl
from nl_jax import rules
from nl_jax.base import Array, Forward, Key, Params, Propagate
from nl_jax.propagation import Site, feedforward, interpret, record
from nl_jax.rules.stacked import Stacked, examples

SPREAD = 0.9  # fraction of the activity that spreads along the links at every step; chosen on validation images
STEPS = 40  # of spreading, after which 1.5 % of the activity has not settled
BEGINNINGS = 30  # initialisations of the concepts; the best fit is kept
SHARPNESS = 0.04  # temperature of recall, a softmax over the prototypes' cosines; chosen on validation images
CHUNK = 250  # images processed at once

READS = {"pixels": ("image",), "low": ("low_view",), "low and mid": ("low_view", "mid_view")}
"""Layers that the prototypes read, by one connection from each."""


class Size(NamedTuple):
    """Layer sizes of a hierarchy.

    Attributes:
      features: units of each convolution.
      memories: prototypes.
      neighbours: number of runner-up prototypes that are linked to the best one.
      concepts: clusters of prototypes.
    """

    features: int = 16
    memories: int = 300
    neighbours: int = 3
    concepts: int = 10


class Hierarchy(NamedTuple):
    """A trained hierarchy.

    Attributes:
      size: of its layers.
      reads: what its prototypes read, a key of `READS`.
      params: of the layers of `network(size, reads)`, and of "links", "concept" and "recall".
    """

    size: Size
    reads: str
    params: Params


def above_mean(nu: Array) -> Array:
    """max(0, ν − mean of ν over the units at a position): units inhibit one another (after Coates et al. 2011)."""
    return jax.nn.relu(nu - nu.mean(axis=-1, keepdims=True))


@functools.cache
def features(size: Size) -> nl.Network:
    """Two convolutions and their pooled outputs: "low_view" [3, 3, features] and "mid_view" [4, 4, features]."""
    c = nl.connections
    return nl.network(
        nl.Layer("image", (28, 28, 1)),
        nl.Layer("low", None, c.standardised_conv(7, channels=size.features), above_mean),
        nl.Layer("pooled", None, c.max_pool(2)),
        nl.Layer("low_view", None, c.max_pool(3, "pooled")),
        nl.Layer("mid", None, c.standardised_conv(3, "pooled", channels=size.features), above_mean),
        nl.Layer("mid_view", None, c.max_pool(2)),
    )


@functools.cache
def network(size: Size, reads: str) -> nl.Network:
    """The features and, above them, "memory": each unit's response is the cosine of its input and its prototype."""
    below, c = features(size), nl.connections
    window = lambda name: (below.shapes[name][0], below.shapes[name][1])
    sources = [c.standardised_conv(window(name), name, channels=size.memories) for name in READS[reads]]
    return nl.network(below, nl.Layer("prototypes", None, sources), nl.Layer("memory", None, c.flatten()))


def resumed(net: nl.Network) -> Forward:
    """The network as a program of known axons (activity), {layer: axons}; known layers are not computed again."""

    def forward(params: Params, known: Mapping[str, Array], propagate: Propagate = feedforward) -> Array:
        def resume(name: str, *layer: Any) -> Array:
            return known[name] if name in known else propagate(name, *layer)

        return net.apply(params, known["image"], resume)

    return forward


def linear(name: str) -> Forward:
    """A program of one linear layer."""

    def forward(params: Params, x: Array, propagate: Propagate = feedforward) -> Array:
        return propagate(name, lambda own, x: x @ own["weight"], nl.activations.identity(), params[name], x)

    return forward


def settled(params: Params, memory: Array, propagate: Propagate = feedforward) -> Array:
    """The best prototype's activity, spread along the links until it settles: norm 1, [batch, memories]."""
    winner = jax.nn.one_hot(jnp.argmax(memory, axis=1), memory.shape[1])
    links = params["links"]["weight"]
    share = links / jnp.maximum(links.sum(axis=1, keepdims=True), 1e-9)  # of a unit's outgoing activity

    def step(activity: Array, _: None, propagate: Propagate) -> tuple[Array, None]:
        onward = lambda nu: SPREAD * nu + (1 - SPREAD) * winner
        return propagate("spreading", lambda share, activity: activity @ share, onward, share, activity), None

    activity, _ = nl.scan("settling", step, winner, None, propagate, length=STEPS)
    return activity / jnp.linalg.norm(activity, axis=1, keepdims=True)


@functools.cache  # so that all seeds share what is compiled
def lesson(size: Size, name: str, reads: str = "pixels") -> tuple[Forward, nl.Learner]:
    """The program in which a layer learns, and the learner that trains this layer alone."""
    competition = rules.spherical(), optax.linear_schedule(0.5, 0.0, 200)
    forward, (rule, rate) = {
        "low": (resumed(features(size)), competition),
        "mid": (resumed(features(size)), competition),
        "prototypes": (resumed(network(size, reads)), (rules.spherical(), 0.5)),
        "links": (linear("links"), (rules.competitive_hebbian(neighbours=size.neighbours), 1.0)),
        "concept": (linear("concept"), (rules.spherical(), 0.5)),
        "recall": (linear("recall"), (rules.delta(), 1.0)),
    }[name]
    return forward, nl.learner(nl.local_learning(forward, {name: rule}), optax.sgd(rate))


def taught(
    key: Key, images: np.ndarray, size: Size, reads: str, *, features_learn: bool = True, memory_learns: bool = True
) -> Hierarchy:
    """Trains a hierarchy layer by layer, from below. No layer receives another's error, and there are no labels.

    Args:
      key: for weights and batches.
      images: [examples, 784], in [0, 1].
      size: of the layers.
      reads: what the prototypes read, a key of `READS`.
      features_learn: whether "low" and "mid" learn; otherwise they stay random, each unit's weights of norm 1.
      memory_learns: the same for the prototypes. Links, concepts and recall always learn.
    """
    keys = jax.random.split(key, 7)
    params = {name: _of_norm_1(name, own) for name, own in network(size, reads).init(keys[0]).items()}
    known = {"image": jnp.asarray(images).reshape(-1, 28, 28, 1)}
    if reads != "pixels":
        if features_learn:
            for name, k in (("low", keys[1]), ("mid", keys[2])):
                params = _competed(k, lesson(size, name), params, name, known, num_steps=200, batch_size=20)
        known |= axons(size, reads, READS["low and mid"], params, known)
    if memory_learns:
        taught_by = lesson(size, "prototypes", reads)
        params = _competed(keys[3], taught_by, params, "prototypes", known, num_steps=20, batch_size=len(images))
    memory = axons(size, reads, ("memory",), params, known)["memory"]
    winner = jax.nn.one_hot(jnp.argmax(memory, axis=1), size.memories)
    pixels = jnp.concatenate([jnp.asarray(images), jnp.ones((len(images), 1))], axis=1)
    # One step from zero at rate 1 counts how often two prototypes are best together, and each together with each pixel.
    for name, data, units in (("links", memory, size.memories), ("recall", (winner, pixels), pixels.shape[1])):
        nothing = {name: {"weight": jnp.zeros((size.memories, units))}}
        params |= _fitted(keys[4], lesson(size, name)[1], nothing, data, num_steps=1)
    return Hierarchy(size, reads, params | _concepts(keys[5], settled(params, memory), size))


def _of_norm_1(name: str, own: Params) -> Params:
    """Weights of norm 1 per unit, over all connections."""
    if not own:
        return own
    norm = jnp.linalg.norm(Stacked(name, own).flat(own)["weight"], axis=0)
    return jax.tree.map(lambda leaf: leaf / norm.reshape(*[1] * (leaf.ndim - 1), -1), own)


def _fitted(key: Key, learner: nl.Learner, params: Params, data: Any, **how: Any) -> Params:
    return nl.fit(learner, key, learner.init(key, params), data, progress=False, **how)[0].params


def _competed(
    key: Key, taught_by: tuple[Forward, nl.Learner], params: Params, name: str, known: Mapping[str, Array], **how: Any
) -> Params:
    """Trains a layer: each unit starts at one of its inputs and moves to the mean direction of the inputs it wins."""
    forward, learner = taught_by
    of_examples, of_inputs, of_batches = jax.random.split(key, 3)
    examples_seen = min(3 * how["batch_size"], len(known["image"]))
    own = _begun(forward, name, examples_seen, (of_examples, of_inputs), params, known)
    return _fitted(of_batches, learner, params | {name: own}, known, **how)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _begun(
    forward: Forward, name: str, examples_seen: int, keys: tuple[Key, Key], params: Params, known: Mapping[str, Array]
) -> Params:
    """A layer's parameters when each unit has the direction of one of its inputs."""

    def layer(site: Site, given: None) -> tuple[Array, Array | None]:
        axons = site.axons()
        return axons, examples(site, axons)[0] if site.name == name else None

    of_examples, of_inputs = keys
    some = jax.random.choice(of_examples, len(known["image"]), (examples_seen,), replace=False)
    received = interpret(forward, layer)(params, {of: x[some] for of, x in known.items()})[1][name]
    parts = Stacked(name, params[name])
    units = parts.flat(params[name])["weight"].shape[1]
    return parts.parted(params[name], {"weight": _drawn(of_inputs, received, units)})


def _drawn(key: Key, x: Array, units: int) -> Array:
    """Directions of randomly drawn inputs, [inputs, units], without those of small norm."""
    norms = jnp.linalg.norm(x, axis=1)
    chosen = jax.random.choice(key, len(x), (units,), replace=False, p=(norms > 0.7 * norms.max()).astype(x.dtype))
    return (x[chosen] / norms[chosen][:, None]).T


def _far_apart(key: Key, x: Array, units: int) -> Array:
    """Draws inputs of norm 1; those unlike all earlier draws are more likely (Arthur and Vassilvitskii 2007)."""

    def draw(likeness: Array, key: Key) -> tuple[Array, Array]:
        chances = jnp.maximum(1 - likeness, 1e-9)
        chosen = x[jax.random.choice(key, len(x), p=chances / chances.sum())]
        return jnp.maximum(likeness, x @ chosen), chosen

    return jax.lax.scan(draw, jnp.zeros(len(x)), jax.random.split(key, units))[1].T


def _concepts(key: Key, x: Array, size: Size) -> Params:
    """Clusters of settled activity, the best fit of several initialisations."""
    found = nl.restarts(
        lesson(size, "concept")[1], key, lambda key: {"concept": {"weight": _far_apart(key, x, size.concepts)}}, x,
        score=lambda params: -jnp.mean(jnp.max(x @ params["concept"]["weight"], axis=1)),
        num_restarts=BEGINNINGS, num_steps=40, progress=False,
    )  # fmt: skip
    return found.best.params


class Answers(NamedTuple):
    """A hierarchy's answers about images.

    Attributes:
      concept: the concept with the strongest response, [images].
      certainty: that response, at most 1.
      familiarity: the best prototype's response, [images].
      recalled: the image that the prototypes recall, [images, pixels].
    """

    concept: np.ndarray
    certainty: np.ndarray
    familiarity: np.ndarray
    recalled: np.ndarray


def answers(hierarchy: Hierarchy, images: np.ndarray) -> Answers:
    """The hierarchy's own answers."""
    size, reads, params = hierarchy
    image = jnp.asarray(images).reshape(-1, 28, 28, 1)
    memory = axons(size, reads, ("memory",), params, {"image": image})["memory"]
    concept = linear("concept")(params, settled(params, memory))
    recalled = linear("recall")(params, jax.nn.softmax(memory / SHARPNESS, axis=1))
    recalled = recalled[:, :-1] / recalled[:, -1:]
    return Answers(*map(np.asarray, (concept.argmax(axis=1), concept.max(axis=1), memory.max(axis=1), recalled)))


def axons(
    size: Size, reads: str, names: tuple[str, ...], params: Params, known: Mapping[str, Array]
) -> dict[str, Array]:
    """Axons of the named layers for all images, computed from the known ones."""
    own = {name: params[name] for name in network(size, reads).shapes if name in params}
    chunks = [
        _axons(size, reads, names, own, {name: x[i : i + CHUNK] for name, x in known.items()})
        for i in range(0, len(known["image"]), CHUNK)
    ]
    return {name: jnp.concatenate([chunk[name] for chunk in chunks]) for name in names}


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _axons(
    size: Size, reads: str, names: tuple[str, ...], params: Params, known: Mapping[str, Array]
) -> dict[str, Array]:
    found = record(resumed(network(size, reads)))(params, known)[1]
    return {name: found[name] for name in names}
