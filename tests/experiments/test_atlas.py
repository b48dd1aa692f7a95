import ast
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nl_jax as nl
from experiments.atlas import __main__ as atlas
from experiments.atlas import anchors as atlas_anchors
from experiments.atlas import cell as atlas_cell
from experiments.atlas import lessons as atlas_lessons
from experiments.atlas import methods as atlas_methods
from experiments.atlas import page as atlas_page
from experiments.atlas import workers as atlas_workers
from experiments.atlas.cell import Effort
from experiments.atlas.methods import METHODS, Method
from experiments.atlas.tasks import TASKS, Anchor, Task, wrong_answers
from experiments.atlas.workers import Order, all_done
from experiments.harness.failure import ExperimentError
from experiments.harness.finished import Finished
from experiments.harness.plotting import figure
from nl_jax.propagation import feedforward

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("lenient")]  # optax promotes


def refusing(objective):
    raise ValueError("not today")


def mine(objective):
    """A user's own."""
    return nl.backprop(objective)


def small_task():
    network = nl.mlp([4, 3, 2], activation=nl.activations.tanh())
    x = jax.random.normal(jax.random.key(0), (60, 4))
    labels = (x[:, 0] > 0).astype(jnp.int32)
    of = lambda rows: (x[rows], labels[rows])
    objective = nl.supervised(network.apply, nl.losses.cross_entropy)
    return Task(
        "small", network.init, network.apply, objective, wrong_answers(network.apply), "wrong answers",
        of(slice(40)), of(slice(40, 50)),
        of(slice(50, None)), goal=0.2, anchor=Anchor(0.1, 70), batch_size=20, network=network,
    )  # fmt: skip


def unmeasured(task, method, effort, hours):
    """A cell that costs nothing."""
    about = {"title": task.title, "unit": task.unit, "goal": task.goal}
    made = {"date": "2026", "device": "cpu", "versions": "jax 0"}
    return {"status": "refused", "why": "no", "task": about, "family": method.family, **made}


def cells_in(folder):
    files = (folder / "cells").glob("*/*.json")
    return {f"{file.parent.name}/{file.stem}": json.loads(file.read_text()) for file in files}


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(TASKS, "small", small_task)
    monkeypatch.setitem(METHODS, "refusing", Method(lambda task, samples: refusing(task.objective), "x"))
    return ["--tasks", "small", "--methods", "backprop", "refusing", "rtrl", "--rates", "1e-06", "0.1", "--seeds", "2",
            "--updates", "40"]  # fmt: skip


