"""REINFORCE against enumeration, quadrature and closed form, beside twins that must fail."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import nl_jax as nl
from nl_jax._core.dependence import equations
from tests import problems
from tests.estimators.noise.test_unbiased import estimates, exact, largest_deviation
from tests.problems import Problem

pytestmark = pytest.mark.slow

b, units = nl.reward_baselines, nl.units
KEY = jax.random.key(1)
KEYS = jax.random.split(jax.random.key(2), 6000)
REWARDS = np.array([[2.0, 3.0, 2.5], [0.2, 1.0, -1.0], [-0.7, 0.1, 0.5]])  # of each action, by label


def environment(action, label):
    return jnp.asarray(REWARDS, jnp.result_type(float))[action, label]


INPUTS = np.random.default_rng(6).normal(size=(4, 3))


def made(network):
    return jax.jit(network.init, static_argnums=1)(jax.random.key(5), jnp.float64)


@pytest.fixture(scope="module")
def drawn():
    """Two layers of two Bernoulli units and three actions; with the gradient of the mean of E[−reward], enumerated."""
    with jax.enable_x64(True):
        network = nl.mlp([3, 2, 2, 3], activation=nl.activations.sigmoid())
        params = jax.tree.map(lambda w: np.asarray(w) + 0.1, made(network))
        batch = INPUTS, np.array([0, 1, 2, 0])
        return Problem(nl.bandit(network.apply, environment), params, batch, network.apply)


def expected_loss(params, batch):
    """Σ over all h¹, h² and actions a of p(h¹ | x) p(h² | h¹) p(a | h²) (−reward), [batch]."""
    x, label = batch
    affine = lambda layer, x: x @ layer["weight"] + layer["bias"][None]
    p = lambda h, nu: jnp.prod(jnp.where(h == 1, jax.nn.sigmoid(nu), jax.nn.sigmoid(-nu)), axis=1)

    def term(bits):
        h1, h2 = bits[None, :2], bits[None, 2:]
        probability = p(h1, affine(params["hidden1"], x)) * p(h2, affine(params["hidden2"], h1))
        actions = jax.nn.softmax(affine(params["output"], h2))
        return probability * jnp.sum(actions * -environment(jnp.arange(3)[None], label[:, None]), axis=1)

    return jnp.sum(jax.vmap(term)(jnp.array(list(itertools.product([0.0, 1.0], repeat=4)))), axis=0)


def _estimator(problem, baseline, num_samples):
    kinds = {"output": units.categorical(), "hidden*": units.bernoulli()}
    return nl.reinforce(problem.objective, units=kinds, num_samples=num_samples, baseline=baseline)


def _warmed(baseline, loss):
    return baseline._replace(init=lambda: baseline.update(baseline.init(), jnp.asarray(loss)))


@pytest.fixture(scope="module")
def samples(drawn):
    """Estimates for many keys, by baseline and K."""
    with jax.enable_x64(True):
        g = exact(expected_loss, drawn.params, drawn.batch)
        level = float(jax.jit(expected_loss)(drawn.params, drawn.batch).mean())
        choices = {
            "none 1": (b.none(), 1),
            "none 4": (b.none(), 4),
            "running mean 1": (_warmed(b.running_mean(), level), 1),
            "leave one out 4": (b.leave_one_out(), 4),
        }
        found = {name: estimates(_estimator(drawn, *choice), *drawn[1:3], KEYS) for name, choice in choices.items()}
        return g, found


def test_mean_is_the_gradient_of_the_expected_loss(samples):
    g, found = samples
    for name, estimated in found.items():
        assert largest_deviation(estimated, g) < 5, name
        assert largest_deviation(1.2 * estimated, g) > 5, name


def test_a_baseline_that_knows_its_own_sample_is_biased(samples, drawn, x64):
    """The twin: the mean over all K samples makes of the gradient (K − 1)/K."""
    g, _ = samples
    own = b.none()._replace(
        expected=lambda losses, state: jnp.broadcast_to(jnp.mean(losses, axis=0)[None], losses.shape)
    )
    estimated = estimates(_estimator(drawn, own, 4), *drawn[1:3], KEYS)
    assert largest_deviation(estimated, g) > 5
    assert largest_deviation(4 / 3 * estimated, g) < 5


def test_leave_one_out_is_the_mean_of_the_others():
    losses = np.array([[1.0, 5.0], [2.0, 5.0], [6.0, 8.0]], np.float32)
    np.testing.assert_allclose(jax.jit(b.leave_one_out().expected)(losses, ()), [[4.0, 6.5], [3.5, 6.5], [1.5, 5.0]])


def _square(estimated, g):
    squares = ((estimated - g) ** 2).sum(axis=1)
    return squares.mean(), squares.std(ddof=1) / len(squares) ** 0.5


def test_variance_falls_as_one_over_k(samples):
    g, found = samples
    (one, error_one), (four, error_four) = (_square(found[name], g) for name in ("none 1", "none 4"))
    error = np.hypot(error_one, 4 * error_four)
    assert abs(4 * four - one) < 5 * error
    assert abs(3 * four - one) > 5 * error


def test_baselines_reduce_the_variance(samples):
    g, found = samples
    none, running, others = (_square(found[name], g)[0] for name in ("none 4", "running mean 1", "leave one out 4"))
    assert running < 0.9 * 4 * none
    assert others < 0.9 * none


@pytest.fixture(scope="module")
def linear():
    with jax.enable_x64(True):
        network = nl.mlp([3, 2, 2], activation=nl.activations.identity())
        batch = INPUTS, np.ones((4, 2))
        objective = nl.supervised(network.apply, nl.losses.half_squared_error)
        return Problem(objective, made(network), batch, network.apply)


SIGMA = 0.8


@functools.cache
def smoothed(problem_objective):
    """E ½‖W₂(W₁x + b₁ + γ₁) + b₂ + γ₂ − t‖² = E(0) + ½σ²(‖W₂‖² + units of the output)."""

    def objective(params, batch):
        weight = params["output"]["weight"]
        return problem_objective(params, batch) + SIGMA**2 / 2 * (jnp.sum(weight**2) + weight.shape[1])

    return objective


def test_gaussian_units_in_closed_form(linear, x64):
    g = exact(smoothed(linear.objective), linear.params, linear.batch)
    gaussian = units.gaussian(sigma=SIGMA)
    estimated = estimates(nl.reinforce(linear.objective, units=gaussian), linear.params, linear.batch)
    assert largest_deviation(estimated, g) < 5

    # The twin: a draw that is not held fixed moves along with ν, and its log p says nothing.
    moving = gaussian._replace(
        log_probability=lambda s, nu: gaussian.log_probability(nu + (s - jax.lax.stop_gradient(nu)), nu)
    )
    twin = estimates(nl.reinforce(linear.objective, units=moving), linear.params, linear.batch)
    assert largest_deviation(twin, g) > 5


def test_node_perturbation_multiplies_by_clean_inputs(linear, x64):
    """Its expectation lacks the σ² W₂ by which noisy inputs and noisy losses go together; below, both agree."""
    clean, expected = (exact(o, *linear[1:3]) for o in (linear.objective, smoothed(linear.objective)))
    lacking = ravel_pytree(linear.params)[1](jnp.asarray(expected - clean))
    weight = np.asarray(linear.params["output"]["weight"])
    np.testing.assert_allclose(lacking["output"]["weight"], SIGMA**2 * weight, rtol=1e-12)
    np.testing.assert_allclose(jax.tree.leaves(lacking["hidden1"])[0], 0, atol=1e-14)
    np.testing.assert_allclose(jax.tree.leaves(lacking["hidden1"])[1], 0, atol=1e-14)
    estimator = nl.node_perturbation(linear.objective, sigma=SIGMA, num_samples=2)
    estimated = estimates(estimator, linear.params, linear.batch)
    assert largest_deviation(estimated, clean) < 5
    assert largest_deviation(estimated, expected) > 5


def test_in_one_layer_node_perturbation_is_reinforce(x64):
    """Both have the gradient of the smoothed loss, at any σ (Williams 1992); by Gauss–Hermite quadrature."""
    network = nl.mlp([3, 1], activation=nl.activations.tanh(), output_activation=nl.activations.tanh())
    params, batch = made(network), (INPUTS, np.ones((4, 1)))
    objective = nl.supervised(network.apply, nl.losses.half_squared_error)
    points, weights = np.polynomial.hermite_e.hermegauss(60)

    def smoothed(params, batch):
        shifted = lambda z: params | {"output": params["output"] | {"bias": params["output"]["bias"] + SIGMA * z}}
        losses = jax.vmap(lambda z: objective(shifted(z), batch))(jnp.asarray(points))
        return jnp.asarray(weights / weights.sum()) @ losses

    g = exact(smoothed, params, batch)
    for estimator in (
        nl.reinforce(objective, units=units.gaussian(sigma=SIGMA), num_samples=4),
        nl.node_perturbation(objective, sigma=SIGMA, num_samples=4),
    ):
        estimated = estimates(estimator, params, batch)
        assert largest_deviation(estimated, g) < 5
        assert largest_deviation(estimated, exact(objective, params, batch)) > 5


def test_parameters_outside_layers_get_the_losses_derivative(x64):
    """A tied weight, a gain between layers and a scale after the last one; little noise, so little smoothing."""
    problem = problems.tied()
    estimator = nl.reinforce(problem.objective, units=units.gaussian(sigma=1e-3), num_samples=4)
    estimated = estimates(estimator, problem.params, problem.batch)
    assert largest_deviation(estimated, exact(problem.objective, problem.params, problem.batch)) < 5


def test_layers_without_parameters_draw_nothing():
    problem = problems.convolution()
    kinds = {"output": units.categorical(), "*": units.gaussian(sigma=0.1)}

    def traced(units):
        return jax.eval_shape(nl.reinforce(problem.objective, units=units).estimate, KEY, (), *problem[1:3])

    grads, _, _ = traced(kinds)
    assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, problem.params)
    with pytest.raises(
        ValueError, match=r"no layer gets units\['pooled'\]; those with parameters are features, output"
    ):
        traced({"pooled": units.bernoulli()} | kinds)


def test_a_running_mean_is_handed_on(drawn, x64):
    """The second estimate is compared with the first one's loss; the very first with nothing."""
    estimator = _estimator(drawn, b.running_mean(0.0), 1)
    estimate = jax.jit(estimator.estimate)
    first, state, info = estimate(KEY, estimator.init(KEY, drawn.params), drawn.params, drawn.batch)
    np.testing.assert_allclose(state.mean, info.loss)
    second, _, again = estimate(KEY, state, drawn.params, drawn.batch)
    assert info.loss == again.loss
    # The same draws: what is taken away is the mean loss times the mean eligibility.
    taken = (first["output"]["bias"] - second["output"]["bias"]) / info.loss
    assert np.abs(taken).max() > 0.01
    np.testing.assert_allclose(taken.sum(), 0, atol=1e-12)
    assert not np.any(b.none().expected(jnp.ones((2, 3)), ()))


