"""The main job as a user runs it; once in a process of its own."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

import nl_jax as nl
from experiments.compare import __main__ as compare
from experiments.compare.training import Curve
from experiments.harness.failure import ExperimentError
from tests.experiments.test_data import idx, write_set

REPOSITORY = Path(compare.__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("lenient")]


def command(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "experiments.compare", *arguments],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False, **options,
    )  # fmt: skip


def small(out, *arguments: str) -> list[str]:
    settings = ["--updates", "4", "--seeds", "2", "--num-samples", "2", "--hidden", "5", "--out", str(out)]
    return [*settings, *arguments]


@pytest.fixture
def no_picture(monkeypatch):
    """An empty one in its place, which takes a second to draw."""
    monkeypatch.setattr(compare, "plot", lambda curves, name: Figure(figsize=(1, 1)))


def test_help_is_worth_reading(capsys):
    with pytest.raises(SystemExit) as ended:
        compare.main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for words in ("--data-dir", "--quick", "--estimators", "MNIST-style IDX files", "side by side"):
        assert words in shown


def mine(objective):
    """A user's own."""
    return nl.backprop(objective)


def test_an_estimator_of_ones_own(tmp_path, no_picture):
    own = f"{__name__}:mine"
    assert compare.main(small(tmp_path, "--estimators", own)) == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {line["estimator"] for line in lines} == {own}
    assert np.less(lines[-1]["train_loss"], lines[0]["train_loss"]).all()
    assert (tmp_path / f"{__name__}.mine.npz").exists()


def test_quick_run_end_to_end(tmp_path):
    began = time.monotonic()
    tried = ("backprop", "node_perturbation")  # .ci/run tries all
    shorter = ("--updates", "100", "--learning-rate", "0.03")
    done = command("--quick", *shorter, "--out", str(tmp_path), "--estimators", *tried)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 240  # a hang, not a speed: a minute is the aim
    rows = [line.split() for line in done.stdout.splitlines()]
    table = {row[0]: row for row in rows if row[0] in compare.ESTIMATORS}
    assert list(table) == list(tried)
    accuracy = {name: float(row[1]) for name, row in table.items()}
    assert accuracy["backprop"] > 94
    assert accuracy["node_perturbation"] > 90

    config = json.loads((tmp_path / "config.json").read_text())
    assert config["config"]["quick"] is True
    assert set(config["versions"]) >= {"nl_jax", "jax", "optax"}
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {line["estimator"] for line in lines} == set(tried)
    assert all(len(line["cosine"]) == 3 for line in lines)
    final = [line for line in lines if line["estimator"] == "node_perturbation"][-1]
    assert (final["update"], final["evaluations"]) == (100, 100 * 18)
    assert np.load(tmp_path / "backprop.npz")["loss"].shape == (3, 100)
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_an_interrupted_run_goes_on_where_it_was(tmp_path, monkeypatch, no_picture):
    """The second estimator is interrupted; what the first left is the same as in a run of both."""
    train, asked = compare.train_with, []

    def interrupted(name, *arguments):
        asked.append(name)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return train(name, *arguments)

    monkeypatch.setattr(compare, "train_with", interrupted)
    both = small(tmp_path, "--estimators", "backprop", "lagrangian_backprop")
    assert compare.main(both) == 130
    lines, arrays = (tmp_path / "metrics.jsonl").read_text(), np.load(tmp_path / "backprop.npz")["loss"]
    assert compare.main([*both, "--resume"]) == 0
    assert asked == ["backprop", "lagrangian_backprop", "lagrangian_backprop"]
    assert (tmp_path / "metrics.jsonl").read_text().startswith(lines)
    np.testing.assert_array_equal(np.load(tmp_path / "backprop.npz")["loss"], arrays)
    assert (tmp_path / "lagrangian_backprop.npz").exists()


def test_idx_files(tmp_path, capsys, monkeypatch):
    """They are what is trained on; that it is trained on anything is the other tests'."""
    write_set(tmp_path, "t10k", 150, compress=True)
    trained_on = []
    monkeypatch.setattr(compare, "train_with", lambda name, settings, dataset, *rest: trained_on.append(dataset) or {})
    arguments = small(tmp_path / "out", "--data-dir", str(tmp_path), "--estimators", "backprop", "--batch-size", "20")
    assert compare.main(arguments) == 0
    assert "120 images to train, 30 to test" in capsys.readouterr().out
    ((_, train, test),) = trained_on
    assert (len(train.images), len(test.images)) == (120, 30)


def test_an_update_is_timed_by_itself(tmp_path, monkeypatch, no_picture):
    """Not between two logs: training goes on while they measure."""
    seconds = {"update": np.array([0.1, 0.2, 0.9])}  # of 4 updates
    monkeypatch.setattr(nl.diagnostics.timing, "interleaved", lambda functions, rounds, **_: seconds)
    tables = []
    monkeypatch.setattr(compare, "table", lambda curves, target: tables.append(curves) or "")
    assert compare.main(small(tmp_path, "--estimators", "backprop")) == 0
    assert tables[0]["backprop"].seconds == pytest.approx(0.2)


