"""Signal to noise by the second and by the evaluation."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nl_jax as nl
from nl_jax.evaluation.diagnostics.timing import Spread
from nl_jax.theory import perturbation as theory
from tests import problems

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def found():
    problem = problems.chain()
    candidates = {
        "backprop": nl.backprop(problem.objective),
        "four": nl.weight_perturbation(problem.objective, num_samples=4, directions=nl.directions.rademacher()),
        "sixteen": nl.weight_perturbation(problem.objective, num_samples=16, directions=nl.directions.rademacher()),
    }
    at = problem.params, problem.batch
    return nl.diagnostics.efficiency(candidates, problem.objective, *at, num_estimates=400, rounds=5, progress=False)


def test_signal_to_noise_is_that_of_the_variance_law(found):
    """The inverse of the relative variance, K/(P − 1) for signs; a wrong K must fail."""
    signal_to_noise = lambda K: 1 / theory.relative_variance(theory.independent(43, kurtosis=1), K)
    for name, samples in (("four", 4), ("sixteen", 16)):
        row = found.rows[name]
        assert abs(row.signal_to_noise - signal_to_noise(samples)) < 5 * row.signal_to_noise_error
        assert abs(row.signal_to_noise - signal_to_noise(samples + 1)) > row.signal_to_noise_error
        assert row.evaluations == samples + 1
        np.testing.assert_allclose(row.per_evaluation, row.signal_to_noise / row.evaluations)
        np.testing.assert_allclose(row.per_second, row.signal_to_noise / row.seconds.median)
        assert row.per_second_error > row.signal_to_noise_error / row.seconds.median * 0.99
        assert 0 < row.seconds.low <= row.seconds.median <= row.seconds.high


def test_exact_estimators_have_no_noise(found):
    row = found.rows["backprop"]
    assert math.isinf(row.per_second)
    assert math.isinf(row.per_evaluation)
    assert row.cosine > 0.999
    assert str(found).splitlines()[1].split()[-4:] == ["no", "noise"] * 2
    assert found.as_dict()["backprop"]["per_second"] is None


def test_the_table_and_the_data_hold_every_figure(found):
    lines = str(found).splitlines()
    assert len(lines) == 4
    assert len(set(map(len, lines))) == 1
    for name, row in found.rows.items():
        (line,) = (line for line in lines if line.startswith(name))
        assert f"{1e3 * row.seconds.median:.2f}" in line
    saved = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert saved["four"]["evaluations"] == 5
    assert saved["four"]["seconds"] == found.rows["four"].seconds._asdict()
    assert Spread(**saved["four"]["seconds"]) == found.rows["four"].seconds


def test_the_figure_shows_the_noisy_ones(found):
    left, right = found.plot().axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["sixteen", "four"]
    for axes, label in ((left, "signal to noise per second"), (right, "signal to noise per 1,000 evaluations")):
        assert axes.get_xlabel() == label
        assert axes.get_xscale() == "log"
    np.testing.assert_allclose(
        right.lines[0].get_xdata(), [1e3 * found.rows[name].per_evaluation for name in ("sixteen", "four")]
    )


def test_bad_settings():
    problem = problems.chain()
    at = problem.objective, problem.params, problem.batch
    with pytest.raises(ValueError, match="estimators must map names to at least one candidate"):
        nl.diagnostics.efficiency({}, *at)
    with pytest.raises(ValueError, match="rounds must be a whole number of at least 1, got 0"):
        nl.diagnostics.efficiency({"backprop": nl.backprop(problem.objective)}, *at, rounds=0)


def test_scale_is_no_signal_and_what_has_no_noise_is_known():
    """An estimate a thousand times too small is as good; one that is NaN or zero is not without noise.

    One that is always equally wrong is, though rounding makes a difference between its estimates.
    """
    at = (lambda w, x: (x @ w - 1) ** 2), np.full(5, 2, np.float32), np.eye(5, dtype=np.float32)
    honest = nl.weight_perturbation(at[0], num_samples=16)

    def scaled(factor):
        def estimate(key, state, params, batch):
            grads, state, info = honest.estimate(key, state, params, batch)
            return jax.tree.map(lambda g: factor * g, grads), state, info

        return nl.GradientEstimator(honest.init, estimate)

    def constant(key, state, params, batch):
        _, _, info = honest.estimate(key, state, params, batch)
        rounding = 1 + 1e-7 * jax.random.normal(key, params.shape)
        return jnp.arange(5.0) * rounding, state, info

    candidates = {"constant": nl.GradientEstimator(honest.init, constant)}
    candidates |= {"honest": honest, "small": scaled(1e-3), "nan": scaled(math.nan), "zero": scaled(0.0)}
    rows = nl.diagnostics.efficiency(candidates, *at, num_estimates=50, rounds=1, progress=False).rows
    np.testing.assert_allclose(rows["small"].signal_to_noise, rows["honest"].signal_to_noise, rtol=1e-3)
    assert math.isnan(rows["nan"].signal_to_noise)
    assert not math.isinf(rows["zero"].signal_to_noise)
    assert rows["constant"].cosine < 0.9
    assert math.isinf(rows["constant"].signal_to_noise)


def test_what_learns_from_its_past_is_measured_with_one():
    at = (lambda w, x: (x @ w - 1) ** 2), np.full(5, 2, np.float32), np.eye(5, dtype=np.float32)
    baselines = {"none": nl.baselines.none(), "running mean": nl.baselines.running_mean()}
    make = functools.partial(nl.weight_perturbation, at[0], sigma=0.02, num_samples=64, chunk=64)
    candidates = {name: make(baseline=baseline) for name, baseline in baselines.items()}
    rows = nl.diagnostics.efficiency(candidates, *at, num_estimates=200, rounds=10, progress=False).rows
    assert rows["running mean"].signal_to_noise > 3 * rows["none"].signal_to_noise