def test_every_layer_must_draw(drawn, x64):
    kinds = {"output": units.categorical(), "hidden2": units.bernoulli()}
    with pytest.raises(ValueError, match="layer 'hidden1' has parameters but no stochastic unit"):
        jax.eval_shape(nl.reinforce(drawn.objective, units=kinds).estimate, KEY, (), *drawn[1:3])


def test_a_name_with_brackets_is_written_as_it_is():
    product = lambda p, x: x @ p

    def forward(params, x, propagate=nl.propagation.feedforward):
        return propagate("a0", product, jnp.tanh, params[1], propagate("a[0]", product, jnp.tanh, params[0], x))

    objective = nl.supervised(forward, nl.losses.half_squared_error)
    kinds = {"a[0]": units.gaussian(sigma=0.1), "a0": units.bernoulli()}
    at = [jnp.ones((2, 2))] * 2, (jnp.ones((3, 2)), jnp.ones((3, 2)))
    jax.eval_shape(nl.reinforce(objective, units=kinds).estimate, KEY, (), *at)


def test_settings_are_checked(drawn):
    with pytest.raises(ValueError, match=r"units\['\*'\] must be made by a call"):
        nl.reinforce(drawn.objective, units=units.bernoulli)
    with pytest.raises(ValueError, match=r"baseline must be one of nl\.reward_baselines"):
        nl.reinforce(drawn.objective, units=units.bernoulli(), baseline=nl.baselines.clean())
    with pytest.raises(ValueError, match="num_samples must be at least 2 for this baseline, got 1"):
        nl.reinforce(drawn.objective, units=units.bernoulli(), num_samples=1)
    with pytest.raises(ValueError, match="decay must be at least 0 and below 1"):
        b.running_mean(1.0)


