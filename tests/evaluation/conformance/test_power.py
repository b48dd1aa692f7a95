"""The smallest bias that draws show: false alarms as rare as said, biases seen as often as said."""

import functools

import jax
import numpy as np
import pytest

import nl_jax as nl
from nl_jax.evaluation.conformance import Claims, certify
from nl_jax.evaluation.conformance.calibration import calibration
from nl_jax.evaluation.conformance.power import MISSED, LeafBias, Moments, chi_square_limit, leaf, sequential
from nl_jax.evaluation.conformance.problem import chain
from nl_jax.evaluation.conformance.subject import subject

pytestmark = pytest.mark.slow

GRADIENT = {"long": np.array([1.0, 2.0, 0.0, 0.5]), "short": np.array([0.1, 0.2])}
MIXED = np.random.default_rng(0).standard_normal((6, 6)) / 2
ERROR, RUNS, BLOCK = 0.05, 400, 200


def run(seed, bias=0.0, looks=5, error=ERROR, target=0.0):
    """Of estimates that are skewed and not independent; `short` is too long by the bias."""
    rng = np.random.default_rng(seed)

    def draw(block):
        z = rng.standard_normal((BLOCK, 6))
        noise = z @ MIXED + (z[:, :1] ** 2 - 1) / 2
        return {"long": GRADIENT["long"] + noise[:, :4], "short": GRADIENT["short"] * (1 + bias) + noise[:, 4:] / 10}

    return sequential(draw, GRADIENT, BLOCK * 2 ** (looks - 1), error=error, target=target)


def standard_error(share, runs=RUNS):
    return (share * (1 - share) / runs) ** 0.5


def test_false_alarms_of_all_looks_and_leaves_are_as_rare_as_said():
    alarms = np.mean([bool(run(seed).biased) for seed in range(RUNS)])
    assert alarms < ERROR + 4 * standard_error(ERROR)


def test_looks_and_leaves_that_are_not_accounted_for_are_too_many_alarms():
    """The twin: every leaf, statistic and look at the whole probability."""

    def careless(seed):
        rng, alarms = np.random.default_rng(seed), []
        moments = {name: Moments(0, np.zeros(g.size), np.zeros((g.size, g.size))) for name, g in GRADIENT.items()}
        for blocks in (1, 1, 2, 4, 8):
            z = rng.standard_normal((blocks * BLOCK, 6))
            noise = z @ MIXED + (z[:, :1] ** 2 - 1) / 2
            for name, e in (("long", noise[:, :4]), ("short", noise[:, 4:] / 10)):
                moments[name] = moments[name].grown(e)
                alarms.append(leaf(moments[name], GRADIENT[name], ERROR).biased)
        return any(alarms)

    alarms = np.mean([careless(seed) for seed in range(RUNS)])
    assert alarms > ERROR + 4 * standard_error(ERROR)


def test_each_statistic_sees_what_the_other_cannot():
    """A wrong length is lost in the noise of a hundred other directions; a wrong direction changes no length."""
    g, rng = np.eye(100)[0], np.random.default_rng(0)
    noise = rng.standard_normal((BLOCK, 100)) * np.where(g > 0, 0.1, 3.0)
    nothing = Moments(0, np.zeros(100), np.zeros((100, 100)))
    found = {name: leaf(nothing.grown(noise + bias), g, ERROR) for name, bias in {
        "none": 0 * g, "long": 0.05 * g, "aside": 2.5 * np.eye(100)[1],
    }.items()}  # fmt: skip
    assert not found["none"].biased
    assert found["long"].biased
    assert found["long"].visible_length < 0.05 < found["long"].visible_distance
    assert found["aside"].biased
    assert abs(found["aside"].length - 1) < 0.05


@pytest.mark.parametrize(("part", "seen"), [(1.0, 1 - MISSED), (0.5, None)])
def test_a_bias_of_the_size_that_is_called_visible_is_seen_as_often_as_said(part, seen):
    """In length, and judged once; one of half the size is missed far more often."""
    visible = run(0, looks=1).leaves["short"].visible_length
    share = np.mean([bool(run(seed, part * visible, looks=1).leaves["short"].biased) for seed in range(RUNS)])
    if seen is not None:
        assert share > seen - 4 * standard_error(seen)
    else:
        assert share < 1 - MISSED - 4 * standard_error(1 - MISSED)


def test_a_bias_in_the_noisiest_direction_is_seen_as_often_as_said():
    """By the distance alone: it is at right angles to the gradient, where the length says nothing."""
    g, n = np.array([1.0, 0.0, 0.0]), 500
    scale = np.array([0.1, 3.0, 1.0])

    def once(seed, bias):
        e = np.random.default_rng(seed).standard_normal((n, 3)) * scale + np.array([0.0, bias, 0.0])
        return leaf(Moments(0, np.zeros(3), np.zeros((3, 3))).grown(e), g, 1e-3)

    visible = once(0, 0.0).visible_distance
    found = [once(seed, visible) for seed in range(RUNS)]
    assert np.mean([x.biased for x in found]) > 1 - MISSED - 4 * standard_error(MISSED)
    half = [once(seed, visible / 2) for seed in range(RUNS)]
    assert np.mean([x.biased for x in half]) < 1 - MISSED - 4 * standard_error(MISSED)
    off = np.array([x.distance for x in found])
    assert abs(np.mean(off**2) - visible**2) < 5 * (off**2).std() / RUNS**0.5


