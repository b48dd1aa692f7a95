import json

import pytest

from benchmarks import devices


@pytest.mark.slow
def test_devices_agree_and_their_bytes_are_told(tmp_path, capsys):
    small = ["--sizes", "8", "4", "3", "--batch-size", "4", "--samples", "2", "--rounds", "1"]
    small += [
        "--devices",
        "1",
        "--processes",
        "2",
        "--estimates",
        "weights, Gaussian, scalars",
        "weights, Gaussian, sum",
    ]
    assert devices.main([*small, "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "devices.json").read_text())
    assert {(row["processes"], row["devices"]) for row in rows} == {(1, 1), (2, 2)}
    saved = {row["estimate"]: row["bytes"] for row in rows if row["processes"] == 2}
    assert saved["weights, Gaussian, scalars"] == {"all-gather": 2 * 2 * 4}  # K rates and K losses
    assert saved["weights, Gaussian, sum"] == {"all-gather": 2 * 2 * 4, "all-reduce": 4 * (8 * 4 + 4 + 4 * 3 + 3)}
    assert "bytes exchanged" in capsys.readouterr().out


def test_disagreement_is_an_error(tmp_path, capsys, monkeypatch):
    row = {"estimate": "nodes", "samples": 8, "processes": 1, "bytes": {}, "seconds": 1.0, "largest": 1.0}
    answers = {1: [row | {"devices": 1, "some": [1.0]}], 2: [row | {"devices": 2, "some": [1.01]}]}
    monkeypatch.setattr(devices, "_of_one_process", lambda config, devices: answers[devices])
    settings = ["--devices", "1", "2", "--samples", "8", "--out", str(tmp_path)]
    assert devices.main([*settings, "--processes"]) == 1
    assert "gradients differ by more than" in capsys.readouterr().err
    assert devices.main(["--samples", "9", "--out", str(tmp_path)]) == 1
    assert "must be a multiple" in capsys.readouterr().err
    assert devices.main(["--estimates", "magic", "--out", str(tmp_path)]) == 1
    assert "--estimates must be of nodes, Gaussian; weights, Gaussian, scalars" in capsys.readouterr().err
