import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import estimators
from nl_jax.diagnostics import timing


@pytest.mark.slow
@pytest.mark.usefixtures("lenient")
def test_prints_a_table_and_saves_it(tmp_path, capsys):
    small = ["--sizes", "6", "5", "3", "--num-samples", "2", "--batch-size", "4", "--rounds", "2"]
    assert estimators.main([*small, "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    saved = json.loads((tmp_path / "estimators.json").read_text())
    assert json.loads((tmp_path / "config.json").read_text())["config"]["num_samples"] == 2
    assert len(saved["over_forward_passes"]) == 11
    assert set(saved["over_value_and_grad"]) == {"backprop", "backprop_recursion", "lagrangian_backprop"}
    for name, value in (saved["over_forward_passes"] | saved["over_value_and_grad"]).items():
        assert name in shown
        assert 0 < value["low"] <= value["median"] <= value["high"]
    assert (tmp_path / "estimators.png").stat().st_size > 10_000


def test_ratios_are_taken_round_by_round():
    drifting = np.array([1.0, 2.0, 4.0])  # the machine slows down, the ratio does not
    assert timing.ratio(3 * drifting, drifting) == timing.Spread(3.0, 3.0, 3.0)


def test_all_functions_take_turns():
    calls = []

    def function(name):
        def call():
            calls.append(name)
            time.sleep(0.001)
            return jax.block_until_ready(jnp.zeros(1))

        return call

    seconds = timing.interleaved({name: function(name) for name in "abc"}, rounds=4)
    assert calls[:3] == ["a", "b", "c"]  # warm up
    assert all(sorted(calls[i : i + 3]) == ["a", "b", "c"] for i in range(3, 15, 3))
    assert all(len(s) == 4 and (s > 0.001).all() for s in seconds.values())
