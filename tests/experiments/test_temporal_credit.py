"""Credit through time, tiny: what is judged, that forged results fail, and that finished lessons are kept."""

import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest

from experiments.harness import temporal_networks, temporal_tasks
from experiments.harness.plotting import figure
from experiments.temporal_credit import __main__ as temporal_credit
from experiments.temporal_credit import training as temporal_training
from experiments.temporal_credit.report import BACKPROP, RTRL, Lesson
from experiments.temporal_credit.training import Trained

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("lenient")]

SMALL = [
    "--tasks", "delayed_xor", "--rules", BACKPROP, RTRL, "--steps", "5", "--units", "3", "--spiking-units", "8",
    "--updates", "150", "--rates", "0.01", "0.03", "--seeds", "2",
]  # fmt: skip


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """What a small run leaves, and where; the memory of the first rule is measured, at two lengths, the others' not."""
    out = tmp_path_factory.mktemp("temporal_credit")
    measured, calls = temporal_training.temporary_bytes, itertools.count()
    with pytest.MonkeyPatch.context() as patched:
        few = lambda *at: measured(*at) if next(calls) < 2 else 1000
        patched.setattr(temporal_training, "temporary_bytes", few)
        assert temporal_credit.main([*SMALL, "--out", str(out)]) == 0
    return out, json.loads((out / "temporal_credit.json").read_text())


def test_judged(left):
    out, data = left
    assert 0 <= data["largest_deviation"] <= data["allowed"] == 1
    assert [one["statement"] for one in data["judged"]] == [
        "delayed_xor: RTRL's losses are those of backprop through time",
        "delayed_xor: a spiking network learns by backprop through time",
    ]
    by_rule = {(one["network"], one["rule"]): one for one in data["lessons"]}
    assert set(by_rule) == {("leaky", BACKPROP), ("leaky", RTRL), ("spiking", BACKPROP)}
    for one in by_rule.values():
        assert np.shape(one["test"]) == np.shape(one["validation"]) == (2, 2)
        assert np.shape(one["loss"]) == (2, 2, len(one["updates"]))
        assert one["updates"][-1] == 150
    exact, forward = (by_rule["leaky", rule] for rule in (BACKPROP, RTRL))
    np.testing.assert_allclose(np.array(forward["loss"])[..., 0], np.array(exact["loss"])[..., 0], rtol=1e-4)
    assert forward["evaluations"] > exact["evaluations"] == 3
    few, many = data["rules"][0]["bytes"]
    assert many > 1.5 * few
    assert data["rules"][1]["audit"]["when"] == "online"
    for name in ("temporal_credit.png", "curves.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")


def test_what_is_finished_is_not_done_again(left, monkeypatch, capsys):
    out, before = left

    def refuse(*rest, **settings):
        pytest.fail("it was finished")

    for name in ("train", "difference_to_backprop", "temporary_bytes"):
        monkeypatch.setattr(temporal_training, name, refuse)
    assert temporal_credit.main([*SMALL, "--out", str(out), "--resume"]) == 0
    assert json.loads((out / "temporal_credit.json").read_text()) == before
    assert "chance" in capsys.readouterr().out


def test_interrupted_and_resumed(tmp_path, monkeypatch, capsys):
    """What was finished before Ctrl-C is kept and shown; other settings begin anew."""
    taught = []

    def train(make, net, task, **settings):
        taught.append(settings["updates"])
        if len(taught) == 2:
            raise KeyboardInterrupt
        return _trained(0.1)

    _stub(monkeypatch)
    monkeypatch.setattr(temporal_training, "train", train)
    arguments = [*SMALL, "--out", str(tmp_path)]
    assert temporal_credit.main(arguments) == 130
    assert "leaky    backprop through time" in capsys.readouterr().out
    assert temporal_credit.main([*arguments, "--resume"]) == 0
    assert len(taught) == 2 + 2
    assert temporal_credit.main([*arguments, "--updates", "7", "--resume"]) == 1
    assert "has other settings, updates is 150 there, 7 here" in capsys.readouterr().err
    assert temporal_credit.main([*arguments, "--updates", "7"]) == 0
    assert taught[4:] == [7] * 3