def test_every_cell_is_measured_or_says_why_not(small, tmp_path, capsys, monkeypatch):
    assert atlas.main([*small, "--out", str(tmp_path)]) in (0, 1)
    found = cells_in(tmp_path)
    exact, refused, in_time = (found[f"small/{name}"] for name in ("backprop", "refusing", "rtrl"))
    assert exact["evaluations"] == 3 * 40
    assert np.shape(exact["validation errors"]) == (2, 2)
    assert exact["rate"] == 0.1
    best = 1
    assert best == np.mean(exact["validation errors"], axis=1).argmin()
    np.testing.assert_allclose(exact["validation error along training"][-1], exact["validation errors"][best])
    np.testing.assert_allclose(exact["cosine along training"], 1, rtol=1e-5)
    assert exact["updates"] == list(range(0, 41, 2))
    mean = np.mean(exact["validation error along training"], axis=1)
    assert exact["updates to the goal"] == exact["updates"][np.flatnonzero(mean > 0.2)[-1] + 1]
    assert exact["seconds to the goal"] == exact["updates to the goal"] * exact["seconds per update"] > 0
    assert exact["times backprop's seconds"] > 0
    assert exact["verdict"] == "reads other axons, weight transport, sees the target"
    assert (refused["status"], refused["why"]) == ("refused", "not today")
    assert in_time["status"] == "not for it"
    printed = capsys.readouterr().out
    assert "refused: not today" in printed
    assert "0.000 ± 0.000" in printed  # backprop behind itself
    page = (tmp_path / "atlas.html").read_text()
    assert page.count("<tr data-task") == 3
    assert "[[" not in page
    assert f'data-error="{np.mean(exact["test errors"]):.6g}"' in page
    assert "python -m experiments.atlas --tasks small --methods backprop --rates 1e-06 0.1 --seeds 2" in page
    assert exact["made by"] in page

    # An interrupted atlas goes on: nothing that is finished is measured again.
    monkeypatch.setattr(atlas_workers, "measured", lambda *of: pytest.fail("measured again"))
    atlas.main([*small, "--out", str(tmp_path), "--resume"])
    assert cells_in(tmp_path) == found
    # A part of it, resumed, shows all that is finished, and prints and judges its own.
    capsys.readouterr()
    atlas.main([*small, "--out", str(tmp_path), "--resume", "--methods", "refusing"])
    assert "\nbackprop " not in capsys.readouterr().out
    assert (tmp_path / "atlas.html").read_text() == page

    # A cell of a task that is not there any more stays on the page. Files of others do no harm; an unreadable cell of
    # its own is an error that leaves the page.
    plotted = []
    monkeypatch.setattr(atlas_page, "plot", lambda cells: plotted.extend(cells) or figure(1, 1, size=(1, 1))[0])
    (tmp_path / "cells" / "gone").mkdir()
    gone = {**exact, "task": {"title": "a task of yours", "unit": "mistakes", "goal": 0.5}}
    (tmp_path / "cells" / "gone" / "my:own_rule.json").write_text(json.dumps(gone))
    (tmp_path / "cells" / "notes.json").write_text("{}")
    (tmp_path / "cells" / "gone" / "older.json").write_text('{"status": "refused"}')
    (tmp_path / "cells" / "small" / "rtrl.json").write_text("{")
    atlas.main([*small, "--out", str(tmp_path), "--resume", "--methods", "backprop"])
    assert plotted == ["gone/my:own_rule", "small/backprop", "small/refusing"]
    assert "a task of yours" in (tmp_path / "atlas.html").read_text()
    assert "<td>my:own_rule</td>" in (tmp_path / "atlas.html").read_text()
    printed = capsys.readouterr().out
    assert "not on the page: small/rtrl" in printed
    assert "not on the page: gone/older: it is no cell of this version" in printed
    assert atlas.main([*small, "--out", str(tmp_path), "--resume"]) == 1
    assert "rtrl.json cannot be read" in capsys.readouterr().err
    assert (tmp_path / "atlas.html").exists()
    # Without --resume what is asked for is measured anew, and the rest is kept; of other settings nothing is lost.
    (tmp_path / "cells" / "small" / "rtrl.json").unlink()
    monkeypatch.setattr(atlas_workers, "measured", lambda *of: {**refused, "why": "not today either"})
    assert atlas.main([*small[:3], "refusing", *small[6:], "--out", str(tmp_path)]) == 0
    after = cells_in(tmp_path)
    assert (after["small/backprop"], after["small/refusing"]["why"]) == (exact, "not today either")
    assert atlas.main([*small, "--out", str(tmp_path), "--updates", "7"]) == 1
    assert "has other settings, updates is 40 there, 7 here" in capsys.readouterr().err
    assert cells_in(tmp_path) == after


def test_a_cell_that_takes_too_long_says_how_long_and_waits_for_more_time(small, tmp_path, capsys):
    short = [*small[:4], *small[6:], "--out", str(tmp_path)]
    assert atlas.main([*short, "--hours", "1e-9"]) == 0
    found = cells_in(tmp_path)["small/backprop"]
    assert found["status"] == "too long"
    assert found["hours"] == pytest.approx(4 * 40 * found["seconds per update"] / 3600)
    assert found["why"].startswith("4 runs of 40 updates would take about ")
    assert "too long: 4 runs of 40 updates" in capsys.readouterr().out
    assert atlas.main([*short, "--resume", "--hours", str(found["hours"] / 2)]) == 0
    assert cells_in(tmp_path)["small/backprop"] == found  # not even timed again
    assert atlas.main([*short, "--resume"]) in (0, 1)
    assert cells_in(tmp_path)["small/backprop"]["status"] == "measured"


def test_a_cell_in_which_every_rate_is_lost_says_so():
    lost = METHODS["backprop"]
    found = atlas_cell.measured(small_task(), lost, Effort((3e38,), 2, 5, 1))
    assert found["status"] == "diverged"
    assert "every one of 1 settings" in found["why"]


def test_the_goal_counts_from_when_it_is_kept():
    moments = np.array([0, 10, 20, 30])
    kept = lambda *values: atlas_cell.stays_at_most(0.5, np.array(values), moments)
    assert kept(0.9, 0.4, 0.9, 0.5) == 30
    assert kept(0.9, 0.4, 0.4, 0.1) == 10
    assert kept(0.4, 0.4, 0.4, 0.1) == 0
    assert kept(0.9, 0.4, 0.4, 0.6) is None
    assert kept(0.9, 0.4, np.nan, 0.4) == 30


VERDICTS = {
    "delta": "sees the target",  # no other layer's axons, no other weights
    "forward_forward": "sees the target",
    "local_losses": "reads other axons, weight transport, sees the target",  # of the layer's own head
}


