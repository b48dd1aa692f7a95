import json

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.without_targets import __main__ as without_targets
from experiments.without_targets.ladder import LABELS, METHODS, RUNGS
from experiments.without_targets.lesson import Images, Settings, seen
from experiments.without_targets.teaching import Scores

pytestmark = pytest.mark.usefixtures("lenient")

WEIGHTS = np.linspace(-1, 1, 2 * 9 * 3).reshape(2, 9, 3)
SCORES = {
    "sanger": Scores(np.array([0.9, 0.94]), np.array([0.8, 0.8]), None, 400, WEIGHTS, "own pre, own post"),
    "error_backprop": Scores(
        np.array([0.9, 0.9]), np.array([0.7, 0.9]), np.array([0.95, 0.97]), 600, WEIGHTS, "target"
    ),
}


def test_every_method_stands_on_one_rung():
    on_rungs = [name for names in RUNGS.values() for name in names]
    assert on_rungs == list(METHODS) == list(LABELS)


@pytest.mark.slow
def test_what_each_update_sees_is_what_its_rung_says():
    at = Settings(hidden=3, updates=10, num_samples=2), Images(jnp.eye(4, 9), jnp.arange(4), 4)
    found = {name: seen(make(*at)) for name, make in METHODS.items()}
    assert found["random"] == found["pca"] == "–"
    assert found["sanger"] == "own weight, own pre, own post"
    assert found["soft_hebb"] == "own weight, own pre"
    assert found["reward_node_perturbation"] == found["error_node_perturbation"] == "own pre, noise, loss"
    assert found["reward_reinforce"] == "own pre, own post, noise, loss"
    assert found["error_backprop"] == "own pre, own post, other axons, other weights, target"
    for name in (*RUNGS["no label"], *RUNGS["a reward alone"]):
        assert "target" not in found[name]
    assert "target" in found["forward_forward"]
    assert "other weights" not in found["forward_forward"]


@pytest.mark.slow
def test_runs_and_writes(tmp_path, capsys):
    methods = ["pca", "soft_hebb", "reward_reinforce", "forward_forward", "error_backprop"]
    settings = ["--hidden", "8", "--updates", "150", "--seeds", "2", "--num-samples", "2", "--batch-size", "40"]
    assert without_targets.main([*settings, "--methods", *methods, "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert all(rung in shown for rung in RUNGS)
    written = {line["method"]: line for line in map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())}
    assert list(written) == methods
    assert {name: line["evaluations"] for name, line in written.items()} == {
        "pca": 0, "soft_hebb": 300, "reward_reinforce": 600, "forward_forward": 450, "error_backprop": 450,
    }  # fmt: skip
    for line in written.values():
        assert min(line["readout"] + line["class_mean"]) > 0.3  # three times what a guess gets
    assert written["pca"]["readout"][0] == written["pca"]["readout"][1] > 0.85
    assert written["pca"]["answers"] is written["soft_hebb"]["answers"] is None
    assert min(written["error_backprop"]["answers"]) > 0.7
    assert min(written["forward_forward"]["answers"]) > 0.6
    assert np.load(tmp_path / "forward_forward.npz")["weights"].shape == (2, 64, 8)  # without the label's pixels
    for name in ("without_targets", "receptive_fields"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_no_method_that_is_without_labels_is_given_any():
    images = Images(jnp.eye(4, 9), jnp.arange(4), 4)
    settings = Settings(hidden=3, updates=10, num_samples=2)
    for name in RUNGS["no label"]:
        assert METHODS[name](settings, images).lesson.batch is images.images


def test_the_table_and_the_pictures_show_what_was_measured():
    rows = without_targets.table(SCORES).splitlines()
    assert rows[1] == "no label"
    assert rows[2].split()[:8] == ["Sanger", "–", "92.00", "±", "2.00", "80.00", "±", "0.00"]
    assert rows[2].endswith("own pre, own post")
    assert rows[4].split()[:4] == ["backprop", "96.00", "±", "1.00"]
    accuracies, costs = without_targets.plot(SCORES, "title").axes
    by_label = {c.get_label(): c.lines[0].get_xdata() for c in accuracies.containers}
    np.testing.assert_allclose(by_label["own answers"], [96])
    np.testing.assert_allclose(by_label["nearest class mean"], [80, 80])
    np.testing.assert_allclose(costs.lines[0].get_xdata(), [400, 600])
    fields = without_targets.receptive_fields(SCORES, "title")
    shown = [panel.images[0].get_array() for panel in fields.axes]
    assert len(shown) == 2 * 3
    np.testing.assert_allclose(shown[1], WEIGHTS[0, :, 1].reshape(3, 3))


def test_images_that_are_not_square_have_no_receptive_fields():
    oblong = {"pca": SCORES["sanger"]._replace(weights=np.ones((2, 6, 3)))}
    assert without_targets.receptive_fields(oblong, "title") is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--updates", "0"], "--updates must be at least 1, got 0"),
        (["--num-samples", "1"], "--num-samples must be at least 2, got 1"),
        (["--hidden", "65"], "--hidden must be at most 64"),
        (["--batch-size", "2000"], "--batch-size must be at most the 1437 training examples"),
        (["--methods", "hebb"], "unknown method hebb; there are random, pca"),
        (["--methods", "pca", "pca"], "--methods names pca twice"),
        (["--dataset", "letters"], "unknown dataset letters"),
    ],
)
def test_bad_settings_are_one_line(arguments, message, tmp_path, capsys):
    assert without_targets.main([*arguments, "--out", str(tmp_path / "out")]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {message}")
    assert shown.count("\n") == 1
    assert not (tmp_path / "out").exists()
