"""Node perturbation by measured activity: its equation, its mean in linear networks, noise that is not its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

import nl_jax as nl
from nl_jax.propagation import Around, feedforward, inject
from nl_jax.theory import activity_perturbation as theory
from tests import problems
from tests.deviation import largest_deviation
from tests.estimators.noise.test_unbiased import estimates, exact

KEY = jax.random.key(1)


def drawn(sigma, sampler, key=KEY, index=0):
    """γ of the chain's layers in one sample, [batch, units]."""
    template = {"hidden1": jax.ShapeDtypeStruct((5,), float), "output": jax.ShapeDtypeStruct((3,), float)}
    draws = jax.jit(jax.vmap(lambda n: sampler(jax.random.fold_in(key, n), index, template)))(np.arange(6))
    return jax.tree.map(lambda xi: sigma * np.asarray(xi), draws)


@pytest.mark.slow
@pytest.mark.parametrize("reference", ["clean", "mean"])
def test_update_to_the_letter(reference, x64):
    """δ^l = N ⟨(Ẽ − E) Δν^l/‖Δν‖²⟩ of three passes by hand, N = 5 + 3; Δ from a clean pass or from their mean."""
    problem, sigma = problems.chain(), 0.3
    params, x = jax.tree.map(np.asarray, (problem.params, problem.batch[0]))
    gammas = [drawn(sigma, nl.directions.gaussian(), index=index) for index in range(3)]
    affine = lambda p, x: x @ p["weight"] + p["bias"][None, :]

    def by_hand(noise):
        low = affine(params["hidden1"], x) + noise["hidden1"]
        return np.concatenate([low, affine(params["output"], np.tanh(low)) + noise["output"]], axis=1)

    estimator = nl.activity_node_perturbation(problem.objective, sigma=sigma, num_samples=3, reference=reference)

    @jax.jit
    def run(params, batch):
        noisy = jnp.stack([inject(problem.objective)(params, batch, gamma) for gamma in gammas])
        return noisy, problem.objective(params, batch), estimator.estimate(KEY, (), params, batch)

    noisy, clean, (grads, _, info) = jax.tree.map(np.asarray, run(problem.params, problem.batch))
    passes = np.stack([by_hand(gamma) for gamma in gammas])
    if reference == "clean":
        change, difference = passes - by_hand(jax.tree.map(np.zeros_like, gammas[0]))[None], noisy - clean[None]
    else:
        change, difference = passes - passes.mean(axis=0)[None], noisy - noisy.mean(axis=0)[None]
    delta = np.mean(8 * difference[..., None] * change / np.sum(change**2, axis=-1, keepdims=True), axis=0)
    np.testing.assert_allclose(grads["hidden1"]["weight"], x.T @ delta[:, :5] / 6, rtol=1e-9)
    hidden = np.tanh(affine(params["hidden1"], x))
    np.testing.assert_allclose(grads["output"]["weight"], hidden.T @ delta[:, 5:] / 6, rtol=1e-9)
    np.testing.assert_allclose(info.loss, clean.mean(), rtol=1e-12)
    assert info.evaluations == 5


@pytest.mark.slow
def test_the_mean_is_a_reference_where_no_pass_is_clean(x64):
    """A disturbed clean pass biases the estimate by its own noise, however many samples; the mean of passes does not.

    One layer, for which the true credit is known; the disturbance of the clean pass is as large as that of the others.
    """
    problem, sigma = problems.one_layer(), 1e-5
    disturbance = sigma * np.random.default_rng(0).normal(size=(5, 3))

    def disturbed(params, batch, propagate=feedforward):
        def connection(p, x):
            return x @ p["weight"] + p["bias"][None, :] + disturbance

        out = propagate("output", connection, jax.nn.sigmoid, params["output"], batch[0])
        return nl.losses.half_squared_error(out, batch[1])

    def noisy(key, params, batch, propagate=feedforward):
        gamma = sigma * jax.random.normal(key, (5, 3))

        def connection(p, x):
            return x @ p["weight"] + p["bias"][None, :] + gamma

        out = propagate("output", connection, jax.nn.sigmoid, params["output"], batch[0])
        return nl.losses.half_squared_error(out, batch[1])

    g = exact(problem.objective, problem.params, problem.batch)
    made = {
        reference: nl.activity_node_perturbation(disturbed, noisy=noisy, num_samples=8, reference=reference)
        for reference in ("mean", "clean")
    }
    found = {name: estimates(estimator, problem.params, problem.batch) for name, estimator in made.items()}
    assert largest_deviation(found["mean"], g) < 5
    assert largest_deviation(found["clean"], g) > 5


