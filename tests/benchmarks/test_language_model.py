"""A language model's step beside MeZO by hand, small: in memory, which no other load disturbs, ours is the smaller."""

import json

import jax
import pytest

from benchmarks import language_model
from experiments.harness.language_model import Model

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("lenient")]
SMALL = [
    *("--vocabulary", "4096", "--width", "96", "--depth", "2", "--heads", "3", "--hidden", "288"),
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


def test_both_sides_of_a_low_rank_step_are_not_held_at_once():
    """The logits of a step forth and of a step back are the most of it; the step back waits. Norms of 30 layers are
    vectors long enough to be drawn in blocks, which must not change that."""
    model, ids = Model(20_000, 576, 30, 9, 3, 16), jax.ShapeDtypeStruct((8, 33), "int32")
    step = dict(language_model._steps(model))["nl.seeded, rank one"]
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    compiled = jax.jit(step, donate_argnums=0).lower(shapes, ids, jax.random.key(2)).compile()
    logits = 8 * 32 * 20_000 * 4
    assert logits < compiled.memory_analysis().temp_size_in_bytes < 3.1 * logits  # 4.03 of both at once
