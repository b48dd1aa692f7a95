from dataclasses import dataclass

import pytest

from experiments.harness.failure import ExperimentError
from experiments.harness.plotting import figure
from experiments.harness.results import Folder


@dataclass(frozen=True)
class Config:
    """Nothing to set."""


def test_figures_in_other_formats(tmp_path, monkeypatch):
    folder, (canvas, _) = Folder(tmp_path, Config()), figure(1, 1, size=(2, 2))
    folder.picture("plain", canvas)
    assert sorted(path.name for path in tmp_path.glob("plain.*")) == ["plain.png"]
    monkeypatch.setenv("NL_JAX_FIGURES", "pdf svg")
    assert folder.picture("all", canvas).name == "all.png"
    assert (tmp_path / "all.pdf").read_bytes().startswith(b"%PDF")
    assert "<svg" in (tmp_path / "all.svg").read_text()
    monkeypatch.setenv("NL_JAX_FIGURES", "bmpx")
    with pytest.raises(ExperimentError, match="NL_JAX_FIGURES names 'bmpx'"):
        folder.picture("none", canvas)
