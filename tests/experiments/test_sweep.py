"""Training at several rates from several beginnings is as training one by one; and how a rate is chosen."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nl_jax as nl
from experiments.harness import sweep
from experiments.harness.data import Dataset, Split
from experiments.harness.results import with_error
from experiments.harness.sweep import Sets
from nl_jax._core.numerics import mean_and_error

NETWORK = nl.mlp([3, 2], activation=nl.activations.tanh())
ESTIMATOR = nl.backprop(nl.supervised(NETWORK.apply, nl.losses.cross_entropy))
RATES, SEEDS, BATCH, MOMENTS = (0.5, 2.0), 3, 4, (0, 1, 5)


def learner(rate):
    return nl.learner(ESTIMATOR, optax.sgd(rate))


@pytest.fixture(scope="module")
def sets():
    rng = np.random.default_rng(0)
    return Sets(*((rng.normal(size=(n, 3)).astype(np.float32), rng.integers(2, size=n)) for n in (20, 8, 6)))


@pytest.fixture(scope="module")
def swept(sets):
    measure = lambda params, sets: (sweep.scores(NETWORK.apply)(params, sets), params)
    return sweep.sweep(
        learner, NETWORK.init, measure, sets, rates=RATES, seeds=SEEDS, batch_size=BATCH, moments=MOMENTS
    )


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "seed"), [(0, 1), (1, 2)])
def test_a_run_is_the_learner_walked(rate, seed, sets, swept):
    """Step by step, on the batches that the seed draws."""
    _, params = swept
    walked = learner(RATES[rate]).init(jax.random.key(0), NETWORK.init(jax.random.key(seed)))
    order = np.random.default_rng(seed).integers(20, size=(5, BATCH))
    at = {0: walked.params}
    for step, index in enumerate(order, start=1):
        batch = tuple(jnp.asarray(x[index]) for x in sets.train)
        walked, _ = learner(RATES[rate]).step(jax.random.key(0), walked, batch)
        at[step] = walked.params
    for i, moment in enumerate(MOMENTS):
        ours = jax.tree.map(lambda x, i=i: x[rate, seed, i], params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, at[moment])


def test_seeds_differ_and_rates_begin_alike(swept):
    _, params = swept
    weights = params["output"]["weight"]
    assert weights.shape == (2, 3, 3, 3, 2)
    np.testing.assert_array_equal(weights[0, :, 0], weights[1, :, 0])  # the same beginnings
    assert np.abs(weights[0, :, 1:] - weights[1, :, 1:]).min() > 0
    assert np.abs(weights[:, 0] - weights[:, 1]).min() > 0


def test_scores_are_of_every_set(sets, swept):
    scores, params = swept
    assert set(scores.loss) == set(scores.error) == {"train", "validation", "test"}
    last = jax.tree.map(lambda x: x[1, 2, 2], params)
    outputs = NETWORK.apply(last, jnp.asarray(sets.test[0]))
    np.testing.assert_allclose(scores.error["test"][1, 2, 2], np.mean(outputs.argmax(axis=1) != sets.test[1]))
    np.testing.assert_allclose(
        scores.loss["test"][1, 2, 2], nl.losses.cross_entropy(outputs, jnp.asarray(sets.test[1])).mean(), rtol=1e-5
    )


def test_validation_is_set_apart():
    images, labels = np.arange(24).reshape(12, 2), np.arange(12)
    sets = sweep.with_validation(Dataset("numbers", Split(images, labels), Split(images[:2], labels[:2])))
    np.testing.assert_array_equal(sets.validation[1], [0, 1, 2])
    np.testing.assert_array_equal(sets.train[1], range(3, 12))
    np.testing.assert_array_equal(sets.train[0], images[3:])
    np.testing.assert_array_equal(sets.test[1], [0, 1])


def test_the_first_moment_at_most_a_target():
    found = sweep.first_at_most(
        1.0, np.array([[3.0, 1.0, 2.0, 0.5], [3, 2, 2, 2], [np.nan, np.nan, 2, 1]]), [0, 2, 5, 9]
    )
    np.testing.assert_array_equal(found, [2, np.inf, 9])


def test_the_fastest_rate_takes_all_seeds():
    """[rates, seeds, moments]: the first leaves a seed behind; of the others the second is there sooner."""
    validation = np.array([[[3, 1, 1], [3, 3, 3]], [[3, 3, 1], [3, 1, 1]], [[3, 3, 1], [3, 3, 0]]], float)
    assert sweep.fastest(validation, 1.0, [0, 1, 2]) == 1
    assert sweep.fastest(validation, 0.0, [0, 1, 2]) == 2  # where none takes all: the lowest in the end
    validation[1, 0, 2] = np.nan
    assert sweep.lowest(validation[..., -1]) == 2
    assert sweep.lowest(validation[:2, :, -1]) == 0


def test_means_have_errors():
    assert mean_and_error(np.array([1.0, 3.0])) == (2.0, 1.0)
    assert mean_and_error(np.array([1.0])) == (1.0, np.inf)
    assert mean_and_error(np.array([1.0, np.inf])) == (np.inf, np.inf)
    assert with_error(np.array([1000.0, 3000.0]), 1) == "2,000.0 ± 1,000.0"
    assert with_error(np.array([1.0, np.inf]), 1) == "not reached"
