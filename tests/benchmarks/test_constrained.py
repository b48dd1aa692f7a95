import importlib.util
import json

import jax
import numpy as np
import pytest

from benchmarks import constrained, multipliers

pytestmark = pytest.mark.usefixtures("lenient")
CONFIG = constrained.Config(sizes=(6, 5, 4, 3), batch_size=4, iterations=6)


def installed(*names):
    return pytest.mark.skipif(not all(map(importlib.util.find_spec, names)), reason=f"needs {' and '.join(names)}")


@pytest.fixture(scope="module")
def ours():
    """The gradient of a solver, found by the beginning of its name."""
    on = constrained._regression(CONFIG)
    found = constrained.solvers(on, CONFIG.iterations)
    return on, lambda start: next(
        constrained._gradient(on, one) for name, one in found.items() if name.startswith(start)
    )


@installed("fabricpc")
def test_fabricpc_computes_the_same(ours):
    on, gradient = ours
    (contest,) = constrained._fabricpc(on, CONFIG.iterations)
    assert contest.ours in constrained.solvers(on, CONFIG.iterations)
    assert len(contest.peer) == 2
    theirs, exact = contest.gradient(), gradient("backprop")
    assert constrained._difference(theirs, gradient("predictive coding")) < 1e-5
    assert constrained._difference(theirs, exact) > 0.1  # else all would agree


@pytest.mark.parametrize("library", [pytest.param(name, marks=installed("torch", name)) for name in ("mdmm", "cooper")])
def test_torch_peers_compute_the_same(ours, library):
    torch, module = importlib.import_module("torch"), importlib.import_module(library)
    on, gradient = ours
    inner = constrained.inner(CONFIG.iterations)
    step, program = getattr(multipliers, library)(torch, module, on, inner)
    theirs = program.tree(step(None), on)
    assert constrained._difference(theirs, gradient("primal–dual")) < 1e-5
    again = program.tree(step(None), on)  # weights are learned, by steps too small to see
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), again, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("missing", [(), ("fabricpc", "torch")])
def test_prints_a_table_and_saves_it(tmp_path, capsys, monkeypatch, missing):
    find = importlib.util.find_spec
    if not missing and not (find("fabricpc") or find("torch")):
        pytest.skip("no peer is installed: as with both missing")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in missing else find(name, *rest))
    small = ["--sizes", "6", "5", "4", "3", "--batch-size", "4", "--iterations", "6", "--rounds", "2"]
    assert constrained.main([*small, "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    for name in missing:
        assert f"{name} is not installed: left out" in shown
    saved = json.loads((tmp_path / "constrained.json").read_text())
    on = constrained._regression(CONFIG)
    assert ["backprop", *saved["solver_over_backprop"]] == list(constrained.solvers(on, 6))
    assert not (missing and saved["peer_over_ours"])
    assert all(difference < 1e-5 for difference in saved["relative_difference_of_gradients"].values())
    for name, value in {**saved["solver_over_backprop"], **saved["peer_over_ours"]}.items():
        assert name in shown
        assert 0 < value["low"] <= value["median"] <= value["high"]
    assert (tmp_path / "constrained.png").stat().st_size > 10_000
