"""Depth and width, small: shapes have the parameters they say, and networks are stopped by validation."""

import json

import jax
import numpy as np
import pytest

import nl_jax as nl
from experiments.depth_width import __main__ as depth_width
from experiments.depth_width import training
from experiments.depth_width.training import Shape, Stopped
from experiments.harness.failure import ExperimentError
from experiments.harness.sweep import Scores

pytestmark = pytest.mark.usefixtures("lenient")


@pytest.mark.slow
def test_runs_and_writes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(depth_width, "mnist_1d", training.digits)
    arguments = ["--parameters", "200", "--depths", "2", "--rates", "0.5", "--updates", "3", "--seeds", "2"]
    assert depth_width.main([*arguments, "--out", str(tmp_path)]) == 0
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(one["task"], one["shape"]) for one in written] == [(t, [2, 2, 166]) for t in ("digits", "MNIST-1D")]
    assert np.shape(written[0]["test_error"]) == (2,)
    assert written == json.loads((tmp_path / "depth_width.json").read_text())["networks"]
    assert "2 × 2" in capsys.readouterr().out
    assert (tmp_path / "depth_width.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_shapes_come_as_near_as_can_be(depth):
    def parameters(width):
        network = nl.mlp([40, *[width] * depth, 10], activation=nl.activations.tanh())
        return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(network.init, jax.random.key(0))))

    found = depth_width.shape(40, depth, 900)
    assert found.depth == depth
    assert found.parameters == parameters(found.width)
    off = [abs(parameters(found.width + more) - 900) for more in (-1, 0, 1)]
    assert min(off) == off[1]


def test_too_few_parameters_are_told():
    with pytest.raises(
        ExperimentError, match="--parameters must be at least 63 for 2 hidden layers and 40 inputs, got 50"
    ):
        depth_width.shape(40, 2, 50)


def test_tasks(monkeypatch):
    rng = np.random.default_rng(0)
    made = {
        "x": rng.normal(2, 3, (4000, 40)),
        "y": np.arange(4000) % 10,
        "x_test": np.ones((9, 40)),
        "y_test": np.ones(9),
    }
    monkeypatch.setattr(training.temporal_tasks, "_made_by_the_package", lambda: made)
    for sets, inputs in ((training.digits(), 64), (training.mnist_1d(), 40)):
        assert {x.shape[1] for x, _ in sets} == {inputs}
        assert abs(sets.train[0].mean()) < 0.01
        assert abs(sets.train[0].std() - 1) < 0.01
        assert all(len(x) == len(labels) for x, labels in sets)


def test_networks_are_stopped_where_validation_is_best():
    """Of two rates; the second has the lower validation loss, at different moments of its two seeds."""
    validation = np.array([[[5, 4, 3], [5, 4, 3]], [[5, 1, 2], [5, 4, 2]]], float)
    scores = Scores(
        {"validation": validation, "train": validation + 10, "test": validation + 20}, {"test": validation + 30}
    )
    found = training.stopped("digits", 900, Shape(1, 2, 3), (0.1, 0.2), np.array([0, 10, 20]), scores)
    assert found.rate == 0.2
    np.testing.assert_array_equal(found.updates, [10, 20])
    np.testing.assert_array_equal(found.train_loss, [11, 12])
    np.testing.assert_array_equal(found.test_loss, [21, 22])
    np.testing.assert_array_equal(found.test_error, [31, 32])


FOUND = [
    Stopped("digits", 900, Shape(depth, 8, 899), 0.3, *np.array([[10, 20], [1, 2], [2, 3], [0.1, 0.1 * depth]], float))
    for depth in (1, 2)
]


def test_the_table_and_the_picture_show_what_was_measured():
    row = depth_width.table(FOUND).splitlines()[2]
    expected = "digits 2 × 8 899 0.3 15 ± 5 1.5000 ± 0.5000 2.5000 ± 0.5000 15.00 ± 5.00"
    assert row.split() == expected.split()
    errors, updates = depth_width.plot(FOUND).axes
    np.testing.assert_allclose(errors.lines[0].get_ydata(), [10, 15])
    np.testing.assert_allclose(updates.lines[0].get_ydata(), [15, 15])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--parameters", "50"], "--parameters must be at least"),
        (["--depths", "2", "1"], "--depths must be rising numbers of at least 1, got (2, 1)"),
        (["--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["--rates", "nan"], "--rates must be finite numbers above 0"),
    ],
)
def test_bad_settings_are_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(depth_width, "mnist_1d", training.digits)
    assert depth_width.main([*arguments, "--out", str(tmp_path / "out")]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {message}")
    assert shown.count("\n") == 1
    assert not (tmp_path / "out").exists()
