"""Temporal tasks: the adding problem, delayed exclusive-or, and MNIST-1D read step by step."""

import functools
import importlib
import importlib.util
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from experiments.harness.failure import ExperimentError


class Sequences(NamedTuple):
    """Inputs, float32 [examples, steps, channels], and one target per example: float32 [examples] or int32 labels."""

    inputs: np.ndarray
    targets: np.ndarray


class Task(NamedTuple):
    """Sequences for training, validation and test.

    Attributes:
      num_outputs: outputs that a network needs: one, or one for each class.
      chance: error of the best constant answer.
    """

    name: str
    train: Sequences
    validation: Sequences
    test: Sequences
    num_outputs: int
    chance: float

    @property
    def steps(self) -> int:
        """T, steps of a sequence."""
        return self.train.inputs.shape[1]

    @property
    def channels(self) -> int:
        """Inputs at each step."""
        return self.train.inputs.shape[2]


Sizes = tuple[int, int, int]
"""Numbers of training, validation and test examples."""

Draw = Callable[[np.random.Generator, int], Sequences]


def adding(seed: int, sizes: Sizes = (4000, 1000, 1000), *, steps: int = 20) -> Task:
    """The adding problem: the sum of two marked numbers among many (Hochreiter & Schmidhuber 1997, section 5.4).

    Channel 0 is uniform in [0, 1]. Channel 1 is 1 at two steps, one in each half of the sequence, and 0 elsewhere. The
    error is squared; the constant answer 1 has an error of 1/6, the sum's variance. (The paper's numbers are in
    [−1, 1] and its targets scaled to [0, 1]; its first mark is among the first ten steps.)

    Args:
      seed: the data depend on nothing else.
      sizes: numbers of examples of the three sets.
      steps: T, at least 2.
    """
    _at_least(steps, 2, "the adding problem")

    def draw(generator: np.random.Generator, n: int) -> Sequences:
        values, marks = generator.random((n, steps)), np.zeros((n, steps))
        rows, half = np.arange(n), steps // 2
        marks[rows, generator.integers(0, half, n)] = 1
        marks[rows, generator.integers(half, steps, n)] = 1
        inputs = np.stack([values, marks], axis=-1)
        return Sequences(inputs.astype(np.float32), np.sum(values * marks, axis=1).astype(np.float32))

    return Task("adding", *_three(draw, seed, sizes), num_outputs=1, chance=1 / 6)


def delayed_xor(seed: int, sizes: Sizes = (4000, 1000, 1000), *, steps: int = 20, noise: float = 0.1) -> Task:
    """Delayed exclusive-or: whether two cues, far apart, were different (Miconi 2017, task 1).

    For the first fifth of the steps, one of two channels is on: the first cue. Both are silent for a fifth. The second
    cue follows, and then a delay of two fifths. The answer is due at the end: label 1 if the cues differed. The error
    is the fraction of wrong answers, by chance a half. (The paper's network answers ±1 over the last steps; its reward
    depends on the distance.)

    Args:
      seed: the data depend on nothing else.
      sizes: numbers of examples of the three sets.
      steps: T, at least 5.
      noise: standard deviation of the noise added to all inputs.
    """
    _at_least(steps, 5, "delayed exclusive-or")

    def draw(generator: np.random.Generator, n: int) -> Sequences:
        cues, fifth, rows = generator.integers(0, 2, (n, 2)), steps // 5, np.arange(n)
        inputs = noise * generator.standard_normal((n, steps, 2))
        for cue, begin in zip(cues.T, (0, 2 * fifth), strict=True):
            for step in range(begin, begin + fifth):
                inputs[rows, step, cue] += 1
        return Sequences(inputs.astype(np.float32), (cues[:, 0] != cues[:, 1]).astype(np.int32))

    return Task("delayed_xor", *_three(draw, seed, sizes), num_outputs=2, chance=0.5)


def mnist_1d(seed: int, num_validation: int = 500) -> Task:
    """MNIST-1D: ten templates, padded, moved, sheared and noisy, of 40 values, one per step (Greydanus 2020).

    There are 4,000 sequences for training and validation and 1,000 for test: the paper's, generated here by its
    package, offline. Values are standardised by the training set. The error is the fraction of wrong answers, by
    chance 0.9.

    Args:
      seed: chooses the validation examples.
      num_validation: how many of the 4,000 they are, from 0 to below 4,000.

    Raises:
      ExperimentError: if the package is not installed, or for an invalid number.
    """
    if not 0 <= num_validation < 4000:
        raise ExperimentError(f"MNIST-1D has 4,000 training examples, of which {num_validation} cannot be held out")
    made = _made_by_the_package()
    chosen = np.random.default_rng(seed).permutation(len(made["y"]))
    mean, deviation = made["x"].mean(), made["x"].std()

    def sequences(x: np.ndarray, y: np.ndarray) -> Sequences:
        return Sequences(((x - mean) / deviation).astype(np.float32)[:, :, None], y.astype(np.int32))

    apart, rest = chosen[:num_validation], chosen[num_validation:]
    train, validation = (sequences(made["x"][part], made["y"][part]) for part in (rest, apart))
    test = sequences(made["x_test"], made["y_test"])
    return Task("mnist_1d", train, validation, test, num_outputs=10, chance=0.9)


def _made_by_the_package() -> Any:
    """Arrays "x", "y", "x_test" and "y_test"; the package's module imports a downloader, which is not used."""
    if importlib.util.find_spec("mnist1d") is None:
        raise ExperimentError("MNIST-1D is made by a package that is not installed: pip install mnist1d")
    return _generated()


@functools.cache  # it takes seconds, and is the same every time
def _generated() -> Any:
    module = importlib.import_module("mnist1d.data")
    # It seeds the global random generators; their state is restored.
    before = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        return module.make_dataset(module.get_dataset_args())
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002


def _three(draw: Draw, seed: int, sizes: Sizes) -> tuple[Sequences, Sequences, Sequences]:
    """Three sets, each from its own random stream, so that one does not depend on another's size."""
    train, validation, test = (
        draw(np.random.default_rng(stream), n)
        for stream, n in zip(np.random.SeedSequence(seed).spawn(3), sizes, strict=True)
    )
    return train, validation, test


def _at_least(steps: int, least: int, name: str) -> None:
    if steps < least:
        raise ExperimentError(f"{name} takes at least {least} steps, got {steps}")
