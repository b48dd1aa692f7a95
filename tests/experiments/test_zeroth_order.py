"""Zeroth-order claims, small: what is learned and said, what bounds a ratio, and errors that are clear."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments.finetune import data as finetune_data
from experiments.harness.language_model import Model
from experiments.zeroth_order import __main__ as zeroth_order
from experiments.zeroth_order import claims, training

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("lenient")]
TINY = Model(vocabulary=97, width=8, depth=2, heads=2, groups=1, hidden=8)
SETTINGS = training.Settings(sigma=1e-3, samples=4, queries=2, subspace=2, rank=1)


@pytest.fixture
def tiny(monkeypatch):
    """A model that was never trained, on prompts of a few files."""
    files = finetune_data._files()[:90]
    monkeypatch.setattr(finetune_data, "_files", lambda: files)
    monkeypatch.setattr(finetune_data, "SMALL", TINY)
    monkeypatch.setattr(finetune_data, "_pretrained", lambda: TINY.init(jax.random.key(0)))
    monkeypatch.setattr(zeroth_order, "SMALL", {"rates": (3e-3, 3e-2, 3e-2, 3e-2)})
    few = {"evaluations": 90, "moments": 3, "seeds": 5, "trials": 2, "draws": 2}
    monkeypatch.setattr(zeroth_order, "QUICK", zeroth_order.QUICK | few)
    monkeypatch.setattr(zeroth_order, "plot", lambda results, target, model: Figure(figsize=(1, 1)))


def test_a_run_says_what_was_claimed_and_found(tiny, tmp_path, capsys):
    code = zeroth_order.main(
        ["--quick", "--learn", "gate", "up", "--held-out", "16", "--seeds", "2", "--out", str(tmp_path)]
    )
    said = capsys.readouterr().out
    assert code == 0, said
    assert "FZOO: claimed 18 × (Dang et al. 2025, RoBERTa-large; 3 on average of all models), found" in said
    assert "nan" not in said
    found = json.loads((tmp_path / "zeroth_order.json").read_text())
    assert found["largest_deviation"] == max(found["deviations"].values()) < 1
    arrays = np.load(tmp_path / "zeroth_order.npz")
    assert arrays["evaluations MeZO 0"].tolist() == [0, 30, 60, 90]
    assert arrays["evaluations FZOO 1"].tolist() == [0, 27, 54, 81]  # 9 each
    assert arrays["evaluations AGZO 1"].tolist() == [0, 30, 60, 90]  # 3 each
    assert not np.array_equal(arrays["held_out MeZO 0"], arrays["held_out MeZO 1"])
    for method in ("MeZO", "FZOO", "AGZO"):
        target, own = found["target"], found["queries"][method]
        for seed, at in enumerate(own):
            losses, spent = (arrays[f"{of} {method} {seed}"] for of in ("held_out", "evaluations"))
            # Before the moment at which the loss is there, after the one at which it was not.
            first = int(np.argmax(losses <= target))
            assert at is None if losses.min() > target else spent[first - 1] <= at <= spent[first]


def test_zo_muon_moves_weights_by_orthogonal_steps_of_low_rank():
    """Singular values are within Newton-Schulz's reach of 1 in a subspace of the rank asked for, and 0 beyond."""
    params = TINY.init(jax.random.key(0))
    prompts = finetune_data._prompts([("def f():", "Return")] * 4, finetune_data._characters, 32)
    task = finetune_data.Task("tiny", TINY, params, prompts, prompts, prompts)
    of = training.problem(task, ("up",))
    learner = training.learner("ZO-Muon", of.objective(of.frozen), 0.1, SETTINGS)
    state = learner.init(jax.random.key(1), of.learned)
    after, info = jax.jit(learner.step)(jax.random.key(2), state, prompts)
    assert int(info.evaluations) == SETTINGS.queries + 1
    (step,) = jax.tree.leaves(jax.tree.map(jnp.subtract, after.params, of.learned))
    values = np.linalg.svd(np.asarray(step), compute_uv=False) / 0.1  # [depth, 8]
    assert np.all((values[:, :2] > 0.5) & (values[:, :2] < 1.5))
    assert np.all(values[:, 2:] < 1e-2)


