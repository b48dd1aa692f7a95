"""Batch normalisation, in training and in inference."""

import functools

import chex
import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nl_jax as nl
from nl_jax.networks.normalisation import BatchNormalised, Moments, batch_normalised, inference, population
from tests import problems

KEY = jax.random.key(0)
c = nl.connections


def linear(params, x):
    return x @ params["weight"]


def normalised(z, gamma, beta, epsilon):
    """Seed 001 §5, to the letter."""
    mean = z.sum(axis=0) / len(z)
    variance = ((z - mean) ** 2).sum(axis=0) / len(z)
    return gamma * (z - mean) / np.sqrt(variance + epsilon) + beta


def test_is_the_seeds_formula_for_a_sum_of_connections(x64):
    problem = problems.batch_normed()
    x = np.asarray(problem.batch[0])
    low, high, output = (jax.tree.map(np.asarray, problem.params[name]) for name in ("low", "high", "output"))
    h = np.tanh(normalised(x @ low["weight"], low["gamma"], low["beta"], 1e-5))
    z = h @ high["low"]["weight"] + x @ high["input"]["weight"] + high["input"]["bias"]
    h = 1 / (1 + np.exp(-normalised(z, high["gamma"], high["beta"], 0.1)))
    expected = h @ output["weight"] + output["bias"]
    np.testing.assert_allclose(jax.jit(problem.forward)(problem.params, problem.batch[0]), expected, rtol=1e-12)


def test_written_by_hand_it_is_the_layer(x64):
    network = nl.network(nl.Layer("input", 3), nl.batch_norm(nl.Layer("output", 2, c.dense(bias=False))))

    @jax.jit
    def both(x):
        params = network.init(KEY, jnp.float64)
        doubled = params["output"] | {"gamma": 2 * jnp.ones(2)}
        run = nl.propagation.feedforward("output", batch_normalised(linear), lambda nu: nu, doubled, x)
        return run, network.apply(params, x)

    by_hand, layer = both(np.random.default_rng(0).normal(size=(5, 3)))
    np.testing.assert_allclose(by_hand, 2 * layer, rtol=1e-14)
    np.testing.assert_allclose(by_hand.mean(axis=0), 0, atol=1e-14)


def test_propagate_is_given_the_connection_itself():
    problem = problems.batch_normed()
    seen = {}

    def propagate(name, connection, activation, params, /, *inputs):
        seen[name] = connection
        return nl.propagation.feedforward(name, connection, activation, params, *inputs)

    jax.eval_shape(functools.partial(problem.forward, propagate=propagate), problem.params, problem.batch[0])
    assert [isinstance(connection, BatchNormalised) for connection in seen.values()] == [True, True, False]
    assert seen["high"].epsilon == 0.1
    assert seen["low"].mixes_examples
    assert not hasattr(seen["output"], "mixes_examples")


@pytest.mark.parametrize("make", [nl.backprop_recursion, nl.lagrangian_backprop])
def test_exact_estimators_are_exact(make, x64):
    problem = problems.batch_normed()
    grads, _, _ = jax.jit(make(problem.objective).estimate)(KEY, (), problem.params, problem.batch)
    expected = jax.jit(jax.grad(lambda p: jnp.mean(problem.objective(p, problem.batch))))(problem.params)
    chex.assert_trees_all_close(grads, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [1e-14, 0.5])
def test_the_weights_scale_does_not_matter(epsilon, x64):
    """z̃(a W) = z̃(W) but for ε: unit by unit, Σ_i W_iq ∂L/∂W_iq = γ_q ∂L/∂γ_q ε/(σ_q² + ε)."""
    network = nl.network(
        nl.Layer("input", 3),
        nl.batch_norm(nl.Layer("hidden", 4, c.dense(bias=False), nl.activations.tanh()), epsilon=epsilon),
        nl.Layer("output", 2, c.dense(bias=False)),
    )
    objective = nl.supervised(network.apply, nl.losses.cross_entropy)
    params = jax.jit(network.init, static_argnums=1)(KEY, jnp.float64)
    x = np.random.default_rng(1).normal(size=(6, 3))
    grads, _, _ = jax.jit(nl.backprop(objective).estimate)(KEY, (), params, (x, np.arange(6) % 2))
    radial = jax.tree.map(lambda w, g: np.sum(np.asarray(w) * g, axis=0), params, grads)
    variance = np.var(np.asarray(x) @ params["hidden"]["weight"], axis=0)
    along_gamma = grads["hidden"]["gamma"] * params["hidden"]["gamma"]
    np.testing.assert_allclose(radial["hidden"]["weight"], along_gamma * epsilon / (variance + epsilon), atol=1e-13)
    assert np.abs(along_gamma).min() > 1e-3
    assert np.abs(radial["output"]["weight"]).min() > 1e-3  # the twin: a layer that is not normalised


