"""Data of the tasks that take time: shapes, what there is to learn, and that chance is what it says."""

import importlib.util
import random

import numpy as np
import pytest

from experiments.harness import temporal_tasks
from experiments.harness.failure import ExperimentError

SIZES = 300, 100, 2000


@pytest.mark.parametrize("make", [temporal_tasks.adding, temporal_tasks.delayed_xor])
def test_drawn_tasks(make):
    task = make(1, SIZES, steps=11)
    assert (task.steps, task.channels) == (11, 2)
    for split, n in zip((task.train, task.validation, task.test), SIZES, strict=True):
        assert split.inputs.shape == (n, 11, 2)
        assert split.targets.shape == (n,)
        assert split.inputs.dtype == np.float32
    again, other, larger = make(1, SIZES, steps=11), make(2, SIZES, steps=11), make(1, (900, *SIZES[1:]), steps=11)
    for split in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(task, split).inputs, getattr(again, split).inputs)
        assert not np.array_equal(getattr(task, split).inputs, getattr(other, split).inputs)
    np.testing.assert_array_equal(task.test.inputs, larger.test.inputs)
    assert not np.array_equal(task.train.inputs[:100], task.validation.inputs)


def test_adding():
    task = temporal_tasks.adding(0, SIZES, steps=11)
    values, marks = np.moveaxis(task.test.inputs, -1, 0)
    np.testing.assert_array_equal(marks[:, :5].sum(axis=1), 1)
    np.testing.assert_array_equal(marks[:, 5:].sum(axis=1), 1)
    np.testing.assert_allclose((values * marks).sum(axis=1), task.test.targets, rtol=1e-6)
    assert np.mean((task.test.targets - 1) ** 2) == pytest.approx(task.chance, rel=0.1)


def test_delayed_xor():
    """The cues' product of signs is the answer; neither cue alone says anything of it."""
    task = temporal_tasks.delayed_xor(0, SIZES, steps=10, noise=0.0)
    difference = task.test.inputs[:, :, 1] - task.test.inputs[:, :, 0]
    np.testing.assert_array_equal(np.abs(difference), np.tile([1, 1, 0, 0, 1, 1, 0, 0, 0, 0], (SIZES[2], 1)))
    first, second = difference[:, 0], difference[:, 4]
    np.testing.assert_array_equal(first * second < 0, task.test.targets)
    for cue in (first, second):
        assert abs(np.mean((cue > 0) == task.test.targets) - task.chance) < 0.05


@pytest.mark.skipif(not importlib.util.find_spec("mnist1d"), reason="needs mnist1d")
@pytest.mark.slow
def test_mnist_1d(monkeypatch):
    """Made without a network, and without a trace in the global generators, which its package seeds."""
    monkeypatch.setattr("socket.socket.connect", lambda *rest: pytest.fail("no network is needed"))
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    task = temporal_tasks.mnist_1d(0)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002
    shapes = [split.inputs.shape for split in (task.train, task.validation, task.test)]
    assert shapes == [(3500, 40, 1), (500, 40, 1), (1000, 40, 1)]
    everything = np.concatenate([task.train.inputs, task.validation.inputs])
    assert everything.mean() == pytest.approx(0, abs=1e-5)
    assert everything.std() == pytest.approx(1, abs=1e-5)
    assert len(np.unique(everything, axis=0)) == 4000
    assert np.bincount(task.test.targets).tolist() == [102, 104, 89, 106, 106, 98, 99, 96, 98, 102]
    assert task.chance == pytest.approx(1 - np.bincount(task.test.targets).max() / 1000, abs=0.02)


def test_errors_are_one_line(monkeypatch):
    with pytest.raises(ExperimentError, match="at least 2 steps, got 1"):
        temporal_tasks.adding(0, steps=1)
    with pytest.raises(ExperimentError, match="at least 5 steps, got 4"):
        temporal_tasks.delayed_xor(0, steps=4)
    with pytest.raises(ExperimentError, match="4000 cannot be held out"):
        temporal_tasks.mnist_1d(0, num_validation=4000)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ExperimentError, match="pip install mnist1d"):
        temporal_tasks.mnist_1d(0)
