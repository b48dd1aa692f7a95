"""Variance against depth, small: each network's is that of its law, and the exponents are those of the grid."""

import json

import numpy as np
import pytest

from experiments.harness import random_networks
from experiments.harness.random_networks import CASES
from experiments.variance_depth import __main__ as variance_depth
from experiments.variance_depth import figure, measuring, report
from experiments.variance_depth.measuring import Measurement, Sampled

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("lenient")]

SMALL = ["--depths", "1", "4", "--widths", "5", "--networks", "8", "--estimates", "400"]


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """What a small run of linear and rectified linear networks leaves."""
    out = tmp_path_factory.mktemp("variance_depth")
    with pytest.MonkeyPatch.context() as patch:
        for module in (random_networks, variance_depth, measuring, report, figure):
            patch.setattr(module, "CASES", {name: CASES[name] for name in ("linear, orthogonal", "relu, gain 1")})
        assert variance_depth.main([*SMALL, "--out", str(out)]) == 0
    return out, dict(np.load(out / "variance_depth.npz"))


def test_measured_and_law_agree(left):
    """Within 4 standard errors; the other space's law must fail, and in rectified linear networks the linear law."""
    _, data = left
    assert data["squares"].shape == (8, 8, 400)
    for case, space, depth, squares, law in zip(
        data["case"], data["space"], data["depth"], data["squares"], data["law"], strict=True
    ):
        number = depth * (25 if space == "weights" else 5)
        deviations = {}
        for name, expected in (("law", law), ("linear", np.full(8, number + 1)), ("other", 2.0 * law)):
            ratios = (squares / expected[:, None]).ravel()
            deviations[name] = abs(ratios.mean() - 1) / (ratios.std(ddof=1) / ratios.size**0.5)
        assert deviations["law"] < 4
        assert deviations["other"] > 5
        if space == "weights" or case == "linear, orthogonal":
            np.testing.assert_allclose(law, number + 1, rtol=1e-9)
        elif depth == 4:
            assert deviations["linear"] > 5


def test_cosines(left):
    """Weights' is that of a Gaussian direction, whose mean is nearly √(2/πP); nodes' is larger."""
    _, data = left
    for space, depth, cosines in zip(data["space"], data["depth"], data["cosines"], strict=True):
        if space == "weights":
            standard_error = cosines.std() / cosines.size**0.5
            assert abs(cosines.mean() - (2 / np.pi / (25 * depth)) ** 0.5) < 5 * standard_error
    of = {(case, space, depth): cosines.mean() for case, space, depth, cosines in zip(
        data["case"], data["space"], data["depth"], data["cosines"], strict=True)}  # fmt: skip
    assert of["linear, orthogonal", "nodes", 4] > 1.5 * of["linear, orthogonal", "weights", 4]


def test_folder(left):
    out, _ = left
    said = json.loads((out / "variance_depth.json").read_text())
    assert said["largest_deviation"] < said["allowed"]
    assert said["compared"] == 2 * 2 * 2
    exponents = said["exponents"]["linear, orthogonal, nodes"]
    np.testing.assert_allclose(exponents["predicted"], np.log(21 / 6) / np.log(4))
    assert abs(exponents["measured"][0] - exponents["predicted"][0]) < 5 * exponents["error"][0]
    assert (out / "variance_depth.png").read_bytes().startswith(b"\x89PNG")


def test_no_network_is_silent():
    """Narrow rectified linear networks often are; with one unit a layer too many."""
    params, batch = random_networks.draw(CASES["relu, gain 2"], 6, 3, 20)
    x = batch[0]
    for weight in np.moveaxis(params["hidden"], 1, 0):
        x = np.maximum(x @ weight, 0)
    assert params["output"].shape == (20, 3, 3)
    assert np.all(np.any(x > 0, axis=(1, 2)))
    with pytest.raises(variance_depth.ExperimentError, match="of 40 layers of 1 units most are silent"):
        random_networks.draw(CASES["relu, gain 2"], 40, 1, 20)


def test_orthogonal_weights_keep_norms():
    params, _ = random_networks.draw(CASES["linear, orthogonal"], 3, 4, 5)
    weights = params["output"]
    np.testing.assert_allclose(weights @ weights.swapaxes(1, 2), np.broadcast_to(np.eye(4), (5, 4, 4)), atol=1e-12)


