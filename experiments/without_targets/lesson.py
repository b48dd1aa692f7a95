"""Describes how one hidden layer is taught, and audits what its updates see."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import nl_jax as nl


class Settings(NamedTuple):
    """Settings that all methods share.

    Attributes:
      hidden: hidden units.
      updates: parameter updates; step sizes decay over them.
      num_samples: noisy samples of each example per update, for methods that explore by noise.
    """

    hidden: int
    updates: int
    num_samples: int


class Images(NamedTuple):
    """Training images as rows, centred and scaled to equal norm, and their labels."""

    images: jax.Array
    labels: jax.Array
    num_classes: int

    @property
    def length(self) -> float:
        """‖x‖, the same for all images; the local rules' rates and temperature scale with it."""
        return float(jnp.linalg.norm(self.images[0]))


class Teaching(NamedTuple):
    """A hidden layer and how it is trained.

    Attributes:
      init: `init(key) -> params`.
      features: `features(params, images) -> [batch, units]`.
      answers: `answers(params, images) -> labels`, for networks that learn to answer.
      lesson: None for methods without learning.
    """

    init: Callable[[jax.Array], Any]
    features: Callable[[Any, jax.Array], jax.Array]
    answers: Callable[[Any, jax.Array], jax.Array] | None = None
    lesson: "Lesson | None" = None


class Lesson(NamedTuple):
    """What is learned: the estimator is `factory(program)`, and `batch` is all examples in the form it takes."""

    factory: Callable[[Any], nl.GradientEstimator]
    program: Any
    batch: Any
    optimizer: optax.GradientTransformation
    inputs: Callable[[Any], Any] | None = None
    """Maps the batch to the program's inputs; None if the program takes the batch itself."""


def seen(teaching: Teaching) -> str:
    """What can reach the update of the hidden layer's weights, by an audit of its program; a dash without learning."""
    if teaching.lesson is None:
        return "–"
    lesson, params = teaching.lesson, teaching.init(jax.random.key(0))
    few = jax.tree.map(lambda x: x[:2], lesson.batch)
    targets = None if isinstance(few, tuple) else lambda batch: ()  # a batch of images alone has no targets
    audit = nl.audit(lesson.factory, lesson.program, params, few, inputs=lesson.inputs, targets=targets)
    found = audit.rows["hidden1/weight"].sources
    return ", ".join(kind for kind, sources in found.items() if sources)
