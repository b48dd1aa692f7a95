"""The hierarchy that classifies images itself, in small."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments.harness import data
from experiments.hierarchy import __main__ as hierarchy
from experiments.hierarchy import teaching
from experiments.hierarchy.network import Answers, Size, answers
from experiments.hierarchy.scoring import KINDS, Scores, hidden, names, turned

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("lenient")]


def test_each_concept_is_named_by_one_label():
    seen = Answers(np.array([0, 0, 2, 2]), np.array([0.5, 0.9, 0.3, 0.1]), np.ones(4), np.ones((4, 1)))
    assert names(seen, np.array([7, 3, 1, 1])) == {0: 3, 2: 1}


def test_questions():
    image = np.arange(784.0).reshape(1, -1)
    half = hidden(image).reshape(28, 28)
    np.testing.assert_array_equal(half[:14].ravel(), np.arange(392))
    assert not half[14:].any()
    np.testing.assert_array_equal(turned(image).reshape(28, 28), np.rot90(np.arange(784.0).reshape(28, 28)))


SIZE = Size(features=8, memories=60, neighbours=2)  # one size and number of images: all share what is compiled


@pytest.fixture
def few(monkeypatch):
    """300 images to learn from, as many to test on, and fewer steps of each layer."""
    competed = teaching._competed
    fewer = lambda *at, num_steps, **how: competed(*at, num_steps=min(num_steps, 60), **how)
    monkeypatch.setattr(teaching, "_competed", fewer)
    dataset = data.mnist_5000()
    short = [data.Split(*(part[:300] for part in split)) for split in dataset[1:]]
    monkeypatch.setattr(data, "mnist_5000", lambda: data.Dataset(dataset.name, *short))


def test_it_learns_and_answers(few):
    """Without labels, better than random weights by far; what each layer learned has its rule's form."""
    images, labels = data.mnist_5000().train
    right, found = [], []
    for learns in (False, True):
        one = teaching.taught(
            jax.random.key(0), images, SIZE, "low and mid", features_learn=learns, memory_learns=learns
        )
        seen = answers(one, images)
        called = names(seen, labels)
        right.append(np.mean([called[int(c)] == label for c, label in zip(seen.concept, labels, strict=True)]))
        found.append(one.params)
    assert right[1] > right[0] + 0.2
    assert seen.recalled.shape == images.shape
    assert -1e-5 <= seen.recalled.min() <= seen.recalled.max() <= 1 + 1e-5  # means of images
    assert seen.familiarity.max() <= 2**0.5 + 1e-5  # of two connections, each of cosines
    norms = np.linalg.norm(np.asarray(found[1]["low"]["weight"]).reshape(49, -1), axis=0)
    np.testing.assert_allclose(norms, 1, atol=0.1)
    np.testing.assert_allclose(found[1]["links"]["weight"], found[1]["links"]["weight"].T, atol=1e-7)


def _scores(*named):
    return {
        name: Scores(*(np.array([at - 0.01, at + 0.01]) for _ in range(4)))
        for name, at in zip(KINDS, named, strict=True)
    }


def test_it_is_judged():
    good = hierarchy.judge(_scores(0.1, 0.7, 0.7, 0.8, 0.9))
    assert max(one["deviation"] for one in good) <= 1
    assert hierarchy.judge(_scores(0.85, 0.7, 0.7, 0.8, 0.9))[0]["deviation"] > 1
    assert hierarchy.judge(_scores(0.1, 0.85, 0.7, 0.8, 0.9))[2]["deviation"] > 1
    assert hierarchy.judge(_scores(0.1, 0.7, 0.7, 0.9, 0.8))[3]["deviation"] > 1


def test_a_small_run(few, tmp_path, capsys, monkeypatch):
    """Of every kind one hierarchy is taught; a second seed's scores are a little higher."""
    answered, first = hierarchy.answered, {}

    def once(kind, seed, *rest, **settings):
        if seed == 0:
            first[kind] = answered(kind, seed, *rest, **settings)
        return {**first[kind], "scores": [score + 0.01 * seed for score in first[kind]["scores"]]}

    monkeypatch.setattr(hierarchy, "answered", once)
    sizes = SIZE._asdict()
    del sizes["concepts"]
    small = dataclasses.replace(hierarchy.Config(), images=300, seeds=2, **sizes)
    results = hierarchy.run(dataclasses.replace(small, out=tmp_path, quick=True))
    left = json.loads((tmp_path / "hierarchy.json").read_text())
    assert left["scores"].keys() == results.keys() == KINDS.keys()
    assert "nan" not in capsys.readouterr().out
    for name in ("hierarchy.png", "completion.png"):
        assert (tmp_path / name).stat().st_size > 10_000


def test_bad_settings_are_one_line(tmp_path, capsys):
    assert hierarchy.main(["--memories", "9", "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == "error: --memories must be at least 20, got 9\n"
    assert hierarchy.main(["--images", "200", "--out", str(tmp_path / "out")]) == 1
    assert "error: --memories must be at most the 200 images to learn from, got 300" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
