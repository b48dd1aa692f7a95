import json

from benchmarks import devices


def test_devices_agree_and_their_bytes_are_told(tmp_path, capsys):
    small = ["--devices", "2", "--sizes", "8", "4", "3", "--batch-size", "4", "--samples", "2", "--rounds", "1"]
    assert devices.main([*small, "--out", str(tmp_path)]) == 0
    saved = {row["estimate"]: row["bytes"] for row in json.loads((tmp_path / "devices.json").read_text())}
    assert saved["weights, Gaussian, scalars"] == {"all-gather": 2 * 2 * 4}  # K rates and K losses
    assert saved["weights, Gaussian, sum"] == {"all-gather": 2 * 2 * 4, "all-reduce": 4 * (8 * 4 + 4 + 4 * 3 + 3)}
    assert "bytes exchanged" in capsys.readouterr().out


def test_disagreement_is_an_error(tmp_path, capsys, monkeypatch):
    row = {"estimate": "nodes", "samples": 8, "bytes": {}, "seconds": 1.0, "largest": 1.0}
    answers = {1: [row | {"devices": 1, "some": [1.0]}], 2: [row | {"devices": 2, "some": [1.01]}]}
    monkeypatch.setattr(devices, "_process", lambda config, devices: answers[devices])
    assert devices.main(["--devices", "1", "2", "--samples", "8", "--out", str(tmp_path)]) == 1
    assert "gradients differ by more than" in capsys.readouterr().err
    assert devices.main(["--samples", "9", "--out", str(tmp_path)]) == 1
    assert "must be a multiple" in capsys.readouterr().err
