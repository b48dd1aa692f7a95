"""What a run reports on its way, where it is written, and how a log stops the run."""

import json
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nl_jax as nl
from tests.training.problem import DATA, KEY, LEARNER, fit, objective

pytestmark = pytest.mark.slow


def _record(state, info):
    return {"loss": info.loss, "norm": jnp.sum(state.params**2), "weights": state.params[:, 0]}


@pytest.fixture(scope="module")
def expected():
    return fit(num_steps=8, record=_record)[1]


def test_reports():
    reports = []
    state, history = fit(num_steps=5, log=reports.append)
    assert [report.step for report in reports] == [0, 2, 4, 5]
    assert np.isnan(reports[0].loss)
    assert reports[0].records is None
    for report in reports[1:]:
        since = slice(report.step - len(report.losses), report.step)
        np.testing.assert_array_equal(report.losses, history.loss[since])
        np.testing.assert_array_equal(report.records.loss, history.loss[since])
        assert report.loss == history.loss[report.step - 1]
        assert int(report.state.step) == report.step
    np.testing.assert_array_equal(reports[-1].state.params, state.params)


def test_several_logs_figures_and_a_stop(capsys):
    seen = []
    logs = [lambda report: {"shown": report.step}, lambda report: report.step >= 4, seen.append]
    state, history = fit(num_steps=20, log=logs, progress=True)
    assert int(state.step) == len(history.loss) == 4
    assert [report.step for report in seen] == [0, 2, 4]  # those after the one that stops are told too
    assert "shown=4" in capsys.readouterr().err


def test_a_log_that_answers_otherwise():
    with pytest.raises(ValueError, match="log must return None, figures to show as a mapping, or True to stop; got 35"):
        fit(num_steps=2, log=lambda report: 35)
    for log, shown in ((None, "None"), ("run.csv", "'run.csv'"), ([print, 3], "3")):
        with pytest.raises(ValueError, match=f"log must be a function of a report, or a sequence of them, got {shown}"):
            fit(num_steps=2, log=log)


def test_csv(tmp_path, expected):
    path = tmp_path / "new" / "loss.csv"
    fit(num_steps=8, record=_record, log=nl.logs.csv(path))
    lines = path.read_text().splitlines()
    assert lines[0] == "step,loss,norm,weights/0,weights/1,weights/2"
    rows = np.array([[float(x) for x in line.split(",")] for line in lines[1:]])
    assert rows[:, 0].tolist() == list(range(1, 9))
    np.testing.assert_array_equal(rows[:, 1].astype(np.float32), expected["loss"])
    np.testing.assert_array_equal(rows[:, 3:].astype(np.float32), expected["weights"])


def test_json_lines(tmp_path, expected):
    fit(num_steps=8, record=_record, log=nl.logs.json_lines(tmp_path / "log.jsonl", every=3))
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [3, 6]
    assert [np.float32(row["norm"]) for row in rows] == expected["norm"][[2, 5]].tolist()


@pytest.mark.parametrize("make", [nl.logs.csv, nl.logs.json_lines])
def test_a_file_of_a_resumed_run_is_that_of_an_uninterrupted_one(tmp_path, make):
    """Steps after the last save are taken again, and a line may have been cut by the end of the process."""

    def stop(report):
        if report.step == 6:
            raise KeyboardInterrupt

    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    fit(num_steps=8, log=make(whole))
    with pytest.raises(nl.Interrupted):
        fit(tmp_path / "run", num_steps=8, log=[make(resumed), stop])
    (tmp_path / "run" / "seals" / "6.json").unlink()  # as if killed before step 6 was saved
    with resumed.open("a") as file:
        file.write("7,0.")
    fit(tmp_path / "run", num_steps=8, log=make(resumed))
    assert resumed.read_text() == whole.read_text()
    before = resumed.read_text()
    fit(tmp_path / "run", num_steps=8, log=make(resumed))  # finished: nothing is told
    assert resumed.read_text() == before
    fit(num_steps=4, log=make(resumed))  # another run begins the file anew
    assert resumed.read_text() == "".join(whole.read_text().splitlines(keepends=True)[: 4 + (make is nl.logs.csv)])


def test_a_file_with_other_columns(tmp_path):
    state, _ = fit(num_steps=2, log=nl.logs.csv(tmp_path / "log.csv"))
    with pytest.raises(ValueError, match=r"log.csv has columns \['step', 'loss', 'evaluations'\], this run has"):
        nl.fit(
            LEARNER, KEY, state, DATA, num_steps=2, batch_size=8, record=_record, progress=False,
            log=nl.logs.csv(tmp_path / "log.csv"),
        )  # fmt: skip


@pytest.mark.parametrize("make", [nl.logs.csv, nl.logs.json_lines])
def test_a_record_of_another_columns_name(tmp_path, make):
    path = tmp_path / "log"
    fit(num_steps=2, record=lambda state, info: {"loss": info.loss, "step": state.step}, log=make(path))  # the same
    for name in ("step", "loss"):
        with pytest.raises(ValueError, match=f"record keeps '{name}' = .* row of step 1 has another .*: give what you"):
            fit(num_steps=2, record=lambda state, info, name=name: {name: jnp.float32(-1)}, log=make(path))