def test_the_table_says_what_the_curves_say():
    curve = Curve(
        update=[0, 10, 20, 30],
        evaluations=[0, 40, 80, 120],
        train_loss=[np.ones(4)] * 4,
        test_accuracy=[np.full(4, a) for a in (0.1, 0.91, 0.95)] + [np.array([0.90, 0.92, 0.94, 0.96])],
        cosine=[np.full(4, 0.25), np.full(4, 0.5), np.full(4, 0.5), np.full(4, 0.75)],
        seconds_per_update=[5.0, 0.1, 0.1],
    )
    row = compare.table({"backprop": curve}, 0.9).splitlines()[1].split()
    assert row == ["backprop", "93.00", "±", "1.29", "30", "120", "40", "3.0", "0.250", "→", "0.750"]


def test_the_picture_shows_each_curve_against_its_own_axis():
    curve = Curve(
        update=[0, 10, 20], evaluations=[0, 40, 80], train_loss=[np.full(2, x) for x in (3.0, 2.0, 1.0)],
        test_accuracy=[np.ones(2)] * 3, cosine=[np.full(2, 0.5)] * 3,
    )  # fmt: skip
    by_update, by_cost, by_angle = compare.plot({"backprop": curve}, "title").axes
    for axes, x, y in [
        (by_update, [0, 10, 20], [3, 2, 1]),
        (by_cost, [40, 80], [2, 1]),
        (by_angle, [0, 10, 20], [0.5] * 3),
    ]:
        np.testing.assert_allclose(axes.lines[0].get_xdata(), x)
        np.testing.assert_allclose(axes.lines[0].get_ydata(), y)


def test_results_of_an_earlier_run_do_not_mix_in(tmp_path, no_picture):
    assert compare.main(small(tmp_path, "--estimators", "lagrangian_backprop")) == 0
    assert (tmp_path / "lagrangian_backprop.npz").exists()
    (tmp_path / "notes.txt").write_text("the user's own")
    assert compare.main(small(tmp_path, "--estimators", "backprop")) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "backprop.npz", "compare.png", "config.json", "finished", "metrics.jsonl", "notes.txt",
    ]  # fmt: skip


def test_what_is_not_a_number_is_null(tmp_path):
    folder = compare.Folder(tmp_path, compare.Config())
    folder.metric(cosine=np.array([0.5, np.nan]), loss=np.float32(np.inf))
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"cosine": [0.5, None], "loss": None}


def test_errors_are_one_line_and_a_non_zero_exit(tmp_path, capsys):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a folder should be")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    write_set(damaged, "t10k", 20)
    (damaged / "t10k-images-idx3-ubyte").write_bytes(idx(np.zeros((20, 4, 4), np.uint8))[:-5])
    cases = {
        "unknown estimator magic; there are backprop": ["--estimators", "backprop", "magic"],
        "--estimators json:none: module": ["--estimators", "json:none"],
        "--estimators names backprop twice": ["--estimators", "backprop", "backprop"],
        "unknown dataset cats; there are digits, mnist": ["--dataset", "cats"],
        "--updates must be at least 1, got 0": ["--updates", "0"],
        "--learning-rate must be": ["--learning-rate", "nan"],
        "--batch-size must be at most the 1437": ["--batch-size", "5000"],
        f"--out {blocked}": ["--out", str(blocked)],
        "truncated: 315 bytes": ["--data-dir", str(damaged)],
    }
    for message, arguments in cases.items():
        assert compare.main(small(tmp_path / "out", *arguments)) == 1
        shown = capsys.readouterr().err
        assert shown.startswith("error: ")
        assert message in shown
        assert shown.count("\n") == 1


def test_a_lost_run_is_an_error_and_leaves_what_was_done(tmp_path, monkeypatch, capsys, no_picture):
    broken = lambda objective, samples: nl.backprop(lambda *at, **how: objective(*at, **how) * np.float32(1e30))
    monkeypatch.setitem(compare.ESTIMATORS, "broken", broken)
    arguments = small(tmp_path, "--estimators", "backprop", "broken", "--learning-rate", "1e38")
    assert compare.main(arguments) == 1
    shown = capsys.readouterr()
    assert "the loss" in shown.err
    assert "--learning-rate" in shown.err
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]


def test_ctrl_c_leaves_what_was_done(tmp_path, monkeypatch, capsys):
    """A signal, as from the terminal, when the second line has been written."""
    metric = compare.Folder.metric

    def interrupted(folder, **values):
        metric(folder, **values)
        if values["update"] == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(compare.Folder, "metric", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        assert compare.main(small(tmp_path, "--estimators", "backprop", "--updates", "50")) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    shown = capsys.readouterr()
    assert "interrupted: what had been written is kept" in shown.err
    assert "backprop" in shown.out
    assert [json.loads(line)["update"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [0, 2]
    assert np.load(tmp_path / "backprop.npz")["loss"].shape == (2, 2)


def test_settings_are_checked_before_anything_is_written(tmp_path):
    with pytest.raises(ExperimentError):
        compare.run(compare.Config(estimators=("nothing",), out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
