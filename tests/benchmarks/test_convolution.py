import json

import pytest

from benchmarks import convolution


@pytest.mark.slow
def test_prints_a_table_and_saves_it(tmp_path, capsys):
    small = ["--images", "5", "2", "3", "--batch-size", "2", "--steps", "2", "--weights", "2", "--rounds", "1"]
    assert convolution.main([*small, "--out", str(tmp_path)]) == 0
    assert "gradients in a loop" in capsys.readouterr().out
    saved = json.loads((tmp_path / "convolution.json").read_text())
    theirs = [f"{library}, {situation}" for library in ("Flax", "Equinox") for situation in convolution.OF_LIBRARIES]
    assert list(saved["5 × 5 × 2 to 3"]) == [*convolution.SITUATIONS, *theirs]
    assert (tmp_path / "convolution.png").is_file()
    assert convolution.main(["--images", "5", "2", "0", "--out", str(tmp_path / "none")]) == 1
    assert "at least 1" in capsys.readouterr().err
