"""A language model's step beside MeZO by hand, small: in memory, which no other load disturbs, ours is the smaller."""

import json

import pytest

from benchmarks import language_model

pytestmark = pytest.mark.usefixtures("lenient")
SMALL = [
    *("--vocabulary", "4096", "--width", "96", "--depth", "4", "--heads", "3", "--hidden", "288"),
    *("--batch-size", "1", "--length", "4", "--rounds", "1"),
]  # fmt: skip


def test_ours_holds_less(tmp_path):
    assert language_model.main([*SMALL, "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "language_model.json").read_text())
    held = {name: of["temporaries"] for name, of in found.items()}
    for law in ("signs", "rank one", "normal"):
        assert held[f"nl.seeded, {law}"] < held["MeZO by hand, normal"]


def test_a_setting_that_will_not_do_is_an_error(tmp_path, capsys):
    assert language_model.main(["--heads", "4", "--out", str(tmp_path)]) == 1
    assert "--heads must be a multiple of 3" in capsys.readouterr().err
