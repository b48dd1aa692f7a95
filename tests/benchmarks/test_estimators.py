import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import estimators, scaling, throughput
from nl_jax.evaluation.diagnostics import timing

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("lenient")]


def only(monkeypatch, module, makes, *names):
    """Lets a benchmark measure some of its estimators; all of them are made, so that none has lost a setting."""
    make = getattr(module, makes)
    monkeypatch.setattr(module, makes, lambda *at: {name: of for name, of in make(*at).items() if name in names})


def test_estimators_print_a_table_and_save_it(tmp_path, capsys, monkeypatch):
    measured = {estimators.NAIVE, "nodes: signs"}  # and of the third the signal is not
    only(monkeypatch, estimators, "_sampled", *measured, "weights: flipout")
    small = ["--sizes", "6", "5", "3", "--num-samples", "2", "--batch-size", "4", "--quick"]
    assert estimators.main([*small, "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    saved = json.loads((tmp_path / "estimators.json").read_text())
    assert json.loads((tmp_path / "config.json").read_text())["config"]["num_samples"] == 2
    exact = {"backprop", "backprop_recursion", "lagrangian_backprop"}
    assert set(saved["rows"]) == exact | measured | {"weights: flipout"}
    for name, row in saved["rows"].items():
        assert name in shown
        assert 0 < row["time"]["low"] <= row["time"]["median"] <= row["time"]["high"]
        assert row["evaluations"] >= 3
        assert (name in exact) == (row["per_evaluation"] is None)
        assert (row["signal_rate"] is not None) == (name in measured)
    assert saved["rows"][estimators.NAIVE]["signal_rate"] == 1
    assert (tmp_path / "estimators.png").stat().st_size > 10_000


def test_scaling_varies_one_size_at_a_time(tmp_path, capsys, monkeypatch):
    only(monkeypatch, scaling, "_estimators", "weights: rank-one signs", "nodes: signs")
    sizes = ["--widths", "4", "--batch-sizes", "2", "--samples", "2"]
    assert scaling.main([*sizes, "--rounds", "2", "--out", str(tmp_path)]) == 0
    saved = json.loads((tmp_path / "scaling.json").read_text())
    assert {varied: curves["sizes"] for varied, curves in saved.items()} == {"width": [4], "batch": [2], "K": [2]}
    assert all(value["median"] > 0 for value in saved["K"]["weights: rank-one signs"])
    assert "nodes: signs" in capsys.readouterr().out
    assert (tmp_path / "scaling.png").stat().st_size > 10_000


def test_throughput_is_a_fraction_of_inference(tmp_path, capsys, monkeypatch):
    only(monkeypatch, throughput, "_estimators", "weights: rank-one signs", "nodes: signs")
    small = ["--sizes", "6", "5", "3", "--num-samples", "2", "--batch-size", "4", "--rounds", "2"]
    assert throughput.main([*small, "--out", str(tmp_path)]) == 0
    saved = json.loads((tmp_path / "throughput.json").read_text())
    shown = capsys.readouterr().out
    assert len(saved) == 2 * 2
    for name, row in saved.items():
        assert name in shown
        assert 0 < row["low"] <= row["median"] <= row["high"]
        assert row["evaluations_per_second"] > 0


def test_ratios_are_taken_round_by_round():
    drifting = np.array([1.0, 2.0, 4.0])  # the machine slows down, the ratio does not
    assert timing.ratio(3 * drifting, drifting) == timing.Spread(3.0, 3.0, 3.0)


def test_all_functions_take_turns():
    calls = []

    def function(name):
        def call():
            calls.append(name)
            return jax.block_until_ready(jnp.zeros(1))

        return call

    seconds = timing.interleaved({name: function(name) for name in "abc"}, rounds=4)
    assert {name: values.shape for name, values in seconds.items()} == dict.fromkeys("abc", (4,))
    assert calls[:3] == list("abc")  # warmed up
    rounds = [calls[i : i + 3] for i in range(3, 15, 3)]
    assert all(sorted(round_) == list("abc") for round_ in rounds)
    assert len(set(map(tuple, rounds))) > 1  # in changing order