def test_half_precision_is_summed_in_float32():
    """Far from zero bfloat16 knows 8 bits: a variance summed in it would be noise."""
    z = (np.random.default_rng(0).normal(size=(4096, 1)) + 3).astype(jnp.bfloat16)
    params = {"gamma": np.ones(1, jnp.bfloat16), "beta": np.zeros(1, jnp.bfloat16)}
    connection = batch_normalised(lambda params, z: z)
    scaled, moments = jax.jit(lambda *at: (connection(*at), connection.unbiased_moments(*at)))(params, z)
    assert scaled.dtype == jnp.bfloat16
    exact = np.asarray(z, np.float64)
    np.testing.assert_allclose(
        np.asarray(scaled, np.float64), (exact - exact.mean()) / exact.std(), atol=0.01, rtol=0.01
    )
    assert moments.mean.dtype == moments.variance.dtype == jnp.float32
    np.testing.assert_allclose(moments, [[exact.mean()], [exact.var(ddof=1)]], rtol=1e-4)


def test_images_by_channel_are_flaxs(lenient):
    """flax.linen.BatchNorm in training, and in inference with the population's statistics."""
    image = nl.Layer("image", (4, 4, 2))
    features = nl.Layer("features", (3, 3, 3), c.conv(2, bias=False))
    network = nl.network(image, nl.batch_norm(features, epsilon=1e-3))
    params = jax.jit(network.init)(KEY)
    x = (2 * np.random.default_rng(1).normal(size=(5, 4, 4, 2)) + 1).astype(np.float32)
    params["features"] |= {"gamma": np.float32([0.5, 1.0, 2.0]), "beta": np.float32([1.0, 0.0, -1.0])}
    z = jax.jit(nl.network(image, features).apply)({"features": {"weight": params["features"]["weight"]}}, x)
    own = {"scale": params["features"]["gamma"], "bias": params["features"]["beta"]}
    training = flax.linen.BatchNorm(use_running_average=False, momentum=0.0, epsilon=1e-3)
    start = {"mean": np.zeros(3, np.float32), "var": np.ones(3, np.float32)}
    trained = lambda z: training.apply({"params": own, "batch_stats": start}, z, mutable=["batch_stats"])
    expected, updated = jax.jit(trained)(z)
    np.testing.assert_allclose(jax.jit(network.apply)(params, x), expected, atol=1e-5)

    statistics = jax.jit(population(network.apply))(params, x[None])
    np.testing.assert_allclose(statistics["features"].mean, updated["batch_stats"]["mean"], atol=1e-6)
    np.testing.assert_allclose(statistics["features"].variance, updated["batch_stats"]["var"] * 45 / 44, rtol=1e-5)
    running = {"mean": statistics["features"].mean, "var": statistics["features"].variance}
    inferring = flax.linen.BatchNorm(use_running_average=True, epsilon=1e-3)
    ours, theirs = (
        inference(network.apply, statistics),
        lambda z: inferring.apply({"params": own, "batch_stats": running}, z),
    )
    found, expected = jax.jit(lambda x, z: (ours(params, x), theirs(z)))(x[:1], z[:1])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_population_averages_what_training_saw(x64):
    """Each layer's statistics with those below normalised by each batch's own: μ averaged, B/(B − 1) σ² as well."""
    problem = problems.batch_normed()
    batches = np.random.default_rng(0).normal(size=(3, 5, 2))
    statistics = jax.jit(population(problem.forward))(problem.params, batches)
    assert set(statistics) == {"low", "high"}
    low, high = (jax.tree.map(np.asarray, problem.params[name]) for name in ("low", "high"))
    z_low = [x @ low["weight"] for x in np.asarray(batches)]
    z_high = [
        np.tanh(normalised(z, low["gamma"], low["beta"], 1e-5)) @ high["low"]["weight"]
        + x @ high["input"]["weight"] + high["input"]["bias"]
        for x, z in zip(np.asarray(batches), z_low, strict=True)
    ]  # fmt: skip
    for name, z in (("low", z_low), ("high", z_high)):
        np.testing.assert_allclose(statistics[name].mean, np.mean([b.mean(axis=0) for b in z], axis=0), rtol=1e-12)
        expected = np.mean([b.var(axis=0) for b in z], axis=0) * 5 / 4
        np.testing.assert_allclose(statistics[name].variance, expected, rtol=1e-12)


