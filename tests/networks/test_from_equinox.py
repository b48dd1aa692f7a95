"""Equinox models in node space."""

import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import nl_jax as nl
from tests.networks import adapted as models

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)
X = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)


@pytest.mark.parametrize("name", ["equinox_convolution", "equinox_transformer"])
def test_outputs_and_gradients_are_equinoxs(name, x64, lenient):
    models.check_layers(name)
    models.check_gradients(name)


@pytest.mark.parametrize("estimator", models.NODE_SPACE[2::3])
def test_node_space_estimators_reach_the_layers(estimator, x64, lenient):
    models.check_estimator("equinox_convolution", estimator)


def test_the_audit_sees_the_layers(x64, lenient):
    models.check_audit("equinox_convolution")


def names(model, inputs):
    found = []
    jax.eval_shape(lambda *at: found.extend(nl.propagation.record(model.apply)(*at)[1]), model.params, inputs)
    return found


class Placed(eqx.Module):
    """Words and their places, mixed twice by one layer under a vmap over places: 2 places of 2 units each."""

    words: eqx.nn.Embedding
    places: eqx.nn.Embedding
    mix: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.words, self.places = eqx.nn.Embedding(3, 2, key=keys[0]), eqx.nn.Embedding(2, 2, key=keys[1])
        self.mix = eqx.nn.Linear(2, 2, key=keys[2])

    def __call__(self, words):
        x = jax.vmap(self.words)(words) + jax.vmap(self.places)(jnp.arange(2))
        return jax.vmap(self.mix)(jnp.tanh(jax.vmap(self.mix)(x))).sum(axis=0)


def test_node_perturbation_has_the_gradient_for_its_mean(x64, lenient):
    """Through a vmap of the model's own, an input that all examples share, and a layer that is called twice."""
    model = nl.from_equinox(eqx.filter_jit(Placed)(KEY))
    words = np.array([[0, 1], [2, 1], [1, 0]])
    assert names(model, words) == ["words", "places", "mix", "mix_2"]
    objective, batch = nl.supervised(model.apply, nl.losses.cross_entropy), (words, np.arange(3) % 2)
    estimator = nl.node_perturbation(objective, num_samples=4, directions=nl.directions.rademacher())

    @jax.jit
    def errors(keys):
        grads = jax.grad(lambda params: jnp.mean(objective(params, batch)))(model.params)
        each = jax.vmap(lambda key: estimator.estimate(key, (), model.params, batch)[0])(keys)
        return ravel_pytree(grads)[0], jax.vmap(lambda g: ravel_pytree(g)[0])(each)

    gradient, found = map(np.asarray, errors(jax.random.split(KEY, 4000)))

    def deviation(found):
        """⟨ĝ, g⟩/‖g‖² from 1, in standard errors, and the largest of all parameters'."""
        length = found @ gradient / np.sum(gradient**2)
        error = np.std(found, axis=0) / len(found) ** 0.5
        standardised = (np.mean(found, axis=0) - gradient)[error > 0] / error[error > 0]
        of_length = abs(np.mean(length) - 1) / (np.std(length) / len(found) ** 0.5)
        return max(of_length, np.max(np.abs(standardised)))

    assert deviation(found) < 4
    assert deviation(1.2 * found) > 5  # a twin too long


def test_other_layers_of_a_model_run_as_they_are(lenient):
    """Weight normalisation, a shared table and attributes read from outside: layers keep theirs."""

    class Model(eqx.Module):
        normed: eqx.nn.WeightNorm
        shared: eqx.nn.Shared

        def __init__(self, key):
            keys = jax.random.split(key, 3)
            self.normed = eqx.nn.WeightNorm(eqx.nn.Linear(3, 3, key=keys[0]))
            pair = eqx.nn.Linear(3, 3, use_bias=False, key=keys[1]), eqx.nn.Linear(3, 3, key=keys[2])
            self.shared = eqx.nn.Shared(pair, where=lambda pair: pair[1].weight, get=lambda pair: pair[0].weight)

        def __call__(self, x):
            first, second = self.shared()
            assert first.out_features == 3
            return second(jnp.tanh(first(self.normed(x)))) + first.weight[0]

    module = Model(KEY)
    model = nl.from_equinox(module)
    assert names(model, X) == ["normed.layer", "shared.pytree.0", "shared.pytree.1"]
    np.testing.assert_allclose(model.apply(model.params, X), jax.vmap(module)(X), rtol=1e-6)


