import ast
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nl_jax as nl
from experiments import atlas, atlas_cell, atlas_methods, atlas_page
from experiments.atlas_cell import Effort
from experiments.atlas_methods import METHODS, Method
from experiments.atlas_tasks import TASKS, Task, wrong_answers
from nl_jax.propagation import feedforward

pytestmark = pytest.mark.usefixtures("lenient")  # optax promotes


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
        of(slice(50, None)), goal=0.2, anchor=0.1, batch_size=20,
    )  # fmt: skip


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(TASKS, "small", small_task)
    monkeypatch.setitem(METHODS, "refusing", Method(lambda objective, example, samples: refusing(objective), "x"))
    return ["--tasks", "small", "--methods", "backprop", "refusing", "rtrl", "--rates", "1e-06", "0.1", "--seeds", "2",
            "--updates", "40"]  # fmt: skip


def test_every_cell_is_measured_or_says_why_not(small, tmp_path, capsys, monkeypatch):
    assert atlas.main([*small, "--out", str(tmp_path)]) in (0, 1)
    found = json.loads((tmp_path / "atlas.json").read_text())
    exact, refused, in_time = (found["cells"][f"small/{name}"] for name in ("backprop", "refusing", "rtrl"))
    assert exact["evaluations"] == 3 * 40
    assert np.shape(exact["validation errors"]) == (2, 2)
    assert exact["rate"] == 0.1
    best = 1
    assert best == np.mean(exact["validation errors"], axis=1).argmin()
    np.testing.assert_allclose(exact["validation error along training"][-1], exact["validation errors"][best])
    np.testing.assert_allclose(exact["cosine along training"], 1, rtol=1e-5)
    assert exact["updates"] == list(range(0, 41, 2))
    mean = np.mean(exact["validation error along training"], axis=1)
    assert exact["updates to the goal"] == exact["updates"][np.flatnonzero(mean <= 0.2)[0]]
    assert exact["verdict"] == "reads other axons, weight transport, sees the target"
    assert (refused["status"], refused["why"]) == ("refused", "not today")
    assert in_time["status"] == "not for it"
    printed = capsys.readouterr().out
    assert "refused: not today" in printed
    assert "0.000 ± 0.000" in printed  # backprop behind itself
    page = (tmp_path / "atlas.html").read_text()
    assert page.count("<tr data-task") == 3
    assert "python -m experiments.atlas --tasks small --methods backprop --rates 1e-06 0.1 --seeds 2" in page
    cell = json.loads((tmp_path / "cells/small-backprop.json").read_text())
    assert cell["test errors"] == exact["test errors"]

    # An interrupted atlas goes on: nothing that is finished is measured again.
    monkeypatch.setattr(atlas, "measured", lambda *of: pytest.fail("measured again"))
    atlas.main([*small, "--out", str(tmp_path), "--resume"])
    assert json.loads((tmp_path / "atlas.json").read_text()) == found


def test_a_cell_in_which_every_rate_is_lost_says_so():
    lost = METHODS["backprop"]
    found = atlas_cell.measured(small_task(), lost, Effort((3e38,), 2, 5, 1))
    assert found["status"] == "diverged"
    assert "every one of 1 settings" in found["why"]


def test_an_anchor_that_is_missed_fails():
    task = small_task()
    cell = {"status": "measured", "test errors": [0.15, 0.13]}
    of = lambda cell: atlas._from_anchors({"small/backprop": cell}, {"small": task})
    assert of(cell)["small, backprop"] == pytest.approx(2)
    assert of({**cell, "test errors": [0.05, 0.05]})["small, backprop"] == 0
    assert of({"status": "diverged"}) == {}


def test_what_an_update_may_see():
    network = nl.mlp([4, 3, 2], activation=nl.activations.tanh())
    objective = nl.supervised(network.apply, nl.losses.cross_entropy)
    at = objective, network.init(jax.random.key(0)), (jnp.ones([5, 4]), jnp.zeros(5, int))
    kinds = {"node_perturbation": "three-factor", "feedback_alignment": "others", "backprop": "weight transport"}
    for name, kind in kinds.items():
        factory = functools.partial(METHODS[name].make, example=at[2], samples=2)
        assert atlas_page.sees(nl.audit(factory, *at).verdict) == kind
    assert atlas_page.sees("local") == "local"


def test_every_estimator_is_a_method():
    """But those that only compose others, and the rules that need a program of their own."""
    left_out = {"average", "mix", "partition", "batch_sum", "augmented", "at_equilibrium", "by_block", "local_learning"}
    made = set()
    for module in ("estimators", "rules"):
        for path in (Path(nl.__file__).parent / module).rglob("*.py"):
            for node in ast.parse(path.read_text()).body:
                returns = node.returns if isinstance(node, ast.FunctionDef) else None
                if returns is not None and ast.unparse(returns) == "GradientEstimator" and node.name in nl.__all__:
                    made.add(node.name)
    assert len(made) > 30
    source = Path(atlas_methods.__file__).read_text()
    assert {name for name in made - left_out if f"nl.{name}" not in source} == {"decorrelation"}  # teaches R alone


def test_a_method_of_ones_own():
    config = atlas.Config(tasks=("digits",), methods=("backprop",), estimator="tests.experiments.test_atlas:mine")
    _, methods = atlas._chosen(config)
    own = methods["tests.experiments.test_atlas:mine"]
    assert own.family == "yours"
    assert isinstance(own.make(small_task().objective, None, 1), nl.GradientEstimator)
    assert atlas.command(config, "digits", config.estimator).endswith(f"--estimator {config.estimator}")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["--tasks", "none"], "there is no none"),
        (["--methods", "none"], "there is no none"),
        (["--seeds", "1"], "--seeds must be at least 2"),
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
