import importlib.util
import json

import jax
import numpy as np
import pytest

from benchmarks import report, training
from nl_jax.evaluation.diagnostics.timing import Spread

pytestmark = pytest.mark.slow

CASE = training.Case((6, 5, 3), examples=9, batch_size=4, steps=5)


@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("has_torch", [True, False])
def test_prints_a_table_and_saves_it(tmp_path, capsys, monkeypatch, has_torch):
    if has_torch:
        pytest.importorskip("torch")
    else:
        find = importlib.util.find_spec
        missing = lambda name, *rest: None if name == "torch" else find(name, *rest)
        monkeypatch.setattr(importlib.util, "find_spec", missing)
    sizes = ["sizes", "6", "5", "3"], ["examples", "9"], ["batch-size", "4"], ["steps", "5"]
    small = [word for case in ("small", "large") for name, *values in sizes for word in (f"--{case}.{name}", *values)]
    assert training.main([*small, "--rounds", "2", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert ("torch is not installed: left out (pip install torch)" in shown) is not has_torch
    saved = json.loads((tmp_path / "training.json").read_text())
    assert json.loads((tmp_path / "config.json").read_text())["config"]["small"]["steps"] == 5
    assert (saved["torch"] is not None) is has_torch
    rules = {"backprop": 3 + has_torch, "node perturbation, K = 8": 2}
    groups = {f"{size}, {rule}": n for size in ("small", "large") for rule, n in rules.items()}
    assert {group: len(of) for group, of in saved["speed_of_fit_over"].items()} == groups
    for group, of in saved["speed_of_fit_over"].items():
        assert group in shown
        assert "nl.fit" in saved["updates_per_second"][group]
        assert "hand-written scan" in of
        for name, value in of.items():
            assert name in shown
            assert saved["updates_per_second"][group][name] > 0
            assert 0 < value["low"] <= value["median"] <= value["high"]
    assert (tmp_path / "training.png").stat().st_size > 10_000


@pytest.mark.usefixtures("lenient")
def test_fit_and_the_scan_compute_the_same():
    for runs in training.contestants(CASE, 2).values():
        (scan,) = runs["hand-written scan"]
        for name in ("nl.fit", "nl.fit, all steps in one dispatch"):
            (fit,) = runs[name]
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), fit(), scan())


@pytest.mark.usefixtures("lenient")
def test_nothing_is_compiled_after_the_first_run(caplog):
    runs = [way for of in training.contestants(CASE, 2).values() for ways in of.values() for way in ways]
    with jax.log_compiles():
        for run in runs:
            run()
        assert "Compiling" in caplog.text
        caplog.clear()
        for run in runs:
            run()
        assert "Compiling" not in caplog.text


def test_passes_show_every_example_once():
    batches = list(training._passes(np.random.default_rng(0).permutation, CASE))
    assert [len(batch) for batch in batches] == [4] * 5
    assert all(len(set(first) | set(second)) == 8 for first, second in (batches[0:2], batches[2:4]))


def test_tables_are_aligned():
    lines = report.aligned([("a heading longer than all",), ("", "time"), ("a", "1.0", "x"), ("bbb", "10.00", "y")])
    assert lines == ["a heading longer than all", "     time", "a    1.0    x", "bbb  10.00  y"]


def test_the_best_way_of_each_round_counts(monkeypatch):
    seconds = {"a 0": np.array([1.0, 9.0]), "a 1": np.array([2.0, 3.0]), "b 0": np.array([4.0, 4.0])}
    monkeypatch.setattr(report, "interleaved", lambda functions, rounds: {name: seconds[name] for name in functions})
    timed = report.timed({"a": [lambda: 0, lambda: 0], "b": [lambda: 0]}, 2)
    assert {name: list(value) for name, value in timed.items()} == {"a": [1, 3], "b": [4, 4]}


def test_figure_has_a_row_for_each_ratio_and_each_heading():
    canvas = report.ratios_figure({"": {"one": Spread(1, 0.9, 1.2)}, "more": {"two": Spread(2, 2, 3)}}, "x", "title")
    (axes,) = canvas.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["one", "more", "two"]
    assert (axes.get_xscale(), axes.get_xlabel()) == ("log", "x")