@pytest.mark.slow
def test_in_inference_examples_do_not_interact():
    problem = problems.batch_normed()
    x = problem.batch[0]
    statistics = jax.jit(population(problem.forward))(problem.params, jnp.expand_dims(x, 0))
    inferring = inference(problem.forward, statistics)
    training, using = jax.jit(problem.forward), jax.jit(inferring)
    np.testing.assert_allclose(using(problem.params, x[:1]), using(problem.params, x)[:1], rtol=1e-5)
    assert np.abs(training(problem.params, x[:2])[:1] - training(problem.params, x)[:1]).max() > 0.01
    # Any rule runs it, noise judged by each example's own loss included, which training would refuse.
    estimator = nl.node_perturbation(nl.supervised(inferring, nl.losses.cross_entropy))
    jax.eval_shape(estimator.estimate, KEY, (), problem.params, problem.batch)


def test_a_network_without_normalisation_has_no_statistics():
    problem = problems.chain()
    statistics = jax.jit(population(problem.forward))(problem.params, jnp.expand_dims(problem.batch[0], 0))
    assert statistics == {}
    same = jax.jit(inference(problem.forward, statistics))(problem.params, problem.batch[0])
    np.testing.assert_array_equal(same, jax.jit(problem.forward)(problem.params, problem.batch[0]))


def test_what_will_not_do_is_named():
    problem = problems.batch_normed()
    x = problem.batch[0]
    layer = nl.Layer("hidden", 3, c.dense())
    with pytest.raises(ValueError, match=r"epsilon must be a finite Python number above 0, got 0"):
        nl.batch_norm(layer, epsilon=0)
    with pytest.raises(ValueError, match=r"epsilon must be"):
        batch_normalised(linear, epsilon=-1.0)
    with pytest.raises(ValueError, match="layer 'hidden' is transformed twice"):
        nl.batch_norm(nl.batch_norm(layer))
    with pytest.raises(ValueError, match="layer 'input' receives no connection, so that there is nothing to transform"):
        nl.batch_norm(nl.Layer("input", 3))
    named = [nl.Layer("beta", 3), nl.Layer("low", 3, c.dense()), nl.Layer("out", 2, [c.dense("low"), c.dense("beta")])]
    with pytest.raises(ValueError, match="layer 'out' has a parameter 'beta' of its own: rename its source 'beta'"):
        nl.network(*named[:2], nl.batch_norm(named[2]))
    with pytest.raises(ValueError, match=r"two values of a unit or more, got pre-activations of shape \(1, 3\)"):
        jax.eval_shape(problem.forward, problem.params, x[:1])
    with pytest.raises(ValueError, match=r"gamma must have shape \(2,\), one for each unit, got \(1,\)"):
        batch_normalised(linear)({"weight": jnp.ones((2, 2)), "gamma": jnp.ones(1), "beta": jnp.ones(2)}, x)
    one = Moments(jnp.zeros(3), jnp.ones(3))
    with pytest.raises(ValueError, match="no statistics of layer 'high', only of low: gather them anew"):
        jax.eval_shape(inference(problem.forward, {"low": one}), problem.params, x)
    with pytest.raises(ValueError, match=r"mean must have shape \(2,\), one for each unit, got \(3,\)"):
        jax.eval_shape(inference(problem.forward, {"low": one, "high": one}), problem.params, x)


def test_a_normalised_layer_leaves_the_layer_it_was_made_of_alone():
    layer = nl.Layer("output", 2, c.dense())
    nl.batch_norm(layer)
    params = jax.eval_shape(nl.network(nl.Layer("input", 3), layer).init, KEY)
    assert set(params["output"]) == {"weight", "bias"}
