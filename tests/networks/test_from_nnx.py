"""Flax NNX models in node space."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import nl_jax as nl
from tests.networks import adapted as models

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (5, 3))


# nnx's attention is JAX's own, which computes its logits in float32, in whatever precision the model is.
@pytest.mark.parametrize(("name", "rtol"), [("nnx_convolution", 1e-10), ("nnx_transformer", 1e-6)])
def test_outputs_and_gradients_are_nnxs(name, rtol, x64, lenient):
    models.check_layers(name)
    models.check_gradients(name, rtol)


@pytest.mark.parametrize("estimator", models.NODE_SPACE[1::3])
def test_node_space_estimators_reach_the_layers(estimator, x64, lenient):
    models.check_estimator("nnx_convolution", estimator)


def test_the_audit_sees_the_layers(x64, lenient):
    models.check_audit("nnx_convolution")


class Normalised(nnx.Module):
    """A dense layer and batch normalisation, then whatever is put on top."""

    def __init__(self, *top):
        rngs = nnx.Rngs(0)
        self.dense, self.norm = nnx.Linear(3, 3, rngs=rngs), nnx.BatchNorm(3, rngs=rngs)
        self.top = nnx.List(top)

    def __call__(self, x):
        x = self.norm(self.dense(x))
        for layer in self.top:
            x = layer(x)
        return x


def test_batch_normalisation_by_the_batch_mixes_examples(lenient):
    module = Normalised()
    model = nl.from_flax(module)
    np.testing.assert_allclose(model.apply(model.params, X).mean(axis=0), jnp.zeros(3), atol=1e-6)
    assert not module.norm.mean.any()  # the running averages are as they were
    objective = nl.supervised(model.apply, nl.losses.cross_entropy)
    at = KEY, (), model.params, (X, jnp.zeros(5, int))
    with pytest.raises(ValueError, match="layer 'norm' mixes examples"):
        nl.node_perturbation(objective).estimate(*at)
    jax.eval_shape(nl.node_perturbation(objective, credit=nl.spaces.per_batch_credit()).estimate, *at)
    with pytest.raises(ValueError, match="layer 'norm' normalises by the batch"):
        nl.normalisation.population(model.apply)(model.params, X[None])

    trained = model.merge(model.params)
    trained.train()
    trained(X)  # as docs/networks.md gathers the averages
    assert trained.norm.mean.any()
    assert not module.norm.mean.any()

    module.norm.mean[...], module.norm.var[...] = jnp.arange(3.0), jnp.full(3, 4.0)
    fixed = nl.from_flax(module, call=lambda module, x: module.norm(module.dense(x), use_running_average=True))
    expected = (module.dense(X) - jnp.arange(3.0)) / jnp.sqrt(4 + 1e-5)
    np.testing.assert_allclose(fixed.apply(fixed.params, X), expected, atol=1e-6)
    jax.eval_shape(nl.node_perturbation(nl.supervised(fixed.apply, nl.losses.cross_entropy)).estimate, *at)


def test_a_layer_called_again_and_a_shared_table(lenient):
    class Tied(nnx.Module):
        def __init__(self, rngs):
            self.words, self.mix = nnx.Embed(4, 3, rngs=rngs), nnx.Linear(3, 3, rngs=rngs)
            self.again = self.mix

        def __call__(self, words):
            return self.words.attend(self.again(jnp.tanh(self.mix(inputs=self.words(words)))))

    module, words = Tied(nnx.Rngs(0)), jnp.array([[0, 3], [2, 1]])
    model = nl.from_flax(module)
    outputs, axons = nl.propagation.record(model.apply)(model.params, words)
    assert list(axons) == ["words", "again", "again_2", "words.attend"]
    np.testing.assert_allclose(outputs, module(words), rtol=1e-6)

    def objective(params, words, propagate=nl.propagation.feedforward):
        return jnp.sum(jnp.sin(model.apply(params, words, propagate)), axis=(1, 2))

    expected = jax.grad(lambda params: jnp.mean(objective(params, words)))(model.params)
    grads, *_ = nl.backprop_recursion(objective).estimate(KEY, (), model.params, words)
    chex.assert_trees_all_close(grads, expected, rtol=1e-5)


def test_a_mask_is_an_array_that_is_no_variable():
    """NNX keeps it as it is, and it never changes."""
    layer = nnx.Conv(2, 3, (2, 2), mask=jnp.zeros((2, 2, 2, 3)).at[0].set(1), rngs=nnx.Rngs(0))
    model, x = nl.from_flax(layer), jnp.ones((2, 4, 4, 2))
    np.testing.assert_allclose(model.apply(model.params, x), layer(x), atol=1e-6)


def test_merge_is_the_inverse_of_the_split(lenient):
    module = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    model = nl.from_flax(module)
    doubled = model.merge(jax.tree.map(lambda leaf: 2 * leaf, model.params))
    np.testing.assert_allclose(doubled(X), 2 * module(X), rtol=1e-6)
    assert list(nl.propagation.record(model.apply)(model.params, X)[1]) == ["Linear"]
    before = module(X)
    module.bias[...] += 1
    np.testing.assert_array_equal(model.apply(model.params, X), before)  # a copy


def test_refuses_random_numbers_and_state(lenient):
    module = Normalised(nnx.Dropout(0.5, rngs=nnx.Rngs(1)))
    model = nl.from_flax(module)
    with pytest.raises(ValueError, match=r"changes its RngCount 'top\.0\.rngs\.count'.*model\.eval\(\)"):
        jax.jit(model.apply)(model.params, X)
    module.eval()
    still = nl.from_flax(module)
    np.testing.assert_allclose(jax.jit(still.apply)(still.params, X), module(X), rtol=1e-6)