@pytest.mark.parametrize("name", VERDICTS)
def test_methods_with_objectives_of_their_own_are_measured_too(name):
    task = small_task()
    task = task._replace(validation=task.train)
    found = atlas_cell.measured(task, METHODS[name], Effort((0.03,), 4, 100, 1))
    assert found["status"] == "measured"
    assert found["validation errors"].mean() < 0.3
    assert found["verdict"] == VERDICTS[name]
    assert np.isfinite(found["cosine along training"]).all() == (name == "delta")


def test_a_lesson_that_a_network_cannot_be_given_is_refused():
    task = small_task()
    assert atlas_lessons.hidden_layers(task) == ["hidden1"]
    with pytest.raises(ValueError, match="dense network with hidden layers"):
        atlas_lessons.forward_forward(task._replace(network=None))
    with pytest.raises(ValueError, match="at least one of them hidden"):
        atlas_lessons.local_losses(task._replace(network=nl.mlp([4, 2], activation=nl.activations.tanh())))
    alone = task._replace(init=nl.mlp([4, 2], activation=nl.activations.tanh()).init)
    with pytest.raises(ValueError, match="only its output layer"):
        atlas_lessons.rules_of(alone, nl.rules.oja())


@pytest.mark.parametrize("processes", [1, 2])
def test_cells_by_several_processes(processes):
    orders = [Order("student_teacher", method, None, Effort((0.1,), 2, 1, 1), 1.0) for method in ("rtrl", "none:such")]
    found = {order.cell: cell for order, cell in all_done(orders, processes)}
    assert found["student_teacher/rtrl"]["status"] == "not for it"
    assert isinstance(found["student_teacher/none:such"], ExperimentError)


def test_a_cell_that_fails_leaves_the_others_alone(small, tmp_path, capsys, monkeypatch):
    def failing(task, method, *of):
        if method is METHODS["backprop"]:
            raise RuntimeError("out of luck")
        return unmeasured(task, method, *of)

    monkeypatch.setattr(atlas_workers, "measured", failing)
    assert atlas.main([*small, "--out", str(tmp_path)]) == 1
    assert "out of luck" in capsys.readouterr().err
    assert set(cells_in(tmp_path)) == {"small/refusing", "small/rtrl"}


def test_an_interrupted_atlas_shows_what_is_there(small, tmp_path, monkeypatch):
    def interrupting(task, method, *of):
        if method is METHODS["rtrl"]:
            raise KeyboardInterrupt
        return unmeasured(task, method, *of)

    monkeypatch.setattr(atlas_workers, "measured", interrupting)
    assert atlas.main([*small, "--out", str(tmp_path)]) == 130
    assert set(cells_in(tmp_path)) == {"small/backprop", "small/refusing"}
    assert (tmp_path / "atlas.html").exists()


def test_an_anchor_that_is_missed_fails(tmp_path):
    finished = Finished(tmp_path, atlas.Config(), resume=False)
    of = lambda: atlas_anchors.from_anchors(finished, ["small"])
    assert of() == {}
    finished["anchors/small"] = {"known": 0.1, "test errors": [0.15, 0.13]}
    assert of()["small, backprop"] == pytest.approx(2)
    finished["anchors/small"] = {"known": 0.1, "test errors": [0.05, 0.05]}
    finished["anchors/other"] = {"known": 0.1, "test errors": [0.15, 0.13]}
    assert of() == {"small, backprop": 0}
    assert len(atlas_anchors.from_anchors(finished)) == 2


def test_an_anchor_that_cannot_be_trained_leaves_the_cells(small, tmp_path, capsys, monkeypatch):
    def failing(task, rate, seeds):
        raise RuntimeError("out of luck")

    only_backprop = [*small[:4], *small[6:], "--out", str(tmp_path)]
    monkeypatch.setattr(atlas, "beside_anchor", failing)
    assert atlas.main(only_backprop) == 1
    assert "anchors/small; anchors/small: RuntimeError('out of luck')" in capsys.readouterr().err
    assert cells_in(tmp_path)["small/backprop"]["status"] == "measured"
    monkeypatch.undo()
    monkeypatch.setitem(TASKS, "small", small_task)
    monkeypatch.setattr(atlas_workers, "measured", lambda *of: pytest.fail("measured again"))
    assert atlas.main([*only_backprop, "--resume"]) in (0, 1)
    assert "anchors/small" in cells_in(tmp_path)