def test_complex_records_are_two_numbers(tmp_path):
    record = lambda state, info: {"z": jax.lax.complex(info.loss, jnp.float32(2))}
    fit(num_steps=1, record=record, log=nl.logs.json_lines(tmp_path / "log.jsonl"))
    row = json.loads((tmp_path / "log.jsonl").read_text())
    assert row == {"step": 1, "loss": row["loss"], "z/real": row["loss"], "z/imag": 2}


def test_restarts_have_a_column_a_run(tmp_path):
    found = nl.restarts(
        LEARNER, KEY, lambda key: jnp.zeros((3, 1)), DATA, score=lambda w: jnp.mean(objective(w, DATA)), num_restarts=2,
        num_steps=4, steps_per_dispatch=2, batch_size=8, progress=False, log=nl.logs.csv(tmp_path / "log.csv"),
    )  # fmt: skip
    header, *rows = (tmp_path / "log.csv").read_text().splitlines()
    assert header == "step,loss/0,loss/1,evaluations/0,evaluations/1"
    losses = np.array([[np.float32(x) for x in row.split(",")[1:3]] for row in rows])
    np.testing.assert_array_equal(losses.T, found.history.loss)


def test_weights_and_biases():
    """Of a run nothing is used but its method `log`."""

    rows = []
    run = types.SimpleNamespace(log=lambda row, step: rows.append((step, row)))
    fit(num_steps=4, log=nl.logs.wandb(run, every=2))
    assert [step for step, _ in rows] == [2, 4]
    assert set(rows[0][1]) == {"loss", "evaluations"}


def test_tensorboard(tmp_path, expected):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    fit(num_steps=8, record=_record, log=nl.logs.tensorboard(tmp_path))
    events = accumulator.EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["tensors"]) == {"loss", "norm", "weights/0", "weights/1", "weights/2"}
    found = events.Tensors("norm")
    assert [event.step for event in found] == list(range(1, 9))
    np.testing.assert_array_equal([event.tensor_proto.float_val[0] for event in found], expected["norm"])


def test_held_out_data_is_evaluated(capsys):
    """Before the first step, and at the first dispatch that reaches each multiple of `every`; of every restart."""
    score = lambda params: jnp.sum(params**2)
    kept, held_out = [], nl.logs.evaluate(score, every=3, name="norm")
    fit(num_steps=8, log=[lambda report: kept.append(score(report.state.params)), held_out], progress=True)
    assert held_out.steps == [0, 4, 6]  # dispatches end at 2, 4, 6 and 8
    np.testing.assert_allclose(held_out.values, [kept[0], kept[2], kept[3]], rtol=1e-6)
    assert f"norm={held_out.values[-1]:.4g}" in capsys.readouterr().err

    several, init = nl.logs.evaluate(score), lambda key: jax.random.normal(key, (3, 1))
    settings = {"num_restarts": 2, "num_steps": 2, "progress": False}
    found = nl.restarts(LEARNER, KEY, init, DATA, score=score, log=several, **settings)
    assert several.steps == [0, 2]
    np.testing.assert_allclose(several.values[-1], found.scores, rtol=1e-6)
    for wrong, shape in ((lambda params: params, r"\(3, 1\)"), (lambda params: {"a": score(params)}, r"{'a': \(\)}")):
        with pytest.raises(ValueError, match=f"score must return one number, got {shape}: average over the examples"):
            fit(num_steps=2, log=nl.logs.evaluate(wrong))


def test_losses_are_logged_and_data_evaluated_where_nothing_is_recorded(tmp_path):
    nothing, held_out = lambda state, info: None, nl.logs.evaluate(lambda params: jnp.sum(params**2), every=4)
    fit(num_steps=8, record=nothing, log=[nl.logs.csv(tmp_path / "loss.csv"), held_out])
    assert held_out.steps == [0, 4, 8]
    assert len((tmp_path / "loss.csv").read_text().splitlines()) == 1 + 8


def test_bad_settings(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="score must take one argument, got 3: a function of the parameters"):
        nl.logs.evaluate(3)
    with pytest.raises(ValueError, match="every must be a whole number of at least 1, got 0"):
        nl.logs.evaluate(jnp.sum, every=0)
    for make in (nl.logs.csv, nl.logs.json_lines, nl.logs.tensorboard, nl.logs.wandb):
        with pytest.raises(ValueError, match="every must be a whole number of at least 1, got 0"):
            make(tmp_path, every=0)
    monkeypatch.setitem(sys.modules, "tensorboard.summary", None)
    with pytest.raises(ImportError, match=r"logs.tensorboard of a folder needs tensorboard: pip install tensorboard"):
        nl.logs.tensorboard(tmp_path)
