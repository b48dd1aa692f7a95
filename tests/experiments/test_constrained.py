"""The family's experiment, small: what must agree agrees, and what does not is told."""

import dataclasses
import json

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments.constrained import __main__ as constrained
from experiments.constrained.family import EXACT, GROUPS, MEMBERS, SOLVERS

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("lenient")]
SMALL = {
    "members": ("fixed_prediction", "random"), "solvers": ("fixed_prediction",), "hidden": (4,), "seeds": 2,
    "penalties": (10.0, 1e3, 1e4), "iterations": (1, 32), "updates": 10, "batch_size": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """What a small run returns, and where it leaves the rest."""
    out = tmp_path_factory.mktemp("constrained")
    config = constrained.Config(out, **SMALL)
    return config, constrained.run(config)


def test_everyone_is_in_the_family_once():
    names = [name for group in GROUPS.values() for name in group]
    assert names == list(MEMBERS)
    assert set(EXACT) < set(MEMBERS)
    assert set(constrained.QUICK) <= set(MEMBERS)
    assert set(constrained.QUICK) & set(SOLVERS)


def test_what_must_agree_does(left):
    config, results = left
    deviations = results.deviations(config)
    assert set(deviations) == {
        "error as 1/μ", "linear network on its theory", "fixed prediction, rate ½ comes to the gradient",
        "fixed prediction learns as backprop",
    }  # fmt: skip
    assert max(deviations.values()) <= 1
    along = results.along
    np.testing.assert_allclose(along.error[1] / along.error[2], 10, rtol=0.02)
    np.testing.assert_allclose(along.linear_error, along.law, rtol=1e-6)
    assert np.all(along.law[0] > 0.01)  # a law of something
    assert np.all(np.diff(along.cosine, axis=0) > 0)
    descent = results.descents["fixed_prediction"]
    assert np.all(descent.error[0] > 0.1)
    np.testing.assert_array_equal(descent.evaluations[:, 0], [4, 35])
    assert descent.dual["hidden1"][0, 0] > 1e6 * descent.dual["hidden1"][1, 0]
    random = results.courses["random"]
    assert random.accuracy.shape == (constrained.MOMENTS, 2)
    assert np.all(random.degrees["output"] < 1e-6)
    assert np.all(random.degrees["hidden1"] > 10)
    assert not np.allclose(random.loss[-1], results.courses["backprop"].loss[-1], rtol=1e-4)


def test_folder(left):
    config, results = left
    lines = [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("solver", line.get("member")) for line in lines] == [
        "fixed_prediction", "backprop", "fixed_prediction", "random",
    ]  # fmt: skip
    judged = json.loads((config.out / "constrained.json").read_text())
    assert judged["largest_deviation"] == pytest.approx(max(results.deviations(config).values()))
    assert judged["allowed"] == 1
    arrays = np.load(config.out / "constrained.npz")
    np.testing.assert_array_equal(arrays["along error"], results.along.error)
    np.testing.assert_array_equal(
        arrays["random learned degrees hidden1"], results.courses["random"].degrees["hidden1"]
    )
    for name in ("constrained", "members"):
        assert (config.out / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_what_disagrees_is_named(left):
    """A slope that is off, a solver that falls short, a member that learns something else."""
    config, results = left
    slower = results.along._replace(error=results.along.error * np.array([[1], [1], [1.2]]))
    missed = results.along._replace(missed=results.along.missed + 1e-5)
    short = {"fixed_prediction": results.descents["fixed_prediction"]._replace(error=np.full((2, 2), 1e-3))}
    others = {**results.courses, "fixed_prediction": results.courses["random"]}
    for name, wrong in {
        "error as 1/μ": {"along": slower},
        "linear network on its theory": {"along": missed},
        "fixed prediction, rate ½ comes to the gradient": {"descents": short},
        "fixed prediction learns as backprop": {"courses": others},
    }.items():
        with pytest.raises(constrained.ExperimentError, match=f"theory and measurement disagree: '{name}'"):
            constrained.judge(dataclasses.replace(results, **wrong).deviations(config))
    with pytest.raises(constrained.ExperimentError, match="nan times"):
        constrained.judge({"anything": float("nan")})


def test_the_pictures_show_what_was_measured(left):
    config, results = left
    cosines, errors, _, by_steps, by_cost, _ = constrained.plot(results, config).axes
    np.testing.assert_allclose(cosines.lines[0].get_ydata(), results.along.cosine.mean(axis=1))
    np.testing.assert_allclose(errors.lines[0].get_ydata(), results.along.error.mean(axis=1))
    np.testing.assert_allclose(by_steps.lines[0].get_xdata(), config.iterations)
    np.testing.assert_allclose(by_cost.lines[0].get_xdata(), [4, 35])
    accuracies, angles = constrained.plot_members(results, config).axes
    shown = [tick.get_text() for tick in accuracies.get_yticklabels()]
    assert shown == ["exact", "backprop", "fixed prediction", "feedback", "random"]
    np.testing.assert_allclose(angles.lines[0].get_ydata(), results.courses["random"].degrees["hidden1"].mean(axis=1))


def empty(results, config):
    """In the place of the pictures, which take a second to draw."""
    return Figure(figsize=(1, 1))


def test_ctrl_c_leaves_what_was_done(left, tmp_path, monkeypatch, capsys):
    _, results = left

    def interrupted(name, lesson):
        raise KeyboardInterrupt

    monkeypatch.setattr(constrained, "along", lambda lesson: results.along)
    monkeypatch.setattr(constrained, "descend", interrupted)
    monkeypatch.setattr(constrained, "plot", empty)
    monkeypatch.setattr(constrained, "plot_members", empty)
    assert constrained.main(["--penalties", "10", "1000", "10000", "--seeds", "2", "--out", str(tmp_path)]) == 130
    assert "what had been written is kept" in capsys.readouterr().err
    assert (tmp_path / "constrained.png").exists()


def test_diverging_iterations_are_one_line(left, tmp_path, monkeypatch, capsys):
    _, results = left
    monkeypatch.setattr(constrained, "along", lambda lesson: results.along)
    monkeypatch.setattr(constrained, "plot", empty)
    monkeypatch.setattr(constrained, "plot_members", empty)
    monkeypatch.setattr(constrained, "print", lambda *values: None, raising=False)  # a table of what diverged
    arguments = [f"--{name}={value}" for name, value in {"batch-size": 8, "updates": 50, "seeds": 1}.items()]
    arguments += ["--hidden", "4", "--iterations", "1", "2", "--penalties", "10", "1000", "10000"]
    arguments += ["--solvers", "fixed_prediction", "--members", "predictive_coding", "--learning-rate", "1000"]
    assert constrained.main([*arguments, "--out", str(tmp_path)]) == 1
    shown = capsys.readouterr().err.splitlines()[-1]
    assert shown.startswith("error: the inner iterations diverged at optimizer's step size")


def test_errors_are_one_line_and_a_non_zero_exit(tmp_path, capsys):
    cases = {
        "unknown member magic; there are backprop": ["--members", "magic"],
        "unknown solver magic; there are primal_dual": ["--solvers", "magic"],
        "--penalties must be two or more rising numbers above 0, got (1.0,)": ["--penalties", "1"],
        "--iterations must be two or more rising": ["--iterations", "2", "1"],
        "--hidden must be one or more numbers": ["--hidden", "0"],
        "--updates must be a multiple of 10, got 15": ["--updates", "15"],
        "--batch-size must be at least 1, got 0": ["--batch-size", "0"],
        "--batch-size must be at most the 1437": ["--batch-size", "1438"],
        "--seeds must be at least 1, got 0": ["--seeds", "0"],
    }
    for message, arguments in cases.items():
        assert constrained.main([*arguments, "--out", str(tmp_path / "out")]) == 1
        shown = capsys.readouterr().err
        assert shown.startswith(f"error: {message}")
        assert shown.count("\n") == 1
    assert not (tmp_path / "out").exists()