def test_an_anchor_is_met_with_all_examples_and_its_own_updates():
    found = atlas_anchors.beside_anchor(small_task(), 0.1, 2)
    assert (found["known"], found["examples"], found["updates"], len(found["test errors"])) == (0.1, 50, 70, 2)
    assert max(found["test errors"]) <= 0.1  # it learns


def test_what_an_update_may_see():
    network = nl.mlp([4, 3, 2], activation=nl.activations.tanh())
    objective = nl.supervised(network.apply, nl.losses.cross_entropy)
    at = objective, network.init(jax.random.key(0)), (jnp.ones([5, 4]), jnp.zeros(5, int))
    kinds = {"node_perturbation": "three-factor", "feedback_alignment": "others", "backprop": "weight transport"}
    made = lambda program, *, name: METHODS[name].make(small_task()._replace(objective=program), 2)
    for name, kind in kinds.items():
        factory = functools.partial(made, name=name)
        assert atlas_page.sees(nl.audit(factory, *at).verdict) == kind
    assert atlas_page.sees("local") == "local"


def test_every_estimator_is_a_method():
    """But those that only combine others, or parts; a new one becomes a method by being exported."""
    combining = {
        *("average", "mix", "partition", "batch_sum", "by_block", "augment_batches", "normalised", "perturbation")
    }
    made = set()
    for path in (Path(nl.__file__).parent / "estimators").rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            returns = node.returns if isinstance(node, ast.FunctionDef) else None
            if returns is not None and ast.unparse(returns) == "GradientEstimator" and node.name in nl.__all__:
                made.add(node.name)
    assert len(made) > 30
    assert made - combining == set(atlas_methods.of_library()) == made & set(METHODS)
    assert {METHODS[name].family for name in made & set(METHODS)} == {*atlas_methods.FAMILIES} - {atlas_methods.RULE}


def test_a_method_is_told_what_its_factory_takes():
    told = {}

    def factory(objective, num_samples, example=None, *, rate=0):
        told.update(objective=objective, num_samples=num_samples, example=example, rate=rate)
        return nl.backprop(objective)

    task = small_task()
    own = atlas_methods.method(factory, {"rate": 2}, "noise")
    assert isinstance(own.make(task, 7), nl.GradientEstimator)
    assert (told["objective"], told["num_samples"], told["rate"]) == (task.objective, 7, 2)
    assert told["example"][0].shape == (20, 4)
    assert not own.in_time
    assert atlas_methods.method(factory, {}, atlas_methods.ONLINE).in_time


def test_every_rule_of_an_ordinary_layer_is_a_method():
    of_other_layers = {"apex", "competitive_hebbian"}  # lateral connections
    of_targets_or_coefficients = {"perceptron", "parametric", "Rule"}
    assert set(nl.rules.__all__) - of_other_layers - of_targets_or_coefficients <= set(METHODS)


def test_a_method_of_ones_own():
    place = "tests.experiments.test_atlas:mine"
    config = atlas.Config(tasks=("digits",), methods=("backprop",), estimator=(place, "nl_jax:backprop"))
    _, methods = atlas._chosen(config)
    assert list(methods) == ["backprop", place, "nl_jax:backprop"]
    own = methods[place]
    assert own.family == "yours"
    assert isinstance(own.make(small_task(), 1), nl.GradientEstimator)
    assert atlas.command(config, "digits", place).endswith(f"--estimator {place}")
    longer = atlas.Config(hours=5.0)
    assert (
        atlas.command(longer, "digits", "rtrl")
        == "python -m experiments.atlas --tasks digits --methods rtrl --hours 5.0"
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["--tasks", "none"], "there is no none"),
        (["--methods", "none"], "there is no none"),
        (["--seeds", "1"], "--seeds must be at least 2"),
        (["--hours", "0"], "--hours must be positive; got 0.0"),
        (["--tasks", "digits", "--estimator", "json"], "module:factory"),
        (["--tasks", "digits", "--estimator", "json:none"], "has no attribute"),
    ],
)
def test_settings_that_will_not_do(settings, words, tmp_path, capsys):
    assert atlas.main([*settings, "--out", str(tmp_path)]) == 1
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_one(name):
    """Shapes alone: nothing is trained."""
    task = TASKS[name]()
    params = jax.eval_shape(task.init, jax.random.key(0))
    assert jax.eval_shape(task.objective, params, task.example).shape == (task.batch_size,)
    assert jax.eval_shape(task.error, params, task.test).shape == ()
    lengths = [len(part[1]) for part in (task.train, task.validation, task.test)]
    assert min(lengths) >= 300
    outputs = jax.eval_shape(lambda p, x: task.apply(p, x, feedforward), params, task.example[0])
    assert outputs.shape[0] == task.batch_size