def test_forged_results_are_non_zero_exits(tmp_path, monkeypatch, capsys):
    _stub(monkeypatch)
    forgeries = {"RTRL's losses are those of": (1e-6, 0.1), "a spiking network learns": (0.0, 0.49)}
    for place, (message, (difference, error)) in enumerate(forgeries.items()):
        monkeypatch.setattr(temporal_training, "difference_to_backprop", lambda *a, d=difference, **k: d)
        monkeypatch.setattr(temporal_training, "train", lambda *a, e=error, **k: _trained(e))
        assert temporal_credit.main([*SMALL, "--out", str(tmp_path / str(place))]) == 1
        assert message in capsys.readouterr().err


def test_judging():
    task = temporal_tasks.delayed_xor(0, (20, 20, 1000))
    tasks = {"delayed_xor": task, "mnist_1d": task._replace(chance=0.9)}
    for error, allowed in ((0.10, True), (0.109, True), (0.112, False), (np.nan, False)):
        (one,) = temporal_credit.judge({Lesson("mnist_1d", "GRU", BACKPROP): _trained(error)}, {}, tasks)
        assert bool(one["deviation"] <= 1) is allowed
    for error, allowed in ((0.4, True), (0.48, False), (0.6, False), (np.nan, False)):
        (one,) = temporal_credit.judge({Lesson("delayed_xor", "spiking", BACKPROP): _trained(error)}, {}, tasks)
        assert bool(one["deviation"] <= 1) is allowed
    (one,) = temporal_credit.judge({}, {"adding": np.nan}, tasks)
    assert one["deviation"] == np.inf  # and not NaN, which a largest deviation may lose


def test_a_rate_that_lost_a_run_is_not_chosen():
    lost = _trained(0.3)._replace(validation=np.array([[0.0, np.nan], [0.2, 0.3]]))
    assert lost.best == 1


def test_the_network_of_the_paper():
    """Two GRUs, six units each way as there, all 480 states read."""
    task = temporal_tasks.delayed_xor(0, (4, 4, 4), steps=40)._replace(num_outputs=10)
    net = temporal_networks.gru(task, 6)
    params = net.init(jax.random.key(0))
    assert params["output"]["weight"].shape == (480, 10)
    assert net.apply(params, task.train.inputs).shape == (4, 10)
    # One step of the way back sees only what comes after it: changing the first input moves it at the first step alone.
    moved = task.train.inputs.copy()
    moved[:, 0] += 1
    params["output"]["weight"] = params["output"]["weight"].at[: 12 * 39 + 6].set(0)
    np.testing.assert_array_equal(net.apply(params, moved), net.apply(params, task.train.inputs))


def test_bad_settings_are_one_line(tmp_path, capsys):
    cases = {
        "--tasks must be some of adding, delayed_xor, mnist_1d": ["--tasks", "copy"],
        "--rules must be some of": ["--rules", RTRL, RTRL],
        "--seeds must be at least 2, got 1": ["--seeds", "1"],
        "--rates must be finite numbers above 0": ["--rates", "0"],
    }
    for message, arguments in cases.items():
        assert temporal_credit.main([*arguments, "--out", str(tmp_path / "out")]) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_lessons():
    every = list(temporal_credit.lessons(temporal_credit.Config()))
    assert len(every) == 3 * (len(temporal_networks.RULES) + len(temporal_networks.OF_SPIKES)) + 1
    assert sum(lesson.network == "GRU" for lesson in every) == 1
    without = dataclasses.replace(temporal_credit.Config(), gru_units=(0,), tasks=("mnist_1d",), rules=(RTRL,))
    assert list(temporal_credit.lessons(without)) == [Lesson("mnist_1d", "leaky", RTRL)]


def _trained(error):
    errors = np.full((2, 2), error)
    return Trained([0.01, 0.03], errors, errors, np.arange(1, 4), np.ones((2, 2, 3)), 3, 1.0)


def _stub(monkeypatch):
    audit = {"sees": "three-factor", "when": "online", "memory": "constant"}
    monkeypatch.setattr(temporal_credit, "plot", lambda *rest: figure(1, 1, (1, 1))[0])
    monkeypatch.setattr(temporal_credit, "curves", lambda *rest: figure(1, 1, (1, 1))[0])
    monkeypatch.setattr(temporal_training, "temporary_bytes", lambda *rest: 1000)
    monkeypatch.setattr(temporal_training, "audited", lambda *rest: audit)
    monkeypatch.setattr(temporal_training, "difference_to_backprop", lambda *rest, **settings: 0.0)
