"""Node perturbation of one layer at a time: its equation, what it disturbs, its noise and its errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nl_jax as nl
from nl_jax.propagation import inject, record
from nl_jax.theory import perturbation as theory
from tests import problems
from tests.deviation import largest_deviation
from tests.estimators.noise.test_unbiased import estimates, exact

pytestmark = pytest.mark.slow

KEY = jax.random.key(1)
SIZES = 5, 3  # units of the chain's two layers


def directions_of(num_samples, sampler=None):
    """ξ of every sample by layer, [K, batch, units], and the problem."""
    problem = problems.chain()
    sampler = nl.directions.layerwise() if sampler is None else sampler
    noise = nl.spaces.Noise(sampler, KEY, num_samples)
    draw = lambda index: nl.spaces.nodes(problem.objective)(problem.params, problem.batch, noise).draw(index)
    return jax.jit(jax.vmap(draw))(np.arange(num_samples, dtype=np.int32)), problem


def test_update_of_the_paper_to_the_letter(x64):
    """δ^l = N_l (Ẽ − E) γ^l/‖γ^l‖², averaged over K passes for each layer, by a loop over layers."""
    K, sigma = 3, 1e-4
    drawn, problem = directions_of(2 * K)
    x = np.asarray(problem.batch[0])
    estimator = nl.iterative_node_perturbation(problem.objective, num_samples=K, sigma=sigma)

    @jax.jit
    def run(params, batch):
        lost = jax.vmap(lambda gamma: inject(problem.objective)(params, batch, gamma))
        gamma = jax.tree.map(lambda xi: sigma * xi, drawn)
        return estimator.estimate(KEY, (), params, batch), gamma, lost(gamma) - problem.objective(params, batch)[None]

    (grads, _, info), gamma, changes = jax.tree.map(np.asarray, run(problem.params, problem.batch))
    expected = {name: np.zeros((6, units)) for name, units in zip(drawn, SIZES, strict=True)}
    for k, change in enumerate(changes):
        for (name, noise), units in zip(gamma.items(), SIZES, strict=True):
            square = np.sum(noise[k] ** 2, axis=1, keepdims=True)
            moved = square[:, 0] > 0  # the examples whose layer this is
            credit = units * change[:, None] * noise[k] / np.where(square > 0, square, 1)
            expected[name] += np.where(moved[:, None], credit, 0) / K
    np.testing.assert_allclose(grads["hidden1"]["weight"], x.T @ expected["hidden1"] / 6, rtol=1e-7)
    np.testing.assert_allclose(grads["output"]["bias"], expected["output"].mean(axis=0), rtol=1e-7)
    assert int(info.evaluations) == 2 * K + 2


def test_each_pass_disturbs_one_layer_and_all_get_their_turn():
    drawn, _ = directions_of(6)
    moved = np.stack([np.any(np.asarray(xi) != 0, axis=2) for xi in drawn.values()])  # [layers, K, batch]
    np.testing.assert_array_equal(moved.sum(axis=0), 1)
    np.testing.assert_array_equal(moved.sum(axis=1), 3)
    assert 0 < moved[0, 0].sum() < 6  # examples begin with layers of their own


def test_the_length_of_a_layer_s_noise_is_the_root_of_its_units():
    drawn, _ = directions_of(2)
    for xi, units in zip(drawn.values(), SIZES, strict=True):
        np.testing.assert_allclose(np.sum(np.asarray(xi) ** 2, axis=(0, 2)), 2 * units, rtol=1e-5)


def test_lower_layers_are_clean_where_a_higher_one_is_disturbed():
    """Ẽ − E measures the loss's derivative along this layer's noise alone."""
    drawn, problem = directions_of(1)

    def layer(site, gamma):
        return site.activation(site.preactivation() + gamma), site.axons()

    gamma = {name: np.asarray(xi)[0] for name, xi in drawn.items()}
    run = nl.propagation.interpret(problem.objective, layer)
    both = jax.jit(lambda *at: (run(*at, gamma)[1], record(problem.objective)(*at)[1]["hidden1"]))
    found, axons = both(problem.params, problem.batch)
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
    deltas = {name: (np.asarray(c.delta), np.asarray(true[name].delta)) for name, c in found.items()}
    squares = {name: np.sum((own - delta) ** 2, axis=(1, 2)) for name, (own, delta) in deltas.items()}
    return {n: (s.mean(), s.std(ddof=1) / num_keys**0.5, np.sum(deltas[n][1] ** 2)) for n, s in squares.items()}


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
    template = {"a": jax.ShapeDtypeStruct((3,), float), "b": jax.ShapeDtypeStruct((2, 2), float)}
    draw = lambda n: jax.tree.leaves(nl.directions.layerwise()(jax.random.fold_in(KEY, n), 1, template))
    drawn = jax.jit(jax.vmap(draw))(np.arange(20_000))

    def deviation(scale):
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
    params = jax.jit(network.init, static_argnums=1)(KEY, jnp.float64)
    batch = np.random.default_rng(2).normal(size=(5, 3)), np.ones((5, 4))
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
    params = {"weight": np.random.default_rng(1).normal(size=(3, 2)), "bias": np.ones(2)}
    batch = np.random.default_rng(2).normal(size=(4, 3))
    estimator = nl.weight_perturbation(objective, num_samples=3, directions=nl.directions.layerwise())
    found = estimates(estimator, params, batch)
    g = exact(objective, params, batch)
    assert largest_deviation(found, g) < 5
    assert largest_deviation(found / 2, g) > 5


def test_structured_laws_are_refused_where_they_are_structured():
    problem = problems.chain()
    sampler = nl.directions.layerwise(nl.directions.rank_one())
    estimate = nl.weight_perturbation(problem.objective, directions=sampler).estimate
    with pytest.raises(ValueError, match=r"layerwise cannot switch off a \w+ direction: use a sampler of plain arrays"):
        jax.eval_shape(estimate, KEY, (), problem.params, problem.batch)
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
