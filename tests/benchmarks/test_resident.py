import json

import pytest

from benchmarks import resident


def test_sizes():
    for millions in (10, 100):
        assert abs(resident._bytes(millions) / 4e6 / millions - 1) < 0.1


@pytest.mark.slow
def test_prints_a_table_and_saves_it(tmp_path, capsys, monkeypatch):
    some = (resident.FLOOR, "nl.learner, backprop, SGD")
    monkeypatch.setattr(resident, "RULES", {name: resident.RULES[name] for name in some})
    monkeypatch.setattr(resident.pytorch, "module", lambda: None)
    assert resident.main(["--millions", "80", "--out", str(tmp_path)]) == 0
    saved = json.loads((tmp_path / "resident.json").read_text())
    floor, backprop = (saved["peak_mb"]["80 million"][name] for name in some)
    assert backprop - floor > 0.3 * saved["parameters_mb"]["80 million"]  # its gradients, less what compiling held
    assert "peak resident MB" in capsys.readouterr().out
    assert (tmp_path / "resident.png").stat().st_size > 10_000
    assert resident.main(["--millions", "0", "--out", str(tmp_path / "bad")]) == 1
    assert "at least 1" in capsys.readouterr().err
