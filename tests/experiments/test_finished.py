import dataclasses
from pathlib import Path

import numpy as np
import pytest

from experiments.harness.failure import ExperimentError
from experiments.harness.finished import Finished


@dataclasses.dataclass(frozen=True)
class Config:
    out: Path
    rate: float = 0.1
    methods: tuple[str, ...] = ("one", "two")
    resume: bool = False


def _opened(folder, resume=True, **settings):
    return Finished(folder, Config(folder, **settings), resume=resume, but=("methods",))


def test_parts_are_kept_to_the_last_bit(tmp_path):
    part = {"loss": np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32), "count": np.int64(3), "none": None}
    first = _opened(tmp_path, resume=False)
    assert first("one", lambda: part)["count"] == 3
    again = _opened(tmp_path, methods=("two",))
    kept = again("one", lambda: pytest.fail("computed again"))
    np.testing.assert_array_equal(np.array(kept["loss"], np.float32), part["loss"])
    assert kept["none"] is None
    assert "two" not in again


def test_without_resume_a_run_starts_anew(tmp_path):
    _opened(tmp_path, resume=False)("one", lambda: 1)
    anew = _opened(tmp_path, resume=False)
    assert anew("one", lambda: 2) == 2
    assert _opened(tmp_path)["one"] == 2


def test_what_cannot_be_resumed(tmp_path):
    _opened(tmp_path, resume=False)("one", lambda: 1)
    with pytest.raises(ExperimentError, match=r"has other settings, rate is 0\.1 there, 0\.2 here"):
        _opened(tmp_path, rate=0.2)
    (tmp_path / "finished/one.json").write_text("{")
    with pytest.raises(ExperimentError, match=r"one\.json cannot be read"):
        _opened(tmp_path)["one"]
    (tmp_path / "finished/settings.json").write_text("{")
    with pytest.raises(ExperimentError, match=r"settings\.json cannot be read"):
        _opened(tmp_path)


def test_a_folder_of_the_same_name_that_no_run_made_is_left_alone(tmp_path):
    (tmp_path / "finished").mkdir()
    (tmp_path / "finished/notes.txt").write_text("the user's own")
    _opened(tmp_path, resume=False)("a/b", lambda: 1)
    assert (tmp_path / "finished/notes.txt").exists()
    assert (tmp_path / "finished/a/b.json").read_text() == "1\n"
