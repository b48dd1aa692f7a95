"""Node perturbation of one layer at a time: its equation, what it disturbs, its noise and its errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nl_jax as nl
from nl_jax.evaluation.conformance.calibration import largest_deviation
from nl_jax.propagation import inject, record
from nl_jax.theory import perturbation as theory
from tests import problems
from tests.estimators.noise.test_unbiased import estimates, exact

KEY = jax.random.key(1)
SIZES = 5, 3  # units of the chain's two layers


def directions_of(num_samples, sampler=None):
    """ξ of every sample by layer, [K, batch, units], and the problem."""
    problem = problems.chain()
    sampler = nl.directions.layerwise() if sampler is None else sampler
    view = nl.spaces.nodes(problem.objective)(problem.params, problem.batch, nl.spaces.Noise(sampler, KEY, num_samples))
    return jax.vmap(view.draw)(jnp.arange(num_samples)), problem


def test_update_of_the_paper_to_the_letter(x64):
    """δ^l = N_l (Ẽ − E) γ^l/‖γ^l‖², averaged over K passes for each layer, by a loop over layers."""
    K, sigma = 3, 1e-4
    drawn, problem = directions_of(2 * K)
    x, _ = problem.batch
    clean = problem.objective(problem.params, problem.batch)
    expected = {name: jnp.zeros((6, units)) for name, units in zip(drawn, SIZES, strict=True)}
    for k in range(2 * K):
        gamma = jax.tree.map(lambda xi, k=k: sigma * xi[k], drawn)
        change = inject(problem.objective)(problem.params, problem.batch, gamma) - clean
        for (name, noise), units in zip(gamma.items(), SIZES, strict=True):
            square = jnp.sum(noise**2, axis=1, keepdims=True)
            moved = square[:, 0] > 0  # the examples whose layer this is
            credit = units * change[:, None] * noise / jnp.where(square > 0, square, 1)
            expected[name] += jnp.where(moved[:, None], credit, 0) / K
    estimator = nl.iterative_node_perturbation(problem.objective, num_samples=K, sigma=sigma)
    grads, _, info = jax.jit(estimator.estimate)(KEY, (), problem.params, problem.batch)
    np.testing.assert_allclose(grads["hidden1"]["weight"], x.T @ expected["hidden1"] / 6, rtol=1e-7)
    np.testing.assert_allclose(grads["output"]["bias"], expected["output"].mean(axis=0), rtol=1e-7)
    assert int(info.evaluations) == 2 * K + 2


def test_each_pass_disturbs_one_layer_and_all_get_their_turn():
    drawn, _ = directions_of(6)
    moved = np.stack([np.asarray(jnp.any(xi != 0, axis=2)) for xi in drawn.values()])  # [layers, K, batch]
    np.testing.assert_array_equal(moved.sum(axis=0), 1)
    np.testing.assert_array_equal(moved.sum(axis=1), 3)
    assert 0 < moved[0, 0].sum() < 6  # examples begin with layers of their own


def test_the_length_of_a_layer_s_noise_is_the_root_of_its_units():
    drawn, _ = directions_of(2)
    for xi, units in zip(drawn.values(), SIZES, strict=True):
        np.testing.assert_allclose(jnp.sum(xi**2, axis=(0, 2)), 2 * units, rtol=1e-5)


def test_lower_layers_are_clean_where_a_higher_one_is_disturbed():
    """Ẽ − E measures the loss's derivative along this layer's noise alone."""
    drawn, problem = directions_of(1)
    axons = record(problem.objective)(problem.params, problem.batch)[1]["hidden1"]

    def layer(site, gamma):
        return site.activation(site.preactivation() + gamma), site.axons()

    gamma = {name: xi[0] for name, xi in drawn.items()}
    _, found = nl.propagation.interpret(problem.objective, layer)(problem.params, problem.batch, gamma)
    above = np.any(np.asarray(gamma["output"]) != 0, axis=1)
    assert above.any()
    assert not above.all()
    np.testing.assert_array_equal(found["hidden1"][above], axons[above])


def layer_variance(make, num_keys=2000):
    """‖δ̂ − δ‖² over all examples and keys for each layer, with its standard error, and ‖δ‖²."""
    problem = problems.chain()
    true = jax.jit(nl.backprop(problem.objective).credit)(KEY, (), problem.params, problem.batch)
    keys = jax.random.split(jax.random.key(5), num_keys)
    found = jax.jit(jax.vmap(lambda key: make(problem.objective).credit(key, (), problem.params, problem.batch)))(keys)
    squares = {name: jnp.sum((c.delta - true[name].delta[None]) ** 2, axis=(1, 2)) for name, c in found.items()}
    return {n: (s.mean(), jnp.std(s, ddof=1) / num_keys**0.5, jnp.sum(true[n].delta ** 2)) for n, s in squares.items()}


def test_variance_of_a_layer_is_that_of_its_own_nodes(x64):
    """(N_l − 1)‖δ^l‖²/K; noise in all layers at once adds that of the others, N_l ‖δ^m‖²/K: a twin that must fail."""
    K = 2
    squares = layer_variance(functools.partial(nl.iterative_node_perturbation, num_samples=K, sigma=1e-5))
    together = layer_variance(
        functools.partial(nl.node_perturbation, num_samples=K, sigma=1e-5, directions=nl.directions.rademacher())
    )
    for (name, (mean, error, square)), units in zip(squares.items(), SIZES, strict=True):
        expected = theory.relative_variance(units, K) * square
        assert abs(mean - expected) < 5 * error
        assert abs(together[name][0] - expected) > 5 * together[name][1]


def test_layerwise_has_unit_covariance_for_any_number_of_samples(x64):
    """The first layer is drawn at random: E ξξᵀ = I of every sample by itself; without the factor √L it is not."""
    template = {"a": jnp.zeros(3), "b": jnp.zeros((2, 2))}

    def deviation(scale):
        draw = lambda key: jax.tree.leaves(nl.directions.layerwise()(key, 1, template))
        drawn = jax.jit(jax.vmap(draw))(jax.random.split(KEY, 20_000))
        flat = scale * np.concatenate([np.asarray(x).reshape(20_000, -1) for x in drawn], axis=1)
        outer = flat[:, :, None] * flat[:, None, :]
        error = np.maximum(outer.std(axis=0), 1e-3) / 20_000**0.5
        return np.max(np.abs(outer.mean(axis=0) - np.eye(7)) / error)

    assert deviation(1.0) < 5
    assert deviation(0.5**0.5) > 5


def test_designed_sequences_are_complete_for_each_layer(x64):
    """Coordinates one after another, in each layer: at K = the largest layer's units the gradient itself."""
    network = nl.mlp([3, 4, 4], activation=nl.activations.tanh())
    objective = nl.supervised(network.apply, nl.losses.half_squared_error)
    params = network.init(KEY, jnp.float64)
    batch = jax.random.normal(jax.random.key(2), (5, 3)), jnp.ones((5, 4))
    make = functools.partial(
        nl.iterative_node_perturbation, objective, directions=nl.directions.coordinate(),
        baseline=nl.baselines.antithetic(),
    )  # fmt: skip
    g = exact(objective, params, batch)

    def error(K):
        found = estimates(make(num_samples=K), params, batch, KEY[None])[0]
        return np.linalg.norm(found - g) / np.linalg.norm(g)

    assert error(4) < 1e-6
    assert error(3) > 1e-2


