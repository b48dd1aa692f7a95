"""The restarts' experiment, small: as many runs end in each minimum as theory says."""

import json
import math

import numpy as np
import pytest

from experiments.harness.plotting import figure
from experiments.restarts import __main__ as restarts
from experiments.restarts.theory import landscape, law, loss, losses_of_levels, needed
from experiments.restarts.training import Runs

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("lenient")]

SMALL = ["--inputs", "2", "--restarts", "300", "--steps", "5000", "--conjugate-steps", "30"]


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """What a small run leaves, and where."""
    out = tmp_path_factory.mktemp("restarts")
    assert restarts.main([*SMALL, "--out", str(out)]) == 0
    return out, json.loads((out / "restarts.json").read_text())


def test_the_landscape():
    """Two minima and the maximum between, by finite differences; the least loss there is."""
    here = landscape()
    assert here.best < 0 < here.barrier < here.worse
    for at, sign in zip(here, (1, -1, 1), strict=True):
        below, middle, above = loss(np.array([at - 1e-4, at, at + 1e-4]))
        assert abs(above - below) / 2e-4 < 1e-6
        assert sign * (above + below - 2 * middle) / 1e-8 > 0.01
    everywhere = loss(np.linspace(-50, 50, 100_001))
    assert loss(here.best) <= everywhere.min() < loss(here.worse) < loss(here.barrier)


def test_runs_end_where_theory_says(left):
    _, data = left
    assert data["largest_deviation"] < data["allowed"] == 4.5
    assert data["comparisons"] >= 8
    assert data["astray"] == 0
    assert sum(data["law"]) == pytest.approx(1)
    config = restarts.Config(inputs=2)
    for runs in data["runs"].values():
        minimum, losses = np.array(runs["minimum"]), np.array(runs["loss"])
        assert set(minimum) == {0, 1, 2, 3}
        np.testing.assert_allclose(losses, losses_of_levels(config.settings)[np.bitwise_count(minimum)], atol=1e-7)
        assert max(runs["gradient"]) < 1e-4
        assert min(runs["curvature"]) > 0.02
    fraction = np.mean(np.array(data["runs"]["gradient descent"]["minimum"]) == 0)
    assert data["restarts_needed"]["gradient descent"] == pytest.approx(math.log(0.01) / math.log(1 - fraction))


def test_folder(left):
    out, _ = left
    assert json.loads((out / "config.json").read_text())["config"]["inputs"] == 2
    assert (out / "restarts.png").read_bytes().startswith(b"\x89PNG")


def _runs(minimum: np.ndarray, distance: float = 0.0) -> Runs:
    ones = np.ones(len(minimum))
    return Runs(minimum, ones, distance * ones, 0 * ones, ones)


def test_other_counts_and_unfinished_runs_are_non_zero_exits(tmp_path, monkeypatch, capsys):
    evenly = np.arange(400) % 4  # each minimum as often as any other
    for runs, message in ((_runs(evenly), "counts differ from theory"), (_runs(evenly, 1.0), "400 runs")):
        monkeypatch.setattr(restarts, "plot", lambda runs, settings: figure(1, 1, (1, 1))[0])
        monkeypatch.setattr(restarts, "train", lambda optimizer, steps, settings, runs=runs: runs)
        assert restarts.main(["--inputs", "2", "--restarts", "400", "--out", str(tmp_path)]) == 1
        assert message in capsys.readouterr().err


def test_what_is_certain_is_not_judged_as_if_it_were_chance():
    """All runs begin on the better side, so near zero."""
    config = restarts.Config(inputs=2, restarts=400, spread=0.01)
    assert law(config.settings).tolist() == [1, 0, 0]
    found = dict.fromkeys(("gradient descent", "conjugate gradients"), _runs(np.zeros(400, int)))
    judged = restarts.judge(found, config.settings)
    assert judged["largest_deviation"] == 0
    assert judged["comparisons"] == 2


def test_restarts_needed():
    assert needed(0.5) == pytest.approx(math.log2(100))
    assert [needed(0.0), needed(0.999), needed(1.0)] == [math.inf, 1.0, 1.0]


def test_bad_settings_are_one_line(tmp_path, capsys):
    cases = {
        "--inputs must be at least 1, got 0": ["--inputs", "0"],
        "--inputs must be at most 10": ["--inputs", "11"],
        "--conjugate-steps must be at least 1, got 0": ["--conjugate-steps", "0"],
        "--spread a finite number above 0": ["--spread", "0"],
    }
    for message, arguments in cases.items():
        assert restarts.main([*arguments, "--out", str(tmp_path / "out")]) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
