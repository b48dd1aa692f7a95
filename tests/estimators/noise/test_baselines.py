"""Baselines: what a perturbed loss is compared with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nl_jax as nl
from tests import problems
from tests.estimators.noise.test_unbiased import exact, largest_deviation

pytestmark = pytest.mark.slow

KEY = jax.random.key(1)
OFFSET = 3.0


def offset_objective(params, batch):
    """A linear objective with a large constant: all that a baseline could take away."""
    return OFFSET + batch @ params


PARAMS, BATCH = jnp.array([0.5, -1.0, 2.0]), jax.random.normal(KEY, (2, 3))


def samples(baseline, state, count=20_000):
    estimator = nl.weight_perturbation(offset_objective, sigma=1.0, baseline=baseline)
    one = lambda key: estimator.estimate(key, state, PARAMS, BATCH)[0]
    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(3), count)))


def test_a_running_mean_is_unbiased_and_better_than_none(x64):
    g = exact(offset_objective, PARAMS, BATCH)
    baseline = nl.baselines.running_mean(0.9)
    state = baseline.init()
    for loss in (2.9, 3.2, 3.0, 2.8):
        state = baseline.update(state, jnp.asarray(loss))
    none, running = samples(nl.baselines.none(), ()), samples(baseline, state)
    clean = samples(nl.baselines.clean(), ())
    assert largest_deviation(running, g) < 5
    assert largest_deviation(running + 0.5 * np.abs(g), g) > 5
    # Var = Σ g² + … + (E − Ē)²/σ² per component: the offset is gone, what is left is the distance to the mean
    assert none.var(axis=0).mean() > running.var(axis=0).mean() + 0.5 * OFFSET**2
    assert running.var(axis=0).mean() < 1.5 * clean.var(axis=0).mean() + 1.0


def test_a_running_mean_forgets_and_corrects_its_start():
    baseline = nl.baselines.running_mean(0.5)
    state = baseline.update(baseline.update(baseline.init(), jnp.float32(4.0)), jnp.float32(1.0))
    np.testing.assert_allclose(state.total / state.weight, (0.5 * 4.0 * 0.5 + 0.5 * 1.0) / 0.75)


def test_the_state_is_handed_on():
    """The second estimate is compared with the first one's loss."""
    estimator = nl.weight_perturbation(offset_objective, sigma=0.1, baseline=nl.baselines.running_mean(0.0))
    first, state, info = estimator.estimate(KEY, estimator.init(KEY, PARAMS), PARAMS, BATCH)
    second, _, again = estimator.estimate(KEY, state, PARAMS, BATCH)
    np.testing.assert_allclose(info.loss, again.loss)
    np.testing.assert_allclose(second, np.zeros(3), atol=1e-5)  # the same noise, the same loss, no change
    assert np.abs(first).max() > 1


def test_a_running_mean_forgets_what_is_not_finite():
    baseline = nl.baselines.running_mean(0.5)
    state = baseline.update(baseline.init(), jnp.float32(2.0))
    assert baseline.update(state, jnp.float32(jnp.nan)) == state


@pytest.mark.parametrize("decay", [-0.1, 1.0, True, "0.9", None])
def test_decay_is_checked(decay):
    with pytest.raises(ValueError, match="decay must be at least 0 and below 1"):
        nl.baselines.running_mean(decay)


def test_a_baseline_must_be_made():
    with pytest.raises(ValueError, match=r"nl\.baselines, made by a call such as clean\(\)"):
        nl.weight_perturbation(problems.chain().objective, baseline=nl.baselines.clean)
