import math
from dataclasses import dataclass

import numpy as np
import pytest

from experiments.harness.failure import ExperimentError
from experiments.harness.plotting import figure
from experiments.harness.results import CHANCE, Folder, by_chance


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


@pytest.mark.parametrize("count", [1, 50])
def test_what_chance_allows(count):
    """A normal deviation is as far off on either side with a probability of CHANCE divided by their number."""
    off = np.linspace(-2.0, 1.0, count) if count > 1 else np.array([-2.0])
    found = by_chance(off)
    assert found.largest_deviation == 2
    assert math.erfc(found.allowed / math.sqrt(2)) * count == pytest.approx(CHANCE)
    found.insist()
    beyond = off.copy()
    beyond[-1] = found.allowed * 1.01
    said = f"^theory and measurement disagree: by {beyond[-1]:.1f} standard errors, where chance allows"
    with pytest.raises(ExperimentError, match=said):
        by_chance(beyond).insist("theory")


def test_a_comparison_that_was_impossible_does_not_agree():
    with pytest.raises(ExperimentError, match="law and measurement disagree: by nan"):
        by_chance(np.array([0.1, np.nan])).insist()
