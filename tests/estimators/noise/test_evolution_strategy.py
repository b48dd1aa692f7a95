"""Evolution strategies: shaped fitness, summed to the letter."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import nl_jax as nl
from nl_jax.evaluation.conformance.subject import flat
from tests import problems
from tests.estimators.noise.test_unbiased import exact
from tests.formed import formed

pytestmark = pytest.mark.slow

KEY = jax.random.key(2)
ranks, scores = (jax.jit(shaping) for shaping in (nl.shaping.centred_ranks, nl.shaping.z_scores))


def test_ranks_and_scores():
    losses = np.array([3.0, 1.0, 3.0, 10.0, -2.0], np.float32)
    np.testing.assert_allclose(ranks(losses), (scipy.stats.rankdata(losses) - 1) / 4 - 0.5)
    np.testing.assert_allclose(scores(losses), scipy.stats.zscore(losses), rtol=1e-5)
    for equal in (np.ones(5), np.full(7, 0.1), np.full(32, 0.1)):
        np.testing.assert_array_equal(scores(equal.astype(np.float32)), 0 * equal)


def test_what_is_not_finite_is_worst():
    found = ranks(np.array([1.0, 2.0, np.nan, 3.0, 0.0], np.float32))
    np.testing.assert_allclose(found, [-1 / 4, 0, 1 / 2, 1 / 4, -1 / 2], rtol=1e-5)
    found = scores(np.array([1.0, np.nan, 3.0, np.inf, 2.0], np.float32))
    np.testing.assert_allclose(found, scipy.stats.zscore([1.0, 3.0, 3.0, 3.0, 2.0]), rtol=1e-5)


def test_memory_does_not_grow_with_the_square_of_samples():
    problem = problems.chain()

    def temporary_bytes(samples):
        estimate = jax.jit(nl.evolution_strategy(problem.objective, num_samples=samples, chunk=4).estimate)
        return estimate.lower(KEY, (), problem.params, problem.batch).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(4096) - temporary_bytes(1024) < 3072 * 200  # a few numbers a sample, for the ranking


@pytest.mark.parametrize(("sampler", "antithetic"), [(nl.directions.gaussian, True), (nl.directions.rank_one, False)])
def test_to_the_letter(antithetic, sampler, x64):
    """ĝ = Σ u_k ξ_k / (K σ), with both sides of a direction ranked among all."""
    problem, directions, sigma, count = problems.chain(), sampler(), 0.2, 5
    estimator = nl.evolution_strategy(
        problem.objective, sigma=sigma, num_samples=count, antithetic=antithetic, directions=directions, chunk=2
    )
    grads, _, info = jax.jit(estimator.estimate)(KEY, (), problem.params, problem.batch)

    sides = np.array([sigma, -sigma] if antithetic else [sigma])

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None, None))
    def reference(k, params, batch):
        xi = jax.tree.map(lambda xi: xi[0], formed(directions(KEY, k, params)))
        loss = lambda s: jnp.mean(problem.objective(jax.tree.map(lambda w, x: w + s * x, params, xi), batch))
        return xi, jax.vmap(loss)(sides)

    noise, fitness = jax.tree.map(
        np.asarray, reference(np.arange(count, dtype=np.int32), problem.params, problem.batch)
    )
    utility = np.reshape((scipy.stats.rankdata(fitness) - 1) / (fitness.size - 1) - 0.5, fitness.shape)
    weight = utility @ (np.array([0.5, -0.5]) if antithetic else np.array([1.0]))
    for leaf, xis in zip(*map(jax.tree.leaves, (grads, noise)), strict=True):
        np.testing.assert_allclose(leaf, np.tensordot(weight, xis, axes=1) / (count * sigma), rtol=1e-9)
    np.testing.assert_allclose(info.loss, fitness.mean())
    assert int(info.evaluations) == fitness.size


def test_ranks_do_not_see_the_loss_s_scale(x64):
    """exp is monotone: the same ranks, the same step; z-scores differ."""
    problem = problems.chain()

    def stretched(params, batch):  # the same mean loss for all examples, so that means keep their order
        return jnp.full(6, jnp.exp(3 * jnp.mean(problem.objective(params, batch))))

    @functools.partial(jax.jit, static_argnums=0)
    def steps(shaping, params, batch):
        make = lambda objective: nl.evolution_strategy(objective, num_samples=8, shaping=shaping)
        run = lambda objective: make(objective).estimate(KEY, (), params, batch)[0]["output"]["bias"]
        return run(stretched), run(problem.objective)

    at = problem.params, problem.batch
    np.testing.assert_allclose(*steps(nl.shaping.centred_ranks, *at), rtol=1e-12)
    assert not np.allclose(*steps(nl.shaping.z_scores, *at))


def test_points_downhill():
    problem = problems.chain()
    g = exact(problem.objective, problem.params, problem.batch)
    for shaping in (nl.shaping.centred_ranks, nl.shaping.z_scores):
        estimator = nl.evolution_strategy(problem.objective, num_samples=200, shaping=shaping, chunk=50)
        step = flat(jax.jit(estimator.estimate)(KEY, (), problem.params, problem.batch)[0])
        assert step @ g / (np.linalg.norm(step) * np.linalg.norm(g)) > 0.7


def test_bad_settings():
    objective = problems.chain().objective
    with pytest.raises(ValueError, match="num_samples must be at least 2: a single fitness has no rank"):
        nl.evolution_strategy(objective, num_samples=1)
    with pytest.raises(ValueError, match="shaping must take one argument"):
        nl.evolution_strategy(objective, shaping="ranks")
    estimator = nl.evolution_strategy(objective, directions=nl.directions.flipout())
    with pytest.raises(ValueError, match=r"directions must be shared by the batch.* flipout\(\)"):
        jax.eval_shape(estimator.estimate, KEY, (), problems.chain().params, problems.chain().batch)
    estimator = nl.evolution_strategy(objective, shaping=lambda losses: jnp.mean(losses))
    with pytest.raises(ValueError, match="shaping must return one utility per loss"):
        jax.eval_shape(estimator.estimate, KEY, (), problems.chain().params, problems.chain().batch)