def made_up(off=0.0, exponent=1.0):
    """All cases on the linear law to the `exponent`, `off` standard errors from what they say is their law."""
    found = []
    noise = np.random.default_rng(0).normal(size=(6, 100))
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    for case in CASES:
        for space in variance_depth.SPACES:
            for depth in (2, 4, 8):
                for width in (4, 8):
                    law = float(depth**exponent * width ** (2 if space == "weights" else 1))
                    squares = law * (1 + 0.01 * (noise + off / 600**0.5))
                    sampled = Sampled(squares, np.full((6, 100), 0.1), np.full(6, law))
                    found.append(Measurement(case, space, depth, width, sampled))
    return found


def test_the_largest_deviation_is_judged():
    right = variance_depth.judge(made_up(off=3.0))
    assert right.largest_deviation == pytest.approx(3, rel=1e-3)
    assert right.largest_deviation < right.allowed < 5
    assert not variance_depth.judge(made_up(off=6.0)).agrees


def test_exponents_are_those_of_the_grid():
    for exponent in (1.0, 1.5):
        for space, of_width in (("weights", 2.0), ("nodes", 1.0)):
            law = variance_depth.scaling(made_up(exponent=exponent), "tanh, gain 1", space)
            np.testing.assert_allclose(law.measured, [exponent, of_width], atol=0.01)
            np.testing.assert_allclose(law.predicted, [1, of_width], atol=0.1)
    curved = [one if one.depth != 4 else one._replace(sampled=one.sampled._replace(squares=3 * one.sampled.squares))
              for one in made_up()]  # fmt: skip
    assert variance_depth.scaling(curved, "tanh, gain 1", "nodes").error[0] > 0.3  # no power law


def test_the_table_and_the_picture_show_what_was_measured():
    found = made_up(exponent=3.0)
    text = variance_depth.table(found)
    assert "nodes: relu, gain 1" in text
    assert "3.00 ±" in text
    assert "largest deviation of 48 compared: 0.0" in text
    assert "tanh, gain 1: from 4 layers of 8 units on, nodes have the larger variance" in text
    by_depth, imbalance, by_width, cosine = variance_depth.plot(found).axes
    first = by_depth.containers[1].lines[0]
    assert list(first.get_xdata()) == [2, 4, 8]
    np.testing.assert_allclose(first.get_ydata(), 8.0 * np.array([2, 4, 8]) ** 3, rtol=1e-3)
    assert list(by_width.containers[0].lines[0].get_xdata()) == [4, 8]
    for axes in (by_depth, imbalance, by_width, cosine):
        assert axes.get_xlabel()
        assert axes.get_ylabel()


def test_disagreement_is_a_non_zero_exit(tmp_path, monkeypatch, capsys):
    """Said after all is saved."""
    by_size = {(depth, width): [one for one in made_up(off=9.0) if (one.depth, one.width) == (depth, width)]
               for depth in (2, 4) for width in (4, 8)}  # fmt: skip
    monkeypatch.setattr(variance_depth, "measure", lambda depth, width, *counts: by_size[depth, width])
    sizes = ["--depths", "2", "4", "--widths", "4", "8"]
    assert variance_depth.main([*sizes, "--out", str(tmp_path)]) == 1
    said = "error: law and measurement disagree: by 9.0 standard errors, where chance allows"
    assert said in capsys.readouterr().err
    assert (tmp_path / "variance_depth.png").exists()


def test_errors_are_one_line_and_a_non_zero_exit(tmp_path, capsys):
    cases = {
        "--depths must be 2 or more rising numbers of at least 1, got (4,)": ["--depths", "4"],
        "--widths must be 1 or more rising": ["--widths", "8", "4"],
        "--networks must be at least 5, got 4": ["--networks", "4"],
        "--estimates must be at least 100, got 99": ["--estimates", "99"],
    }
    for message, arguments in cases.items():
        assert variance_depth.main([*arguments, "--out", str(tmp_path / "out")]) == 1
        shown = capsys.readouterr().err
        assert shown.startswith("error: ")
        assert message in shown
        assert shown.count("\n") == 1
    assert not (tmp_path / "out").exists()