def test_layers_stacked_by_a_vmap_are_one_layer(lenient):
    class Heads(eqx.Module):
        heads: eqx.nn.Linear

        def __init__(self, key):
            self.heads = eqx.filter_vmap(lambda key: eqx.nn.Linear(3, 2, key=key))(jax.random.split(key, 4))

        def __call__(self, x):
            return eqx.filter_vmap(lambda head, x: head(x), in_axes=(eqx.if_array(0), None))(self.heads, x)

    module = Heads(KEY)
    model = nl.from_equinox(module)
    outputs, axons = nl.propagation.record(model.apply)(model.params, X)
    np.testing.assert_allclose(outputs, jax.vmap(module)(X), rtol=1e-6)
    assert {name: layer.shape for name, layer in axons.items()} == {"heads": (5, 4, 2)}


def test_batch_normalisation_with_its_own_statistics(lenient):
    class Model(eqx.Module):
        layers: eqx.nn.Sequential

        def __call__(self, x, state):
            return self.layers(x, state)

    @eqx.nn.make_with_state
    def made(key):
        keys = jax.random.split(key, 2)
        norm = eqx.nn.BatchNorm(3, axis_name="batch", mode="batch")
        parts = [eqx.nn.Linear(3, 3, key=keys[0]), norm, eqx.nn.LayerNorm(3), eqx.nn.Linear(3, 2, key=keys[1])]
        return Model(eqx.nn.Sequential(parts))

    module, state = made(KEY)
    with pytest.raises(ValueError, match=r"BatchNorm 'layers\.layers\.1' in training mode.*inference_mode"):
        nl.from_equinox(module)
    module = eqx.nn.inference_mode(module)
    model = nl.from_equinox(module, call=lambda model, x: model(x, state)[0])
    assert names(model, X) == ["layers.layers.0", "layers.layers.2", "layers.layers.3"]
    expected = jax.vmap(lambda x: module(x, state)[0])(X)
    np.testing.assert_allclose(model.apply(model.params, X), expected, rtol=1e-5, atol=1e-6)


def test_merge_is_the_inverse_of_the_split(lenient):
    module = eqx.nn.Linear(3, 2, key=KEY)
    model = nl.from_equinox(module)
    doubled = model.merge(jax.tree.map(lambda leaf: 2 * leaf, model.params))
    np.testing.assert_allclose(jax.vmap(doubled)(X), 2 * jax.vmap(module)(X), rtol=1e-6)
    assert names(model, X) == ["Linear"]


def test_refuses_what_cannot_be_a_program(lenient):
    with pytest.raises(ValueError, match=r"model must be an equinox\.Module, got .*nl\.from_flax"):
        nl.from_equinox(eqx.nn.Linear)
    with pytest.raises(ValueError, match=r"model has Dropout 'layers\.1' in training mode.*eqx\.nn\.inference_mode"):
        nl.from_equinox(eqx.nn.Sequential([eqx.nn.Linear(3, 2, key=KEY), eqx.nn.Dropout(0.5)]))
    with pytest.raises(ValueError, match="call must take 2 arguments"):
        nl.from_equinox(eqx.nn.Linear(3, 2, key=KEY), call=lambda x: x)
    pool = nl.from_equinox(eqx.nn.Lambda(jnp.tanh))
    with pytest.raises(ValueError, match="model Lambda has no layer that can be reached"):
        pool.apply(pool.params, X)
    linear = nl.from_equinox(eqx.nn.Linear(3, 2, key=KEY))
    with pytest.raises(ValueError, match=r"inputs must be arrays with the batch as their first axis, got 1\.0"):
        linear.apply(linear.params, 1.0)


def test_a_layer_inside_a_transformation_is_refused(lenient):
    class Repeated(eqx.Module):
        layer: eqx.nn.Linear

        def __call__(self, x):
            return jax.lax.scan(lambda x, _: (self.layer(x), None), x, None, length=2)[0]

    module = Repeated(eqx.nn.Linear(3, 3, key=KEY))
    model = nl.from_equinox(module)
    np.testing.assert_allclose(model.apply(model.params, X), jax.vmap(module)(X), rtol=1e-6)
    with pytest.raises(ValueError, match=r"inside a jax\.vmap, lax\.scan or other transformation"):
        names(model, X)


def test_equinox_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "equinox", None)
    with pytest.raises(ImportError, match="from_equinox needs equinox: pip install equinox"):
        nl.from_equinox(None)