def test_one_layer_is_estimated_without_bias(x64):
    """Where no noise arrives from below it is calibrated to jax.grad; a twin 1.2 times too long must fail."""
    problem = problems.one_layer()
    estimator = nl.activity_node_perturbation(problem.objective, num_samples=4, sigma=1e-5)
    found = estimates(estimator, problem.params, problem.batch)
    g = exact(problem.objective, problem.params, problem.batch)
    assert largest_deviation(found, g) < 5
    assert largest_deviation(1.2 * found, g) > 5


def linear_chain():
    network = nl.mlp([3, 4, 5, 2], activation=nl.activations.identity())
    objective = nl.supervised(network.apply, nl.losses.half_squared_error)
    params = jax.jit(network.init, static_argnums=1)(jax.random.key(3), jnp.float64)
    batch = np.random.default_rng(2).normal(size=(3, 3)), np.ones((3, 2))
    return network, objective, params, batch


@pytest.mark.slow
def test_mean_in_linear_networks_is_that_of_theory(x64):
    """E δ = N M e at a large σ, of all three layers; the true gradient is not its mean."""
    network, objective, params, batch = linear_chain()
    estimator = nl.activity_node_perturbation(objective, num_samples=20, sigma=0.5)
    keys = jax.random.split(jax.random.key(4), 3000)
    found = jax.jit(jax.vmap(lambda key: estimator.credit(key, (), params, batch)))(keys)

    @jax.jit
    def in_theory(params, batch):
        top = network.apply(params, batch[0]) - batch[1]
        expected = theory.expected_credit([params["hidden2"]["weight"], params["output"]["weight"]], top)
        return expected, nl.backprop(objective).credit(KEY, (), params, batch)

    expected, true = in_theory(params, batch)
    for (name, credit), delta in zip(found.items(), expected, strict=True):
        samples = np.asarray(credit.delta).reshape(3000, -1)
        assert largest_deviation(samples, np.ravel(delta)) < 5
        assert largest_deviation(samples, np.ravel(true[name].delta)) > 5


def noisy_chain(problem, gamma_of):
    """The chain with noise of its own in its connections."""

    def forward(key, params, x, propagate):
        gamma = gamma_of(key)

        def connection(name):
            return lambda p, x: x @ p["weight"] + p["bias"][None, :] + gamma[name]

        hidden = propagate("hidden1", connection("hidden1"), jnp.tanh, params["hidden1"], x)
        return propagate("output", connection("output"), lambda nu: nu, params["output"], hidden)

    def noisy(key, params, batch, propagate=feedforward):
        return nl.losses.cross_entropy(forward(key, params, batch[0], propagate), batch[1])

    return noisy


def test_noise_need_not_be_known(x64):
    """A program with the same noise inside it gives the same estimate: only activity and losses are read."""
    problem = problems.chain()
    gamma = drawn(0.3, nl.directions.gaussian())
    noisy = noisy_chain(problem, lambda key: gamma)
    inside = nl.activity_node_perturbation(problem.objective, noisy=noisy)
    injected = nl.activity_node_perturbation(problem.objective, sigma=0.3)
    at = KEY, (), problem.params, problem.batch
    both = jax.jit(lambda *at: [e.estimate(*at)[0] for e in (inside, injected)])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), *both(*at))


def test_a_device_s_noise_is_averaged_over_samples(x64):
    """Noise from the host, which no key decides: its estimates differ from sample to sample and average to the mean."""
    problem = problems.one_layer()
    rng = np.random.default_rng(0)
    device = lambda: 1e-4 * rng.normal(size=(5, 3))

    def noisy(key, params, batch, propagate=feedforward):
        def connection(p, x):
            return x @ p["weight"] + p["bias"][None, :] + io_callback(device, jax.ShapeDtypeStruct((5, 3), float))

        out = propagate("output", connection, jax.nn.sigmoid, params["output"], batch[0])
        return nl.losses.half_squared_error(out, batch[1])

    estimator = nl.activity_node_perturbation(problem.objective, noisy=noisy, num_samples=8)
    estimate = jax.jit(estimator.estimate)
    found = np.stack(
        [
            np.concatenate([np.ravel(g) for g in jax.tree.leaves(estimate(KEY, (), problem.params, problem.batch)[0])])
            for _ in range(300)
        ]
    )
    g = exact(problem.objective, problem.params, problem.batch)
    assert largest_deviation(found, g) < 5
    assert largest_deviation(1.3 * found, g) > 5


