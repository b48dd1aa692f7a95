"""Trains a kind of hierarchy and scores its answers: names, completions, novelty."""

from typing import Any, NamedTuple

import jax
import numpy as np
from sklearn.metrics import roc_auc_score

from experiments.harness.data import Split
from experiments.hierarchy.network import Answers, Hierarchy, Size, answers
from experiments.hierarchy.teaching import taught

SHOWN = 8  # images in the figure of completions


class Kind(NamedTuple):
    """A kind of hierarchy: what its prototypes read, and which layers below the links learn."""

    reads: str
    features_learn: bool
    memory_learns: bool


KINDS = {
    "random weights": Kind("low and mid", features_learn=False, memory_learns=False),
    "random convolutions": Kind("low and mid", features_learn=False, memory_learns=True),
    "no convolution": Kind("pixels", features_learn=True, memory_learns=True),
    "one convolution": Kind("low", features_learn=True, memory_learns=True),
    "two convolutions": Kind("low and mid", features_learn=True, memory_learns=True),
}
WHOLE, RANDOM, HALF_RANDOM = "two convolutions", "random weights", "random convolutions"
LADDER = tuple(KINDS)[2:]


class Scores(NamedTuple):
    """Scores of a kind of hierarchy, each [seeds].

    Attributes:
      named: fraction of images whose concept has the right name.
      from_half: the same with the lower half of the images hidden.
      completed: fraction of the hidden halves' variance about the mean image that the recalled images explain.
      novelty: probability that a rotated image is less familiar than an upright one (area under the ROC curve).
    """

    named: np.ndarray
    from_half: np.ndarray
    completed: np.ndarray
    novelty: np.ndarray


def answered(
    kind: Kind, seed: int, size: Size, learned_from: Split, questions: Split, *, complete: bool
) -> dict[str, Any]:
    """Trains and tests one hierarchy; returns its scores and, if `complete`, images that it completed."""
    one = taught(
        jax.random.fold_in(jax.random.key(0), seed), learned_from.images, size, kind.reads,
        features_learn=kind.features_learn, memory_learns=kind.memory_learns,
    )  # fmt: skip
    scores, half = _scored(one, learned_from, questions)
    return {"scores": scores, "completions": _completions(questions.images, half) if complete else None}


def names(seen: Answers, labels: np.ndarray) -> dict[int, int]:
    """Each concept's name: the label of the image with the strongest response. No other labels are used."""
    found = {}
    for concept in np.unique(seen.concept):
        own = np.flatnonzero(seen.concept == concept)
        found[int(concept)] = int(labels[own[np.argmax(seen.certainty[own])]])
    return found


def hidden(images: np.ndarray) -> np.ndarray:
    """The images without their lower half."""
    return np.where(np.arange(images.shape[1]) < images.shape[1] // 2, images, 0)


def turned(images: np.ndarray) -> np.ndarray:
    """The images rotated by 90°."""
    return np.rot90(images.reshape(-1, 28, 28), axes=(1, 2)).reshape(len(images), -1)


def _scored(hierarchy: Hierarchy, learned_from: Split, questions: Split) -> tuple[list[float], Answers]:
    called = names(answers(hierarchy, learned_from.images), learned_from.labels)
    whole, half, odd = (
        answers(hierarchy, images) for images in (questions.images, hidden(questions.images), turned(questions.images))
    )
    right = [
        float(np.mean([called.get(int(c)) == label for c, label in zip(of.concept, questions.labels, strict=True)]))
        for of in (whole, half)
    ]
    below = np.arange(questions.images.shape[1]) >= questions.images.shape[1] // 2
    truth = questions.images[:, below]
    left = np.sum((truth - half.recalled[:, below]) ** 2)
    variance = np.sum((truth - learned_from.images.mean(axis=0)[below]) ** 2)
    known = np.repeat([1, 0], len(questions.labels))
    area = roc_auc_score(known, np.concatenate([whole.familiarity, odd.familiarity]))
    return [*right, float(1 - left / variance), float(area)], half


def _completions(images: np.ndarray, half: Answers) -> np.ndarray:
    """Shown images, completed images and originals, [3, images, pixels]."""
    some = images[:SHOWN]
    shown = hidden(some)
    below = np.arange(some.shape[1]) >= some.shape[1] // 2
    return np.stack([shown, np.where(below, half.recalled[:SHOWN], shown), some])
