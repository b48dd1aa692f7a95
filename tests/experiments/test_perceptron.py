"""The perceptron's experiment, small: its mistakes are bounded where a plane parts the classes, and else never end."""

import json

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments.perceptron import __main__ as perceptron
from experiments.perceptron import single_units
from experiments.perceptron.__main__ import Config, Count
from experiments.perceptron.single_units import LAYERS, PERCEPTRON, UNIT, Failure

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("lenient")]

SMALL = ["--inputs", "4", "--examples", "30", "--margins", "0.05", "0.3", "--seeds", "3", "--passes", "600"]


@pytest.fixture(scope="module", autouse=True)
def few_sizes():
    """Of orthonormal inputs: each size compiles another program."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(perceptron, "ORTHONORMAL", (4, 64))
        yield


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """What a small run leaves, and where."""
    out = tmp_path_factory.mktemp("perceptron")
    assert perceptron.main([*SMALL, "--out", str(out)]) == 0
    return out, json.loads((out / "perceptron.json").read_text())


def test_mistakes_are_counted_and_bounded(left):
    _, data = left
    narrow, wide = (np.array(one["mistakes"]) for one in data["counts"])
    for mistakes, one in zip((narrow, wide), data["counts"], strict=True):
        assert mistakes.shape[1] == 3
        assert not mistakes[-1].any()
        assert mistakes[:-1].sum(axis=1).all()
        assert np.all((mistakes.sum(axis=0) > 0) & (mistakes.sum(axis=0) <= one["bound"]))
        assert np.all(np.array(one["bound"]) <= 1 / one["margin"] ** 2 + 1e-9)
    assert narrow.sum() > wide.sum()
    for one in data["orthonormal"]:
        assert np.sum(one["mistakes"]) == pytest.approx(one["bound"][0], rel=1e-12)
    assert data["deviations"]["mistakes over Novikoff's bound"] == pytest.approx(1)
    assert data["deviations"]["weights are those of nl.theory.perceptron"] == 0


def test_the_exclusive_or_is_never_learned_by_one_unit(left):
    """The perceptron comes to err on all four for ever, the sigmoid unit to say ½; two layers do it."""
    _, data = left
    found = data["exclusive_or"]
    wrong = {name: np.array(of) for name, of in found["wrong"].items()}
    assert wrong[PERCEPTRON].shape == (30, 24)
    assert wrong[UNIT].shape == (600, 24)
    assert set(found["period"]) == {1}
    assert (wrong[PERCEPTRON][max(found["before"]) :] == 4).all()
    assert wrong[PERCEPTRON][0].mean() < 4  # from where it began it had some right
    np.testing.assert_allclose(found["outputs"], 0.5, atol=0.01)
    np.testing.assert_allclose(found["losses"][UNIT], 1 / 8, rtol=1e-3)
    assert (wrong[LAYERS][-1] == 0).sum() >= 2
    assert np.min(found["losses"][LAYERS]) < 0.02


def test_folder(left):
    out, data = left
    assert data["largest_deviation"] == max(data["deviations"].values()) <= data["allowed"] == 1
    assert (out / "perceptron.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("margin", [0.05, 0.5])
def test_data_of_a_margin(margin):
    x, y, teacher = perceptron.apart(margin, Config(inputs=3, examples=50), seed=1)
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1)
    assert margin <= (y * (x @ teacher)).min() < margin + 0.1
    assert set(y) == {-1, 1}


def test_cycles():
    steps = np.array([[3.0], [5.0], [0.0], [2.0], [-0.0], [2.0]])
    assert single_units.cycle(steps) == (2, 2)
    assert single_units.cycle(steps[:4]) == (0, 0)
    assert single_units.cycle(np.ones((2, 1))) == (0, 1)


FAILURE = Failure(
    {PERCEPTRON: np.full((5, 2), 4), UNIT: np.full((2, 2), 3), LAYERS: np.array([[2, 2], [0, 1]])},
    before=np.array([0, 3]), period=np.array([1, 1]), outputs=np.full((2, 4), 0.51), losses={LAYERS: np.zeros(2)},
)  # fmt: skip


def _judged(mistakes=4, off=0.0, **changed):
    count = Count(0.5, np.array([[mistakes], [0]]), np.array([4.0]), off)
    return list(perceptron.deviations([count], FAILURE._replace(**changed)).values())


def test_what_is_judged():
    """Only the one that is wrong is more than 1."""
    assert max(_judged()) <= 1
    learned = {PERCEPTRON: np.array([[4, 4]] * 4 + [[0, 4]]), LAYERS: np.zeros((2, 2))}
    unlearned = {PERCEPTRON: np.full((5, 2), 4), LAYERS: np.array([[0, 0], [1, 1]])}
    for index, wrong in enumerate([
        _judged(mistakes=5), _judged(off=1e-6), _judged(wrong=learned), _judged(outputs=np.array([[0.4, 0.5]])),
        _judged(wrong=unlearned),
    ]):  # fmt: skip
        assert [off > 1 for off in wrong] == [at == index for at in range(5)]
    assert _judged(period=np.array([0, 1]))[2] > 1


def test_more_mistakes_than_allowed_are_a_non_zero_exit(tmp_path, monkeypatch, capsys):
    """Said after all is saved."""
    bound = perceptron.theory.mistake_bound
    monkeypatch.setattr(perceptron.theory, "mistake_bound", lambda x, y, teacher: bound(x, y, teacher) / 2)
    monkeypatch.setattr(perceptron, "exclusive_or", lambda passes, seeds: FAILURE)
    monkeypatch.setattr(perceptron, "plot", lambda *results: Figure(figsize=(1, 1)))
    assert perceptron.main([*SMALL, "--out", str(tmp_path)]) == 1
    assert 'disagree: "mistakes over Novikoff\'s bound" is off by 2.0 times what is allowed' in capsys.readouterr().err
    assert (tmp_path / "perceptron.png").exists()


def test_errors_are_one_line_and_a_non_zero_exit(tmp_path, capsys):
    cases = {
        "--margins must be rising numbers, got (0.2, 0.1)": ["--margins", "0.2", "0.1"],
        "--margins must be above 0 and at most 0.5": ["--margins", "0.2", "0.6"],
        "--inputs must be at least 2, got 1": ["--inputs", "1"],
        "--seeds must be at least 1, got 0": ["--seeds", "0"],
    }
    for message, arguments in cases.items():
        assert perceptron.main([*arguments, "--out", str(tmp_path / "out")]) == 1
        shown = capsys.readouterr().err
        assert shown.startswith("error: ")
        assert message in shown
        assert shown.count("\n") == 1
    assert not (tmp_path / "out").exists()
