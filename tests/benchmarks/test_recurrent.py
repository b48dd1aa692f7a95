import json

import pytest

from benchmarks import recurrent


@pytest.mark.slow
@pytest.mark.usefixtures("lenient")
def test_prints_a_table_and_saves_it(tmp_path, capsys, monkeypatch):
    few = {name: recurrent.RULES[name] for name in (recurrent.REFERENCE, "RTRL")}
    monkeypatch.setattr(recurrent, "RULES", few)
    sizes = ["--units", "3", "5", "--steps", "4", "6", "--most-steps", "4", "--most-influence", "3", "--rounds", "2"]
    assert recurrent.main([*sizes, "--batch-size", "2", "--inputs", "2", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "3 units, batch 2" in shown
    saved = json.loads((tmp_path / "recurrent.json").read_text())
    assert set(saved["3"]) == set(few)
    assert set(saved["5"]) == set(few) - {"RTRL"}  # too wide for an influence matrix
    assert saved["3"][recurrent.REFERENCE]["4"]["over_backprop"][0] == 1
    assert saved["3"]["RTRL"]["6"]["over_backprop"] is None  # compiled, not timed
    assert all(cost["temporary_bytes"] > 0 for of in saved["3"].values() for cost in of.values())
    assert (tmp_path / "recurrent.png").stat().st_size > 0
