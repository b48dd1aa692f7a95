import json

import pytest

from benchmarks import memory


@pytest.mark.slow
def test_prints_a_table_and_saves_it(tmp_path, capsys, monkeypatch):
    all_of_them = memory._estimators
    some = ("nodes", "weights, rank one")
    monkeypatch.setattr(memory, "_estimators", lambda *args: {k: v for k, v in all_of_them(*args).items() if k in some})
    sizes = ["--widths", "512", "1024", "512", "--batch-size", "4", "--samples", "2"]
    assert memory.main([*sizes, "--out", str(tmp_path)]) == 0
    saved = json.loads((tmp_path / "memory.json").read_text())
    assert saved["weights, rank one"]["nl.seeded"] < 0.5 < 1 <= saved["weights, rank one"]["optax.sgd"]
    assert set(saved["nodes"]) == {"optax.sgd"}
    assert "forward pass" in capsys.readouterr().out
    assert memory.main(["--widths", "3", "--out", str(tmp_path / "bad")]) == 1
    assert "--widths must be two or more" in capsys.readouterr().err