@pytest.mark.parametrize("weights", [np.ones(5), np.array([10.0] + [0.1] * 90), 1 / np.arange(1, 8)])
def test_the_limit_of_a_weighted_chi_square(weights):
    error, runs = 1e-3, 200_000
    drawn = sum(w * (np.random.default_rng(i).standard_normal(runs) ** 2 - 1) for i, w in enumerate(weights))
    share = np.mean(drawn > chi_square_limit(weights, error))
    assert abs(share - error) < 0.3 * error + 4 * standard_error(error, runs)
    two_moments = np.sum(weights**2) ** 0.5 * NORMAL  # a normal's limit, whose tail is too light
    assert np.mean(drawn > two_moments) > 2 * error


NORMAL = 3.09 * 2**0.5
"""That a standard normal exceeds with the probability 10⁻³, for squares."""


def test_what_is_exact_is_judged_by_rounding():
    e = np.full((10, 2), 1e-9)
    found = leaf(Moments(0, np.zeros(2), np.zeros((2, 2))).grown(e), np.ones(2), 1e-3, tolerance=1e-8)
    assert not found.biased
    assert found.visible < 2e-8
    assert leaf(Moments(0, np.zeros(2), np.zeros((2, 2))).grown(e), np.ones(2), 1e-3, tolerance=1e-10).biased


def test_a_leaf_whose_gradient_is_0_is_judged_by_the_whole_gradient():
    rng = np.random.default_rng(1)
    found = sequential(
        lambda block: {"a": 1 + rng.standard_normal((1000, 2)), "b": rng.standard_normal((1000, 1)) + 0.5},
        {"a": np.ones(2), "b": np.zeros(1)},
        1000,
    )
    assert found.biased == ["b"]
    assert found.leaves["b"].zero
    assert abs(found.leaves["b"].distance - 0.5 / 2**0.5) < 0.1


def test_nan_is_biased():
    found = leaf(Moments(0, np.zeros(1), np.zeros((1, 1))).grown(np.array([[np.nan], [1.0]])), np.ones(1), 1e-3)
    assert found.biased
    assert isinstance(found, LeafBias)


def test_it_draws_until_the_target_is_seen_and_no_further():
    found = run(0, looks=12, target=0.1)
    assert not found.unseen
    assert found.leaves["short"].visible <= 0.1
    half = run(0, looks=int(np.log2(found.estimates / BLOCK)), target=0.1)
    assert half.estimates == found.estimates / 2
    assert half.unseen


weights = functools.partial(nl.weight_perturbation, num_samples=8)
nodes = functools.partial(nl.node_perturbation, num_samples=8)


def longer(make):
    """The gradients of its biases are 5 % too long."""

    def factory(objective):
        estimator = make(objective)

        def estimate(key, state, params, batch):
            grads, state, info = estimator.estimate(key, state, params, batch)
            stretch = lambda path, g: 1.05 * g if path[-1].key == "bias" else g
            return jax.tree_util.tree_map_with_path(stretch, grads), state, info

        return estimator._replace(estimate=estimate)

    return factory


@pytest.mark.parametrize("make", [weights, nodes], ids=["weights", "nodes"])
def test_biases_5_percent_too_long_are_refused(make, x64):
    row = calibration(subject(longer(make), Claims(), chain, 3000, 100_000))
    assert row.outcome == "failed"
    assert {name for name, leaf in row.figures["leaves"].items() if leaf["biased"]} <= {"hidden1/bias", "output/bias"}
    assert "bias" in row.said
    honest = calibration(subject(make, Claims(), chain, 3000, 12_000))
    assert honest.outcome == "not shown"
    assert "could have missed one of" in honest.said


def test_what_is_not_shown_is_not_certified(x64):
    certificate = certify(weights, num_keys=500, max_keys=500, checks=[calibration])
    assert certificate.not_shown == ["calibration"]
    assert not certificate.passed
    assert not certificate.failures
    printed = str(certificate)
    assert "NOT certified: 1 not shown of 1 checks" in printed
    assert "take max_keys of about" in " ".join(printed.split())
    assert len([line for line in printed.splitlines() if line.split()[0] in chain_leaves()]) == 4
    assert certificate.as_dict()["checks"]["calibration"]["leaves"]["hidden1/bias"]["visible_length"] > 0.02


def chain_leaves():
    return {f"{layer}/{kind}" for layer in ("hidden1", "output") for kind in ("weight", "bias")}


def test_a_budget_below_one_draw_is_refused():
    with pytest.raises(ValueError, match="max_keys = 100 is less than num_keys = 3000: raise it, or lower num_keys"):
        certify(weights, max_keys=100)
