import json

import pytest

from benchmarks import kills

pytestmark = pytest.mark.slow


def test_a_run_killed_at_random_instants_goes_on_to_the_same_bits(tmp_path, capsys):
    assert kills.main(["--kills", "2", "--steps", "400", "--longest", "0.3", "--out", str(tmp_path)]) == 0
    assert "equal the uninterrupted run's in every bit" in capsys.readouterr().out
    rows = json.loads((tmp_path / "kills.json").read_text())["kills"]
    assert len(rows) == 2
    assert 0 < rows[0]["step_after"] <= rows[1]["step_before"] < rows[1]["step_after"] < 400


def test_a_difference_is_an_error(tmp_path, capsys, monkeypatch):
    """The resumed run has one step less of noise than the other."""
    monkeypatch.setattr(kills, "_killed", lambda folder, steps, before, seconds: kills.train(4, folder))
    train = kills.train

    def shorter(steps, folder=None, **settings):
        return train(steps - (folder is None) * 2, folder, **settings)

    monkeypatch.setattr(kills, "train", shorter)
    assert kills.main(["--kills", "1", "--steps", "8", "--out", str(tmp_path)]) == 1
    assert "of the resumed run differ from those of the uninterrupted one" in capsys.readouterr().err
