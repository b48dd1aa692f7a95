"""Local losses, small: the law and what is measured agree, and what is said when they do not."""

import json

import numpy as np
import pytest

import nl_jax as nl
from experiments.local_losses import __main__ as local_losses
from experiments.local_losses.__main__ import Config
from experiments.local_losses.learning import RULES, WAYS, Noise, Result, trunk, units_per_loss

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("lenient")]


def test_quick_agrees_with_its_law(tmp_path, capsys):
    settings = ["--updates", "3", "--estimates", "20", "--batch-size", "20", "--quick"]
    assert local_losses.main([*settings, "--ways", "blocks, patches, groups", "--out", str(tmp_path)]) == 0
    said = json.loads((tmp_path / "local_losses.json").read_text())
    assert said["largest_deviation"] < said["allowed"]
    (found,) = said["ways"].values()
    # of both blocks a unit shares its loss with 3 or 7 others and 10 of its head: signs have one less
    assert 4 + 10 - 1 < found["law"] < 8 + 10 - 1
    assert abs(found["variance"] - found["law"]) < 5 * found["variance_error"]
    assert np.shape(found["accuracy"]["backprop"]) == (2,)
    assert found["cosine"][0] > 5 * found["cosine"][1]
    assert (tmp_path / "local_losses.png").read_bytes().startswith(b"\x89PNG")
    assert "largest deviation of 1 compared" in capsys.readouterr().out


def test_units_per_loss():
    """Every unit of a block, or its share of a group and a position, and the head's."""
    network = trunk(8, 3)
    counts = {
        way: units_per_loss(nl.local_losses(network, nl.losses.cross_entropy, 10, **settings), network, 10)
        for way, settings in WAYS.items()
    }
    assert counts["one loss"] == {"high": 8 * 8 * 16 + 4 * 4 * 32 + 2 * 2 * 32 + 10}
    assert counts["blocks"] == {"low": 1034, "mid": 522, "high": 138}
    assert counts["blocks, groups"] == {"low": 266, "mid": 138, "high": 42}
    assert counts["blocks, patches"] == {"low": 26, "mid": 42, "high": 42}
    assert counts["blocks, patches, groups"] == {"low": 14, "mid": 18, "high": 18}


def made_up(off=0.0):
    """Ways that are `off` standard errors from their laws."""
    wave = np.tile([-1.0, 1.0], 50)
    error = wave.std(ddof=1) / 10
    found = {}
    for index, way in enumerate(WAYS):
        law = 100.0 / 2**index
        noise = Noise(law + wave + off * error, law, np.full(100, 0.1 * (index + 1)) + 0.01 * wave)
        accuracy = {rule: np.array([0.8, 0.9]) - 0.1 * i for i, rule in enumerate(RULES)}
        found[way] = Result(noise, accuracy, dict.fromkeys(RULES, 0.01))
    return found


def test_the_largest_deviation_is_judged():
    right = local_losses.judge(made_up(off=3.0))
    assert right.largest_deviation == pytest.approx(3)
    assert right.largest_deviation < right.allowed < 5
    assert not local_losses.judge(made_up(off=-6.0)).agrees


def test_the_table_and_the_picture_show_what_was_measured():
    text = local_losses.table(made_up())
    assert "100.0 ± 0.1" in text
    assert "85.00 ± 5.00" in text
    variance, cosine, accuracy = local_losses.plot(made_up(), "title", Config().settings).axes
    np.testing.assert_allclose(variance.containers[0].lines[0].get_ydata(), [100, 50, 25, 12.5, 6.25])
    np.testing.assert_allclose(cosine.containers[0].lines[0].get_ydata(), [0.1, 0.2, 0.3, 0.4, 0.5])
    np.testing.assert_allclose(accuracy.containers[1].lines[0].get_ydata(), [75] * 5)
    for axes in (variance, cosine, accuracy):
        assert axes.get_xlabel()
        assert axes.get_ylabel()


def test_disagreement_is_a_non_zero_exit(tmp_path, monkeypatch, capsys):
    """Said after all is saved."""
    monkeypatch.setattr(local_losses, "learn", lambda way, *rest: made_up(off=9.0)[way])
    assert local_losses.main(["--out", str(tmp_path)]) == 1
    assert "error: law and measurement disagree: by 9.0 standard errors" in capsys.readouterr().err
    assert (tmp_path / "local_losses.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "letters"], "unknown dataset letters; there are digits, mnist"),
        (["--ways", "rows"], "unknown way rows; there are one loss; blocks"),
        (["--seeds", "1"], "--seeds must be at least 2, got 1"),
        (["--estimates", "19"], "--estimates must be at least 20, got 19"),
        (["--convolutions", "4"], "--convolutions must be 2 or 3, got 4"),
        (["--rates", "0"], "--rates must be one or more numbers above 0"),
    ],
)
def test_bad_settings_are_one_line(arguments, message, tmp_path, capsys):
    assert local_losses.main([*arguments, "--out", str(tmp_path / "out")]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {message}")
    assert shown.count("\n") == 1
    assert not (tmp_path / "out").exists()
