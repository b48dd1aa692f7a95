"""Models of other libraries learn by the estimators that need no layers, with nothing wrapped around them."""

import equinox as eqx
import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nl_jax as nl

KEY = jax.random.key(0)
IMAGES = jax.random.normal(KEY, (32, 8))
LABELS = jnp.argmax(IMAGES[:, :3], axis=1)


def flax_model():
    class Model(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dense(3)(jnp.tanh(linen.Dense(16)(x)))

    model = Model()
    return model.apply, model.init(KEY, IMAGES)


def equinox_model():
    params, static = eqx.partition(eqx.nn.MLP(8, 3, 16, 1, activation=jnp.tanh, key=KEY), eqx.is_array)
    return lambda params, x: jax.vmap(eqx.combine(params, static))(x), params


signs = nl.directions.rademacher()
ESTIMATORS = {
    "backprop": nl.backprop,
    "weight_perturbation": lambda objective: nl.weight_perturbation(objective, num_samples=64, directions=signs),
    "forward_gradient": lambda objective: nl.forward_gradient(objective, num_samples=64, directions=signs),
}


@pytest.mark.slow
@pytest.mark.parametrize("model", [flax_model, equinox_model])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_learns(model, name, lenient):
    apply, params = model()
    objective = nl.supervised(apply, nl.losses.cross_entropy)
    learner = nl.learner(ESTIMATORS[name](objective), optax.adam(3e-2))
    state = learner.init(KEY, params)
    state, history = nl.fit(learner, KEY, state, (IMAGES, LABELS), num_steps=60, progress=False)
    assert jax.tree.structure(state.params) == jax.tree.structure(params)
    assert history.loss[-1] < 0.5 * history.loss[0]
    assert np.mean(np.argmax(apply(state.params, IMAGES), axis=1) == LABELS) > 0.8


@pytest.mark.parametrize("model", [flax_model, equinox_model])
@pytest.mark.parametrize("make", [nl.node_perturbation, nl.lagrangian_backprop, nl.backprop_recursion])
def test_layers_cannot_be_reached(model, make, lenient):
    apply, _ = model()
    with pytest.raises(
        ValueError,
        match=r"needs to reach the layers .* takes no argument `propagate`.*nl\.from_flax and nl\.from_equinox",
    ):
        make(nl.supervised(apply, nl.losses.cross_entropy))
