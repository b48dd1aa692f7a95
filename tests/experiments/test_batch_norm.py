import json

import numpy as np
import pytest

from experiments.batch_norm import __main__ as batch_norm
from experiments.batch_norm import report
from experiments.batch_norm.training import SCHEMES, Curve

pytestmark = pytest.mark.usefixtures("lenient")
NONE, AT_ONCE, ALTERNATING, BY_EXAMPLE = SCHEMES


def curve(rule, scheme, rate, losses):
    return Curve(
        rule, scheme, rate, evaluations=120, update=[0, 10, 20],
        train_loss=[np.full(2, 3.0), np.full(2, 2.0), np.array(losses)],
        test_accuracy=[np.full(2, 0.1), np.full(2, 0.5), np.array([0.91, 0.95])],
    )  # fmt: skip


CURVES = [
    curve("backprop", NONE, 0.1, [1.2, 1.4]),
    curve("backprop", NONE, 1.0, [np.inf, np.inf]),
    curve("backprop", AT_ONCE, 0.1, [0.2, 0.4]),
    curve("backprop", AT_ONCE, 1.0, [0.1, 0.3]),
]


@pytest.mark.slow
def test_runs_and_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(batch_norm, "RULES", {"node perturbation": (ALTERNATING,)})
    settings = ["--hidden", "4", "3", "--updates", "4", "--seeds", "2", "--num-samples", "2", "--batch-size", "20"]
    assert batch_norm.main([*settings, "--node-rates", "0.5", "--out", str(tmp_path)]) == 0
    assert f"node perturbation, {ALTERNATING}" in capsys.readouterr().out
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["evaluations"] for line in written] == [4 * 2 * 4]
    assert all(line["update"] == [0, 1, 2, 3, 4] for line in written)
    assert np.isfinite([line["train_loss"] for line in written]).all()
    assert np.load(tmp_path / "batch_norm.npz")[f"node perturbation/{ALTERNATING}/0.5"].shape == (5, 2)
    assert (tmp_path / "batch_norm.png").read_bytes().startswith(b"\x89PNG")


def test_every_scheme_is_judged_at_its_best_rate():
    chosen = report.best(CURVES)
    assert {key: c.learning_rate for key, c in chosen.items()} == {("backprop", NONE): 0.1, ("backprop", AT_ONCE): 1.0}
    lost = [curve("backprop", NONE, 1.0, [np.nan, 1.0]), CURVES[0]]
    assert report.best(lost)["backprop", NONE].learning_rate == 0.1
    row = report.table(CURVES).splitlines()[2]
    assert row.startswith(f"backprop, {AT_ONCE}")
    assert row.removeprefix(f"backprop, {AT_ONCE}").split() == (
        ["1", "120", "0.2000", "±", "0.1000", "93.00", "±", "2.00"]
    )


def test_the_picture_shows_what_was_measured():
    by_update, accuracies, by_rate = report.plot(CURVES, "title").axes
    np.testing.assert_allclose(by_update.lines[1].get_ydata(), [3, 2, 0.2])
    np.testing.assert_allclose(accuracies.lines[1].get_ydata(), [10, 50, 93])
    np.testing.assert_allclose(by_rate.lines[0].get_xdata(), [0.1])  # the rate at which all was lost is left out
    np.testing.assert_allclose(by_rate.lines[1].get_ydata(), [0.3, 0.2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--updates", "0"], "--updates must be at least 1, got 0"),
        (["--batch-size", "1"], "--batch-size must be 2 to the 1437 training examples, got 1"),
        (["--hidden", "0"], "--hidden must be one or more numbers of at least 1"),
        (["--node-rates", "0.1", "-1"], "--node-rates must be finite numbers above 0"),
    ],
)
def test_bad_settings_are_one_line(arguments, message, tmp_path, capsys):
    assert batch_norm.main([*arguments, "--out", str(tmp_path / "out")]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {message}")
    assert shown.count("\n") == 1
    assert not (tmp_path / "out").exists()
