"""Flax linen modules in node space."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import nl_jax as nl
from tests.networks import adapted as models

KEY = jax.random.key(0)
X = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linen_convolution", "linen_transformer"])
def test_outputs_and_gradients_are_linens(name, x64, lenient):
    models.check_layers(name)
    models.check_gradients(name)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", models.NODE_SPACE[0::3])
def test_node_space_estimators_reach_the_layers(estimator, x64, lenient):
    models.check_estimator("linen_convolution", estimator)


def test_the_audit_sees_the_layers(x64, lenient):
    models.check_audit("linen_convolution")


class Normalised(linen.Module):
    """A dense layer, batch normalisation and dropout."""

    rate: float = 0.0

    @linen.compact
    def __call__(self, x, train=False):
        x = linen.BatchNorm(use_running_average=not train)(linen.Dense(3)(x))
        return linen.Dropout(self.rate, deterministic=not train)(x)


def in_training(module, x):
    return module(x, train=True)


@pytest.mark.slow
def test_batch_normalisation_by_the_batch_mixes_examples(lenient):
    model = nl.from_flax(Normalised(), call=in_training)
    params = jax.jit(model.init)(KEY, X)
    outputs = np.asarray(jax.jit(model.apply)(params, X))
    np.testing.assert_allclose(outputs.mean(axis=0), np.zeros(3), atol=1e-6)
    objective = nl.supervised(model.apply, nl.losses.cross_entropy)
    at = KEY, (), params, (X, np.zeros(5, int))
    with pytest.raises(ValueError, match="layer 'BatchNorm_0' mixes examples"):
        nl.node_perturbation(objective).estimate(*at)
    jax.eval_shape(nl.node_perturbation(objective, credit=nl.spaces.per_batch_credit()).estimate, *at)
    for run in (
        lambda: nl.normalisation.population(model.apply)(params, X[None]),
        lambda: nl.normalisation.inference(model.apply, {})(params, X),
    ):
        with pytest.raises(ValueError, match="layer 'BatchNorm_0' normalises by the batch"):
            run()


def test_collections_are_held_fixed(lenient):
    variables = jax.jit(Normalised().init)(KEY, X)
    stats = {"BatchNorm_0": {"mean": np.arange(3, dtype=np.float32), "var": np.full(3, 4, np.float32)}}
    model = nl.from_flax(Normalised(), collections={"batch_stats": stats})
    expected = Normalised().apply({"params": variables["params"], "batch_stats": stats}, X)
    outputs, axons = nl.propagation.record(model.apply)(variables["params"], X)
    np.testing.assert_allclose(outputs, expected, rtol=1e-6)
    assert list(axons) == ["Dense_0", "BatchNorm_0"]
    objective = nl.supervised(model.apply, nl.losses.cross_entropy)
    batch = X, np.zeros(5, int)
    jax.eval_shape(nl.node_perturbation(objective).estimate, KEY, (), variables["params"], batch)
    without = nl.from_flax(Normalised())
    with pytest.raises(ValueError, match="not among collections: hand them over"):
        without.apply(variables["params"], X)


class Tied(linen.Module):
    """A table used at both ends, and a layer that is called twice, once by keyword."""

    def setup(self):
        self.words, self.mix = linen.Embed(4, 3), linen.Dense(3)

    def __call__(self, words):
        return self.words.attend(self.mix(jnp.tanh(self.mix(inputs=self.words(words)))))


def test_a_layer_called_again_and_a_shared_table(lenient):
    words = jnp.array([[0, 3], [2, 1]])
    model = nl.from_flax(Tied())
    params = jax.jit(model.init)(KEY, words)
    outputs, axons = nl.propagation.record(model.apply)(params, words)
    assert list(axons) == ["words", "mix", "mix_2", "words.attend"]
    np.testing.assert_allclose(outputs, Tied().apply({"params": params}, words), rtol=1e-6)


def test_a_layer_alone_is_named_by_its_class(lenient):
    model = nl.from_flax(linen.Dense(2))
    assert list(nl.propagation.record(model.apply)(jax.jit(model.init)(KEY, X), X)[1]) == ["Dense"]


@pytest.mark.slow
def test_a_layer_without_the_batch_is_not_propagated_but_learns(lenient):
    """No noise is put into a table of places; the layers above teach it."""

    class Placed(linen.Module):
        @linen.compact
        def __call__(self, x):
            places = linen.Embed(3, 1, name="places")(jnp.arange(3))
            return linen.Dense(2)(x + places[None, :, 0])

    model, x = nl.from_flax(Placed()), X[:3]  # as many examples as places
    params = jax.jit(model.init)(KEY, x)
    assert list(nl.propagation.record(model.apply)(params, x)[1]) == ["Dense_0"]
    objective = nl.supervised(model.apply, nl.losses.cross_entropy)
    grads, *_ = jax.jit(nl.node_perturbation(objective).estimate)(KEY, (), params, (x, np.arange(3) % 2))
    assert np.all(np.asarray(grads["places"]["embedding"]) != 0)


def test_refuses_random_numbers_and_state(lenient):
    model = nl.from_flax(Normalised(rate=0.5), call=in_training)
    params = jax.jit(nl.from_flax(Normalised()).init)(KEY, X)
    with pytest.raises(ValueError, match=r"Normalised draws random numbers.*deterministic=True"):
        model.apply(params, X)

    class Counting(linen.Module):
        @linen.compact
        def __call__(self, x):
            count = self.variable("counts", "calls", jnp.zeros, ())
            count.value += 1
            return linen.Dense(2)(x)

    variables = jax.jit(Counting().init)(KEY, X)
    counting = nl.from_flax(Counting(), collections={"counts": variables["counts"]})
    with pytest.raises(ValueError, match="Counting changes variables beside its parameters"):
        counting.apply(variables["params"], X)


def test_refuses_what_is_no_module():
    for wrong, shown in ((linen.Dense, "the class Dense"), (len, "built-in function len")):
        with pytest.raises(ValueError, match=rf"module must be an instance of .*{shown}.*nl\.from_equinox"):
            nl.from_flax(wrong)
    bound = linen.Dense(2).bind(linen.Dense(2).init(KEY, X))
    with pytest.raises(ValueError, match="module Dense is bound to variables"):
        nl.from_flax(bound)
    with pytest.raises(ValueError, match="collections must not hold 'params'"):
        nl.from_flax(linen.Dense(2), collections={"params": {}})
    with pytest.raises(ValueError, match=r"collections must be left out for an NNX module.*got batch_stats"):
        nl.from_flax(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), collections={"batch_stats": {}})
    with pytest.raises(ValueError, match="call must take 2 arguments"):
        nl.from_flax(linen.Dense(2), call=lambda x: x)
    with pytest.raises(ValueError, match=r"key must be a typed key made by jax\.random\.key"):
        nl.from_flax(linen.Dense(2)).init(0, X)


def test_rules_that_see_products_say_that_they_cannot(lenient):
    model = nl.from_flax(linen.Sequential([linen.Dense(2)]))
    params = jax.jit(model.init)(KEY, X)
    learning = nl.local_learning(model.apply, nl.rules.oja())
    with pytest.raises(ValueError, match=r"layer 'layers_0'.*its products are computed by Flax or Equinox"):
        learning.estimate(KEY, learning.init(KEY, params), params, X)


def test_refuses_a_module_without_layers(lenient):
    class Scale(linen.Module):
        @linen.compact
        def __call__(self, x):
            return x * self.param("scale", linen.initializers.ones, (3,))

    model = nl.from_flax(Scale())
    with pytest.raises(ValueError, match="model Scale has no layer that can be reached"):
        model.apply(jax.jit(model.init)(KEY, X), X)


def test_a_layer_inside_a_transformation_is_refused(lenient):
    class Remat(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.remat(linen.Dense)(2)(x)

    model = nl.from_flax(Remat())
    params = jax.jit(model.init)(KEY, X)
    np.testing.assert_allclose(model.apply(params, X), Remat().apply({"params": params}, X))
    with pytest.raises(ValueError, match=r"inside a jax\.vmap, lax\.scan or other transformation"):
        nl.propagation.record(model.apply)(params, X)


def test_flax_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "flax", None)
    with pytest.raises(ImportError, match="from_flax needs flax: pip install flax"):
        nl.from_flax(None)
