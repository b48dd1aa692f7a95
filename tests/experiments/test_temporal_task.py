"""The experiment on trials of many steps, small: node and weight perturbation end where their laws say."""

import json

import numpy as np
import pytest

from experiments.temporal_task import __main__ as temporal_task
from experiments.temporal_task.measuring import Curve

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("lenient")]

SMALL = [
    "--outputs", "3", "--inputs", "6", "--steps", "4", "--dimension", "2", "--dimensions", "2", "6",
    "--length", "4", "--students", "150",
]  # fmt: skip


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """What a small run leaves, and where."""
    out = tmp_path_factory.mktemp("temporal_task")
    assert temporal_task.main([*SMALL, "--out", str(out)]) == 0
    return out, json.loads((out / "temporal_task.json").read_text())


def test_measured_and_law_agree(left):
    _, data = left
    assert data["largest_deviation"] < data["allowed"] == 5
    assert data["comparisons"] == len(data["curves"]) * 33
    final = {}
    for curve in data["curves"]:
        mean, error, expected = (np.array(curve[name]) for name in ("mean", "error", "expected"))
        assert np.abs(mean - expected).max() > 0
        assert np.abs((mean - expected) / error).max() <= data["largest_deviation"] + 1e-9
        np.testing.assert_allclose(mean[-8:].mean(), curve["final_error"], rtol=1e-9)
        assert curve["at"][-1] == curve["trials"]
        final[curve["inputs"], curve["steps"], curve["dimension"], curve["rule"][:4]] = curve
    assert set(final) == {
        (*task, rule) for task in (("fresh", 4, 2), ("fresh", 4, 6), ("repeated", 4, 2)) for rule in ("node", "weig")
    }
    # Long trials favour weight perturbation, inputs of many dimensions node perturbation.
    for task, better in ((("fresh", 4, 2), "weig"), (("repeated", 4, 2), "weig"), (("fresh", 4, 6), "node")):
        worse = {"weig": "node", "node": "weig"}[better]
        assert final[(*task, better)]["final_error"] < final[(*task, worse)]["final_error"]


def test_folder(left):
    out, data = left
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["off"] for line in lines] == [curve["off"] for curve in data["curves"]]
    assert json.loads((out / "config.json").read_text())["config"]["dimensions"] == [2, 6]
    assert (out / "temporal_task.png").read_bytes().startswith(b"\x89PNG")


def test_disagreement_is_a_non_zero_exit(tmp_path, monkeypatch, capsys):
    """With what was measured of the one rule judged by the law of the other."""
    made = {
        rule: Curve(np.arange(1, 33), np.tile([0.9, 1.1], (32, 1)), np.full(32, law))
        for rule, law in (("node perturbation", 1.0), ("weight perturbation", 2.0))
    }
    monkeypatch.setattr(temporal_task, "measure", lambda setting, rule, **settings: made[rule])
    assert temporal_task.main([*SMALL, "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: measurement and law differ by 10.0 standard errors, more than 5"
    )
    assert (tmp_path / "temporal_task.png").exists()


def test_bad_settings_are_one_line(tmp_path, capsys):
    cases = {
        "--steps must be rising numbers of at least 1, got (5, 5)": ["--steps", "5", "5"],
        "--dimensions must be rising": ["--dimensions", "0"],
        "--students must be at least 100, got 99": ["--students", "99"],
        "--inputs must be at least N_eff = 24, got 9": ["--inputs", "9"],
        "--steps must reach --dimension 8, got (2, 4)": ["--steps", "2", "4"],
        "--rate below 2": ["--rate", "2"],
    }
    for message, arguments in cases.items():
        assert temporal_task.main([*arguments, "--out", str(tmp_path / "out")]) == 1
        shown = capsys.readouterr().err
        assert shown.startswith("error: ")
        assert message in shown
    assert not (tmp_path / "out").exists()
