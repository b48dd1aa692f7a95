import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nl_jax as nl

KEY = jax.random.key(0)
X = np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32)
W = np.array([0.5, -1.0, 2.0], np.float32)
SIGMA, K = 0.25, 5


def objective(w, x):
    return jnp.sin(x @ w) + (x @ w) ** 2


@pytest.mark.slow
def test_it_is_the_step_of_fzoo(x64):
    """Σ (ℓ_k − ℓ_0) ξ_k / (K std(ℓ)), with the losses at W + σ ξ_k, and std that of a sample."""
    w, x = W.astype(float), X.astype(float)
    plain = nl.weight_perturbation(objective, sigma=SIGMA, num_samples=K)

    @jax.jit
    def run(w, x):
        draw = plain.sample(KEY, (), w, x)[0].directions.draw
        directions = jnp.stack([draw(KEY, jnp.int32(k)) for k in range(K)])
        return directions, nl.normalised(plain).estimate(KEY, (), w, x), plain.estimate(KEY, (), w, x)[0]

    directions, (grads, _, info), unscaled = jax.tree.map(np.asarray, run(w, x))
    loss = lambda w: np.mean(np.sin(x @ w) + (x @ w) ** 2)
    losses = np.array([loss(w + SIGMA * xi) for xi in directions])
    expected = (losses - loss(w)) @ directions / (K * losses.std(ddof=1))
    np.testing.assert_allclose(grads, expected, rtol=1e-9)
    assert int(info.evaluations) == K + 1
    assert not np.allclose(grads, unscaled, rtol=0.1)


def test_in_place_it_is_the_same_step():
    estimator = nl.normalised(nl.weight_perturbation(objective, sigma=SIGMA, num_samples=K))
    seeded, formed = nl.seeded(estimator, 0.1), nl.learner(estimator, optax.sgd(0.1))
    run = lambda w: [learner.step(KEY, learner.init(KEY, w), X)[0].params for learner in (seeded, formed)]
    ends = jax.jit(run)(W)
    np.testing.assert_allclose(*ends, rtol=1e-5)


def test_where_all_losses_are_equal_it_stays():
    flat = nl.normalised(nl.weight_perturbation(lambda w, x: 0 * x @ w, num_samples=K))
    np.testing.assert_array_equal(jax.jit(flat.estimate)(KEY, (), W, X)[0], 0)


def test_what_is_refused():
    with pytest.raises(ValueError, match="estimator must have a `sample` function"):
        nl.normalised(nl.backprop(objective))
    with pytest.raises(ValueError, match="num_samples must be at least 2"):
        jax.eval_shape(nl.normalised(nl.weight_perturbation(objective)).estimate, KEY, (), W, X)