def test_weight_space_takes_it_too(x64):
    """A parameter at a time; its mean is the gradient, and that of half of it is not."""
    objective = lambda params, batch: jnp.sum(jnp.tanh(batch @ params["weight"] + params["bias"][None, :]), axis=1)
    params = {"weight": jax.random.normal(KEY, (3, 2)), "bias": jnp.ones(2)}
    batch = jax.random.normal(jax.random.key(2), (4, 3))
    estimator = nl.weight_perturbation(objective, num_samples=3, directions=nl.directions.layerwise())
    found = estimates(estimator, params, batch)
    g = exact(objective, params, batch)
    assert largest_deviation(found, g) < 5
    assert largest_deviation(found / 2, g) > 5


def test_structured_laws_are_refused_where_they_are_structured():
    problem = problems.chain()
    sampler = nl.directions.layerwise(nl.directions.rank_one())
    with pytest.raises(ValueError, match=r"layerwise cannot switch off a \w+ direction: use a sampler of plain arrays"):
        nl.weight_perturbation(problem.objective, directions=sampler).estimate(KEY, (), problem.params, problem.batch)
    with pytest.raises(ValueError, match="sampler must take 3 arguments, got rademacher"):
        nl.directions.layerwise(nl.directions.rademacher)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_samples": 0}, "num_samples must be a whole number of at least 1, got 0"),
        ({"sigma": 0.0}, "sigma must be a finite Python number above 0, got 0.0"),
        ({"baseline": "clean"}, r"baseline must be one of nl\.baselines"),
        ({"directions": "sphere"}, "sampler must take 3 arguments, got 'sphere'"),
        ({"credit": "batch"}, r"credit must be nl\.spaces\.per_example_credit\(\)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_settings_are_errors_at_construction(settings, message):
    with pytest.raises(ValueError, match=message):
        nl.iterative_node_perturbation(problems.chain().objective, **settings)