def test_cosines_are_of_the_gradient_of_what_learns():
    params = TINY.init(jax.random.key(0))
    pairs = [(f"def f{i}(x):", word) for i, word in enumerate(["Return", "Create", "This", "Set"])]
    prompts = finetune_data._prompts(pairs, finetune_data._characters, 32)
    task = finetune_data.Task("tiny", TINY, params, prompts, prompts, prompts)
    of = training.problem(task, ("up", "down"))
    assert {name.rpartition("/")[2] for name in of.learned} == {"up", "down"}
    found = training.cosines(of, task, SETTINGS._replace(rank=8), batch_size=2, draws=3)
    for own in found.values():
        assert own.shape == (3,)
        assert np.all(np.abs(own) < 0.6)
        assert np.all(own != 0)


@pytest.mark.parametrize(
    ("losses", "target", "at"),
    [([3, 2, 1], 1.5, 15), ([3, 2, 2.5, 1], 2, 10), ([3, 2], 1, math.inf), ([1, 0], 2, 0)],
)
def test_when_a_loss_is_reached(losses, target, at):
    assert claims.reached(10.0 * np.arange(len(losses)), np.array(losses, float), target) == at


def test_a_ratio_has_its_error_and_is_bounded_by_runs_that_never_get_there():
    mezo, other = np.array([100.0, 120.0]), np.array([50.0, 60.0])
    found = claims.times_fewer(mezo, other, (200.0, 200.0))
    # Of the means 110 ± 10 and 55 ± 5: each is known to 1/11.
    assert (found.found, found.bound) == (2, "")
    assert found.error == pytest.approx(2 * math.hypot(1 / 11, 1 / 11))
    never = np.array([50.0, math.inf])
    assert claims.times_fewer(mezo, never, (200.0, 90.0)).bound == "at most"
    assert claims.times_fewer(never, other, (200.0, 90.0)).bound == "at least"
    assert str(claims.times_fewer(never, never, (200.0, 90.0))).startswith("not known")
    assert claims.times_fewer(mezo, never, (200.0, 90.0)).found == pytest.approx(110 / 70)


def _curve(*validation):
    losses = np.array([4.0, *validation])
    return training.Curve(np.arange(len(losses)), losses, losses, 0.0)


def test_rates_are_searched_until_the_best_is_none_at_the_edge():
    ends = [3.0, 2.0, math.nan]
    tried = claims.search(lambda rate, number: _curve(ends[number]), 1.0, 9)
    assert list(tried) == pytest.approx([1, 10**0.5, 10])
    assert list(tried.values()) == [3.5, 3.0, math.inf]
    down = claims.search(lambda rate, number: _curve(abs(math.log10(rate) + 1.5)), 1.0, 9)
    assert min(down, key=lambda rate: down[rate]) == pytest.approx(10**-1.5)
    assert len(claims.search(lambda rate, number: _curve(rate), 1.0, 4)) == 4


def test_runs_that_are_cut_short_are_compared_by_what_they_share():
    """The longer run would win by moments that the other never had."""
    curves = iter([_curve(3.0, 2.0, 1.0), _curve(2.5)])
    tried = claims.search(lambda rate, number: next(curves), 1.0, 2)
    assert list(tried.values()) == [3.5, 3.25]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["--methods", "magic"], "--methods must be one or more of MeZO"),
        (["--methods", "AGZO"], "--methods must have MeZO, whose loss is to be reached, or give a loss by --target"),
        (["--learn", "norm"], "--learn must be one or more of query"),
        (["--fraction", "0"], "--fraction must be above 0 and at most 1"),
        (["--minutes", "0"], "--minutes must be above 0"),
    ],
)
def test_a_setting_that_will_not_do_is_an_error(arguments, message, tmp_path, capsys):
    assert zeroth_order.main([*arguments, "--out", str(tmp_path)]) == 1
    assert message in capsys.readouterr().err


def test_time_that_is_up_leaves_a_moment(tiny):
    params = TINY.init(jax.random.key(0))
    prompts = finetune_data._prompts([("def f():", "Return")] * 4, finetune_data._characters, 32)
    task = finetune_data.Task("tiny", TINY, params, prompts, prompts, prompts)
    of = training.problem(task, ("up",))
    runner = training.Runner("MeZO", of, task, SETTINGS, batch_size=2, every=2)
    curve = runner(jax.random.key(0), 1e-3, 5, training.Measure(of, task), until=0.0)
    assert curve.evaluations.tolist() == [0, 4]
    again = runner(jax.random.key(0), 1e-3, 1, training.Measure(of, task))
    assert again.held_out.tolist() == curve.held_out.tolist()