def test_without_noise_nothing_is_learned():
    problem = problems.chain()
    silent = noisy_chain(problem, lambda key: {"hidden1": 0.0, "output": 0.0})
    estimator = nl.activity_node_perturbation(problem.objective, noisy=silent)
    credit = jax.jit(estimator.credit)(KEY, (), problem.params, problem.batch)
    assert not any(np.any(layer.delta) for layer in credit.values())


def test_loops_are_measured_step_by_step(x64):
    """As the unrolled program is, with a disturbance that is the same in both."""

    def disturbed(objective):
        def around(site, given, propagate):
            connection = lambda params, *x: (nu := site.connection(params, *x)) + 0.1 * jnp.sin(3 * nu)
            return propagate(site.name, connection, site.activation, site.params, *site.inputs)

        def noisy(key, params, batch, propagate=feedforward):
            return objective(params, batch, propagate=Around(propagate, around))

        return nl.activity_node_perturbation(objective, noisy=noisy)

    looped, unrolled = problems.recurrent(), problems.unrolled(problems.recurrent())
    credit, apart = (jax.jit(disturbed(p.objective).credit)(KEY, (), p.params, p.batch) for p in (looped, unrolled))
    steps = np.stack([apart[f"hidden{t}"].delta for t in range(problems.STEPS)])
    np.testing.assert_allclose(credit["time/hidden"].delta, steps, rtol=1e-8)
    np.testing.assert_allclose(credit["output"].delta, apart["output"].delta, rtol=1e-8)
    assert np.all(np.any(steps != 0, axis=-1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_samples": 0}, "num_samples must be a whole number of at least 1, got 0"),
        ({"sigma": -1.0}, "sigma must be a finite Python number above 0, got -1.0"),
        ({"chunk": 0}, "chunk must be a whole number of at least 1, got 0"),
        ({"directions": "gaussian"}, "directions must take 3 arguments, got 'gaussian'"),
        ({"noisy": lambda key, params, batch: batch}, "takes no argument `propagate`"),
        (
            {"noisy": lambda key, params, batch, propagate: batch, "sigma": 0.1},
            "sigma and directions must be left out with noisy",
        ),
        ({"noisy": lambda key, params, batch, propagate: batch, "chunk": 2}, "chunk must be left out with noisy"),
        ({"reference": "first"}, "reference must be one of 'clean', 'mean'; got 'first'"),
        ({"reference": "mean"}, "num_samples must be at least 2 with reference='mean'"),
    ],
    ids=["samples", "sigma", "chunk", "directions", "noisy", "both", "chunks", "reference", "one"],
)
def test_bad_settings_are_errors_at_construction(settings, message):
    with pytest.raises(ValueError, match=message):
        nl.activity_node_perturbation(problems.chain().objective, **settings)


def test_a_noisy_program_of_other_layers_is_an_error():
    problem = problems.chain()

    def noisy(key, params, batch, propagate=feedforward):
        return propagate("elsewhere", lambda p, x: x @ p["weight"], jnp.tanh, params["hidden1"], batch[0])[:, 0]

    estimate = nl.activity_node_perturbation(problem.objective, noisy=noisy).estimate
    with pytest.raises(ValueError, match=r"noisy must run the objective's layers, .*hidden1.*; got \{\}"):
        jax.eval_shape(estimate, KEY, (), problem.params, problem.batch)


def test_layers_that_mix_examples_are_refused():
    network = nl.network(
        nl.Layer("input", 3),
        nl.Layer("hidden", 4, nl.connections.dense(), nl.activations.tanh()),
        nl.batch_norm(nl.Layer("output", 2, nl.connections.dense(bias=False))),
    )
    objective = nl.supervised(network.apply, nl.losses.half_squared_error)
    at = KEY, (), jax.eval_shape(network.init, KEY), (np.ones((4, 3), np.float32), np.ones((4, 2), np.float32))
    with pytest.raises(ValueError, match=r"layer 'output' mixes examples.*use nl\.node_perturbation with credit="):
        jax.eval_shape(nl.activity_node_perturbation(objective).estimate, *at)
