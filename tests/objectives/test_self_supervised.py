import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nl_jax as nl

KEY = jax.random.key(0)


@pytest.mark.slow
def test_reconstruction_is_supervision_by_the_input():
    network = nl.mlp([3, 2, 3], activation=nl.activations.tanh())
    params, x = network.init(KEY), jax.random.normal(jax.random.key(1), (4, 3))
    losses = nl.objectives.reconstruction(network.apply, nl.losses.half_squared_error)(params, x)
    np.testing.assert_allclose(losses, ((network.apply(params, x) - x) ** 2).sum(axis=1) / 2, rtol=1e-6)
    with pytest.raises(ValueError, match="loss must return one value per example"):
        nl.objectives.reconstruction(network.apply, lambda y, x: jnp.mean(y - x))(params, x)


def test_denoising_compares_with_the_clean():
    objective = nl.objectives.denoising(lambda w, x: w * x, nl.losses.half_squared_error)
    corrupted, clean = jnp.array([[1.0, 0.0]]), jnp.array([[1.0, 3.0]])
    np.testing.assert_allclose(objective(jnp.float32(2.0), (corrupted, clean)), [0.5 + 4.5])


def test_masking_noise():
    corrupted, clean = nl.objectives.masking_noise(0.3)(KEY, jnp.full((400, 50), 2.0))
    assert set(np.unique(corrupted)) == {0, 2}
    assert (clean == 2).all()
    lost = float((corrupted == 0).mean())
    error = (0.3 * 0.7 / corrupted.size) ** 0.5
    assert abs(lost - 0.3) < 5 * error < abs(lost - 0.33)


def test_gaussian_noise():
    corrupted, clean = nl.objectives.gaussian_noise(0.5)(KEY, jnp.full((400, 50), 2.0))
    assert (clean == 2).all()
    np.testing.assert_allclose([corrupted.mean(), corrupted.std()], [2, 0.5], rtol=0.02)
    of_images = nl.objectives.gaussian_noise(0.5)(KEY, jnp.full((400, 50), 2, jnp.uint8))
    np.testing.assert_array_equal(of_images, (corrupted, clean))


@pytest.mark.parametrize("fraction", [0, 1.0, True, "0.5"])
def test_fraction_is_checked(fraction):
    with pytest.raises(ValueError, match="fraction must be above 0 and below 1"):
        nl.objectives.masking_noise(fraction)


@pytest.mark.slow
@pytest.mark.usefixtures("lenient")
def test_digits_are_restored(digits):
    """A linear autoencoder learns, by noise that is new at every step, to make of masked digits whole ones."""
    images, _ = digits
    network = nl.mlp([64, 16, 64], activation=nl.activations.identity())
    objective = nl.objectives.denoising(network.apply, nl.losses.half_squared_error)
    estimator = nl.augment_batches(nl.backprop(objective), nl.objectives.masking_noise(0.3))
    learner = nl.learner(estimator, optax.adam(3e-3))
    state = learner.init(KEY, network.init(KEY))
    state, history = nl.fit(learner, KEY, state, images, num_steps=200, batch_size=50, progress=False)
    corrupted, clean = nl.objectives.masking_noise(0.3)(jax.random.key(9), images)
    restored = objective(state.params, (corrupted, clean)).mean()
    untouched = nl.losses.half_squared_error(corrupted, clean).mean()
    assert restored < 0.6 * untouched < 0.6 * history.loss[0]