def test_layers_must_keep_examples_apart():
    def forward(params, x, propagate=nl.propagation.feedforward):
        pooled = propagate("pooled", lambda p, x: jnp.mean(x, axis=0, keepdims=True) @ p, jnp.tanh, params, x)
        return jnp.broadcast_to(pooled, x.shape)

    objective = nl.supervised(forward, nl.losses.half_squared_error)
    estimator = nl.reinforce(objective, units=units.bernoulli())
    with pytest.raises(ValueError, match="layer 'pooled' must have its 8 examples along the first axis"):
        jax.eval_shape(estimator.estimate, KEY, (), jnp.ones((3, 3)), (jnp.ones((4, 3)), jnp.ones((4, 3))))


def test_half_precision_learns_in_its_own_dtype():
    problem = problems.chain()
    params, inputs = jax.tree.map(lambda w: np.asarray(w).astype(jnp.bfloat16), (problem.params, problem.batch[0]))
    estimate = nl.reinforce(problem.objective, units=units.gaussian(sigma=0.5)).estimate
    grads, _, _ = jax.eval_shape(estimate, KEY, (), params, (inputs, problem.batch[1]))
    chex.assert_trees_all_equal_shapes_and_dtypes(grads, params)


def test_a_layer_draws_its_sample_once():
    """Its axons and its eligibility are of one draw: one in each run of the loop, and one of the layer after it."""
    p = problems.recurrent()
    estimator = nl.reinforce(p.objective, units=units.gaussian(sigma=0.1), num_samples=2)
    traced = jax.make_jaxpr(estimator.estimate)(KEY, (), p.params, p.batch)
    draws = lambda program: sum(equation.primitive.name == "random_bits" for equation in equations(program))
    in_loops = [draws(e.params["jaxpr"]) for e in equations(traced) if e.primitive.name == "scan"]
    assert set(in_loops) == {1}
    assert draws(traced) == len(in_loops) + 1
