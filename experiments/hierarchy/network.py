"""Defines a hierarchy, whose layers learn one after another by local rules, and asks it for answers.

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

import nl_jax as nl
from nl_jax.base import Array, Forward, Params, Propagate
from nl_jax.propagation import feedforward, record

SPREAD = 0.9  # fraction of the activity that spreads along the links at every step; chosen on validation images
STEPS = 40  # of spreading, after which 1.5 % of the activity has not settled
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
