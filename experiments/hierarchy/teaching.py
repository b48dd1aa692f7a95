"""Teaches a hierarchy's layers one after another, each by its own local rule."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nl_jax as nl
from experiments.hierarchy.network import READS, Hierarchy, Size, axons, features, linear, network, resumed, settled
from nl_jax import rules
from nl_jax.base import Array, Forward, Key, Params
from nl_jax.propagation import Site, interpret
from nl_jax.rules.stacked import Stacked, examples

BEGINNINGS = 30  # initialisations of the concepts; the best fit is kept


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
