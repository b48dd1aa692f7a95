"""Evolution strategies: shaped fitness, summed to the letter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import nl_jax as nl
from tests import problems
from tests.formed import formed

KEY = jax.random.key(2)


def test_ranks_and_scores():
    losses = jnp.array([3.0, 1.0, 3.0, 10.0, -2.0])
    np.testing.assert_allclose(nl.shaping.centred_ranks(losses), (scipy.stats.rankdata(losses) - 1) / 4 - 0.5)
    np.testing.assert_allclose(nl.shaping.z_scores(losses), scipy.stats.zscore(losses), rtol=1e-5)
    for equal in (jnp.ones(4), jnp.full(7, 0.1), jnp.full(32, 0.1)):
        np.testing.assert_array_equal(nl.shaping.z_scores(equal), 0 * equal)


def test_what_is_not_finite_is_worst():
    ranks = nl.shaping.centred_ranks(jnp.array([1.0, 2.0, jnp.nan, 3.0]))
    np.testing.assert_allclose(ranks, [-1 / 2, -1 / 6, 1 / 2, 1 / 6], rtol=1e-5)
    scores = nl.shaping.z_scores(jnp.array([1.0, jnp.nan, 3.0, jnp.inf]))
    np.testing.assert_allclose(scores, scipy.stats.zscore([1.0, 3.0, 3.0, 3.0]), rtol=1e-5)


def test_memory_does_not_grow_with_the_square_of_samples():
    problem = problems.chain()

    def temporary_bytes(samples):
        estimate = jax.jit(nl.evolution_strategy(problem.objective, num_samples=samples, chunk=4).estimate)
        return estimate.lower(KEY, (), problem.params, problem.batch).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(4096) - temporary_bytes(1024) < 3072 * 200  # a few numbers a sample, for the ranking


@pytest.mark.parametrize("antithetic", [True, False])
@pytest.mark.parametrize("sampler", [nl.directions.gaussian, nl.directions.rank_one])
def test_to_the_letter(antithetic, sampler, x64):
    """ĝ = Σ u_k ξ_k / (K σ), with both sides of a direction ranked among all."""
    problem, directions, sigma, count = problems.chain(), sampler(), 0.2, 5
    estimator = nl.evolution_strategy(
        problem.objective, sigma=sigma, num_samples=count, antithetic=antithetic, directions=directions, chunk=2
    )
    grads, _, info = jax.jit(estimator.estimate)(KEY, (), problem.params, problem.batch)

    noise = [jax.tree.map(lambda xi: xi[0], formed(directions(KEY, k, problem.params))) for k in range(count)]
    loss = lambda xi, s: jnp.mean(
        problem.objective(jax.tree.map(lambda w, x: w + s * x, problem.params, xi), problem.batch)
    )
    sides = (sigma, -sigma) if antithetic else (sigma,)
    fitness = np.array([[loss(xi, s) for s in sides] for xi in noise])
    utility = np.reshape((scipy.stats.rankdata(fitness) - 1) / (fitness.size - 1) - 0.5, fitness.shape)
    weight = utility @ (np.array([0.5, -0.5]) if antithetic else np.array([1.0]))
    for leaf, *xis in zip(*map(jax.tree.leaves, (grads, *noise)), strict=True):
        total = sum(w * x for w, x in zip(weight, xis, strict=True))
        np.testing.assert_allclose(leaf, total / (count * sigma), rtol=1e-9)
    np.testing.assert_allclose(info.loss, fitness.mean())
    assert int(info.evaluations) == fitness.size


def test_ranks_do_not_see_the_loss_s_scale(x64):
    """exp is monotone: the same ranks, the same step; z-scores differ."""
    problem = problems.chain()

    def stretched(params, batch):  # the same mean loss for all examples, so that means keep their order
        return jnp.full(6, jnp.exp(3 * jnp.mean(problem.objective(params, batch))))

    def step(objective, shaping):
        estimator = nl.evolution_strategy(objective, num_samples=8, shaping=shaping)
        return estimator.estimate(KEY, (), problem.params, problem.batch)[0]["output"]["bias"]

    ranks, scores = nl.shaping.centred_ranks, nl.shaping.z_scores
    np.testing.assert_allclose(step(stretched, ranks), step(problem.objective, ranks), rtol=1e-12)
    assert not np.allclose(step(stretched, scores), step(problem.objective, scores))


def test_points_downhill():
    problem = problems.chain()
    g = nl.backprop(problem.objective).estimate(KEY, (), problem.params, problem.batch)[0]
    for shaping in (nl.shaping.centred_ranks, nl.shaping.z_scores):
        estimator = nl.evolution_strategy(problem.objective, num_samples=200, shaping=shaping, chunk=50)
        step = jax.jit(estimator.estimate)(KEY, (), problem.params, problem.batch)[0]
        assert nl.diagnostics.cosine(step, g) > 0.7


def test_bad_settings():
    objective = problems.chain().objective
    with pytest.raises(ValueError, match="num_samples must be at least 2: a single fitness has no rank"):
        nl.evolution_strategy(objective, num_samples=1)
    with pytest.raises(ValueError, match="shaping must take one argument"):
        nl.evolution_strategy(objective, shaping="ranks")
    estimator = nl.evolution_strategy(objective, directions=nl.directions.flipout())
    with pytest.raises(ValueError, match=r"directions must be shared by the batch.* flipout\(\)"):
        estimator.estimate(KEY, (), problems.chain().params, problems.chain().batch)
    estimator = nl.evolution_strategy(objective, shaping=lambda losses: jnp.mean(losses))
    with pytest.raises(ValueError, match="shaping must return one utility per loss"):
        estimator.estimate(KEY, (), problems.chain().params, problems.chain().batch)
