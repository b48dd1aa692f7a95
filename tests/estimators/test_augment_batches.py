import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nl_jax as nl

KEY = jax.random.key(0)


@pytest.mark.slow
def test_each_estimate_sees_noise_of_its_own_and_all_its_evaluations_the_same():
    objective = lambda w, batch: w * batch
    augment = lambda key, batch: batch + jax.random.normal(key, batch.shape)
    estimator = nl.augment_batches(nl.weight_perturbation(objective, directions=nl.directions.rademacher()), augment)
    one, _, first = estimator.estimate(KEY, (), jnp.float32(1.0), jnp.ones(4))
    _, _, again = estimator.estimate(KEY, (), jnp.float32(1.0), jnp.ones(4))
    _, _, other = estimator.estimate(jax.random.key(1), (), jnp.float32(1.0), jnp.ones(4))
    assert first.loss == again.loss != other.loss
    np.testing.assert_allclose(one, first.loss, rtol=1e-3)  # the slope of a line through 0, had both ends one batch


def test_its_noise_is_not_the_estimators():
    """One key, two uses: the estimator must not draw what the batch was made with."""
    keys = []
    inner = nl.GradientEstimator(lambda key, params: (), lambda key, state, params, batch: keys.append(key))
    nl.augment_batches(inner, lambda key, batch: keys.append(key)).estimate(KEY, (), None, None)
    assert len({jax.random.key_data(key).tobytes() for key in [KEY, *keys]}) == 3


def test_what_it_is_given_is_checked():
    with pytest.raises(ValueError, match="augment must take 2 arguments"):
        nl.augment_batches(nl.backprop(lambda w, batch: w * batch), lambda batch: batch)
    with pytest.raises(ValueError, match=r"typed key made by jax\.random\.key"):
        nl.augment_batches(nl.backprop(lambda w, batch: w * batch), lambda key, batch: batch).estimate(
            jnp.zeros(2, jnp.uint32), (), jnp.float32(1.0), jnp.ones(4)
        )
