"""Decorrelation, tiny: what is chosen, what is said of the claim, and that finished lessons are kept."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import nl_jax as nl
from experiments.decorrelation import __main__ as decorrelation
from experiments.decorrelation import training as decorrelation_training
from experiments.decorrelation.__main__ import Config
from experiments.decorrelation.findings import Chosen, Lesson, choose, findings, settled
from experiments.decorrelation.training import METHODS, TASKS, Trained, Trial

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("lenient")]

SMALL = ["--tasks", "student_teacher", "--methods", "backprop", "ANP", "--updates", "20", "--measured", "2",
         "--trials", "4", "--lowest", "0.01", "--highest", "0.03", "--seeds", "2", "--batch-size", "20"]  # fmt: skip


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """What a small run leaves, and where."""
    out = tmp_path_factory.mktemp("decorrelation")
    assert decorrelation.main([*SMALL, "--out", str(out)]) == 0
    return out, json.loads((out / "decorrelation.json").read_text())


def test_what_a_run_leaves(left):
    out, data = left
    assert data["moments"] == [0, 10, 20]
    assert len(data["lessons"]) == 4
    for one in data["lessons"]:
        assert np.shape(one["loss"]) == (2, 3)
        assert one["trial"]["decorrelation"] == 0 or one["decorrelated"]
    with_it = {one["method"]: one for one in data["lessons"] if one["decorrelated"]}
    without = {one["method"]: one for one in data["lessons"] if not one["decorrelated"]}
    for method in with_it:  # from the same beginnings, to less correlation
        np.testing.assert_allclose(
            np.array(with_it[method]["loss"])[:, 0], np.array(without[method]["loss"])[:, 0], rtol=1e-5
        )
        assert np.max(with_it[method]["correlation"]) < np.min(without[method]["correlation"])
    assert [one["statement"] for one in data["findings"]] == [
        "student_teacher: backprop takes fewer updates with decorrelation",
        "student_teacher: ANP takes fewer updates with decorrelation",
        "student_teacher: decorrelation brings ANP nearer to backprop without it",
        "student_teacher: decorrelation brings ANP nearer to backprop with it",
    ]
    assert (out / "decorrelation.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_finished_is_not_done_again(left, monkeypatch, capsys):
    out, before = left
    monkeypatch.setattr(decorrelation_training, "train", lambda *rest, **settings: pytest.fail("it was finished"))
    assert decorrelation.main([*SMALL, "--out", str(out), "--resume"]) == 0
    assert json.loads((out / "decorrelation.json").read_text()) == before
    assert "ANP decorrelated" in capsys.readouterr().out


def test_every_method_has_as_many_trials():
    config = Config()
    plain, with_it = (decorrelation.trials(config, flag) for flag in (False, True))
    assert len(plain) == len(with_it) == len(set(plain)) == len(set(with_it)) == config.trials
    assert {trial.decorrelation for trial in plain} == {0.0}
    for tried in (plain, with_it):
        rates = [trial.weights for trial in tried]
        np.testing.assert_allclose((min(rates), max(rates)), (config.lowest, config.highest))


def test_chosen_on_validation_reported_on_test():
    """The second settles soonest, the first is lowest in the end; the third is lost, however soon it was low."""
    task = TASKS["student_teacher"]()._replace(target=0.5)
    validation = np.array([[[2, 1, 0.1]] * 2, [[2, 0.25, 0.3]] * 2, [[2, 0.1, np.nan]] * 2])
    test = np.array([[[2, 0.1, 0.1]] * 2, [[2, 1, 0.25], [2, 0.125, 0.2]], [[2, 0.2, 0.2]] * 2])
    tried = [Trial(rate, 0.0) for rate in (0.1, 0.2, 0.3)]
    chosen = choose(Trained(validation, test, test, test, evaluations=3), tried, task, [0, 6, 12])
    assert (chosen.trial, chosen.last) == (tried[1], tried[0])
    np.testing.assert_allclose(chosen.updates, [9, 3])
    np.testing.assert_allclose(chosen.evaluations, [27, 9])
    np.testing.assert_array_equal(chosen.error, [0.1, 0.1])


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ([4, 1, 0.25], 15),  # halfway, of logarithms
        ([4, 0.1, 0.9, 0.1], 20 + 10 * np.log(1.8) / np.log(9)),  # it came back
        ([4, 0.25, 0.7, 0.1], 10 * np.log(8) / np.log(16)),  # by less than half of the target
        ([4, 0.1, 0.9], np.inf),
        ([4, np.nan, 0.1], 20),
        ([4, 0.1, np.nan], np.inf),
        ([0.4, 0.3, 0.2], 0),
    ],
)
def test_when_a_loss_has_settled(loss, expected):
    np.testing.assert_allclose(settled(0.5, np.array(loss), [0, 10, 20, 30][: len(loss)]), expected)


def chosen(*updates):
    of = np.array(updates, float)
    return Chosen(Trial(0.1, 0.0), of, of, np.ones((len(of), 2)), np.ones(2), Trial(0.1, 0.0), np.ones(2))


def test_what_is_said():
    """Of 40, 44 and 400, 440 updates; a difference within two standard errors is none."""
    results = {Lesson("t", "backprop", flag): chosen(*own) for flag, own in ((False, (40, 44)), (True, (40, 44)))}
    results |= {Lesson("t", "NP", False): chosen(400, 440), Lesson("t", "NP", True): chosen(80, 88)}
    says = {one["statement"]: one["says"] for one in findings(results)}
    assert says == {
        "t: backprop takes fewer updates with decorrelation": "undecided",
        "t: NP takes fewer updates with decorrelation": "yes",
        "t: decorrelation brings NP nearer to backprop without it": "yes",
        "t: decorrelation brings NP nearer to backprop with it": "yes",
    }
    results[Lesson("t", "backprop", True)] = chosen(4, 4.4)  # backprop gains more than NP does
    assert [one["says"] for one in findings(results)][1:] == ["yes", "yes", "no"]
    results[Lesson("t", "NP", True)] = chosen(80, np.inf)
    assert [one["says"] for one in findings(results)][1:] == ["no"] * 3
    results[Lesson("t", "NP", False)] = chosen(80, np.inf)
    assert [one["says"] for one in findings(results)][1:] == ["undecided"] * 3
    results |= {Lesson("t", "backprop", flag): chosen(np.inf, 40) for flag in (False, True)}
    assert [one["says"] for one in findings(results)] == ["undecided"] * 4


def test_evaluations_of_an_update():
    """Of a network of three layers; the rule for R adds 2."""
    task, found = TASKS["student_teacher"](), {}
    for name in ("backprop", "INP"):
        for flag in (False, True):
            built = decorrelation_training.build(METHODS[name], task, decorrelated=flag, kappa=0.0, num_samples=2)
            found[name, flag] = decorrelation_training.evaluations(*built, task)
    assert found == {("backprop", False): 3, ("backprop", True): 5, ("INP", False): 8, ("INP", True): 10}


def test_correlation_is_that_of_numpy(x64):
    x = np.random.default_rng(0).normal(size=(500, 4)) @ np.random.default_rng(1).normal(size=(4, 4))
    x -= x.mean(axis=0)
    own = np.corrcoef(x, rowvar=False)[~np.eye(4, dtype=bool)]
    silent = np.concatenate([x, np.zeros((500, 1))], axis=1)
    for one in (x, silent):
        found = decorrelation_training.correlation(jnp.asarray(one))
        np.testing.assert_allclose(found, np.sqrt(np.mean(own**2)), rtol=1e-10)


@pytest.mark.parametrize("name", TASKS)
def test_tasks(name):
    task = TASKS[name]()
    widths = {"digits": 64, "mnist": 196, "student_teacher": 32}
    for inputs, answers in task.sets:
        assert inputs.shape[1] == widths[name]
        assert len(inputs) == len(answers)
    first = task.sets.train[0][:1]
    assert not any(np.any(np.all(inputs == first, axis=1)) for inputs, _ in task.sets[1:])
    if name == "student_teacher":
        variances = np.linalg.eigvalsh(np.cov(task.sets.train[0], rowvar=False))
        np.testing.assert_allclose(variances[-1] / variances[0], 32, rtol=0.3)


def test_images_are_averaged():
    images = np.random.default_rng(0).random((3, 28 * 28))
    expected = images[1].reshape(28, 28)[14:16, 10:12].mean()
    np.testing.assert_allclose(decorrelation_training.halved(images)[1].reshape(14, 14)[7, 5], expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "parity"], "--tasks must be some of digits, mnist, student_teacher, each once; got parity"),
        (["--methods", "NP", "NP"], "--methods must be some of backprop, NP, INP, ANP, each once; got NP, NP"),
        (["--trials", "5"], "--trials must be even, half of it for each rate of R; got 5"),
        (["--seeds", "1"], "--seeds must be at least 2, got 1"),
        (["--updates", "5"], "--updates must be at least 50, got 5"),
        (["--lowest", "4"], "--lowest must be above 0 and below --highest; got 4.0, 3.0"),
        (["--kappa", "2"], "--kappa must be from 0 to 1, got 2.0"),
        (["--decorrelation-rates", "0", "1"], "--decorrelation-rates must be numbers above 0"),
    ],
    ids=["tasks", "methods", "trials", "seeds", "updates", "rates", "kappa", "decorrelation rates"],
)
def test_bad_settings_are_one_line(arguments, message, tmp_path, capsys):
    assert decorrelation.main([*arguments, "--out", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_methods_are_estimators():
    network = nl.mlp([3, 4, 2], activation=nl.activations.tanh())
    objective = nl.supervised(network.apply, nl.losses.half_squared_error)
    assert all(isinstance(make(objective, num_samples=1), nl.GradientEstimator) for make in METHODS.values())
