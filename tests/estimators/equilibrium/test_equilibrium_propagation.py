"""The estimates are the gradient of the loss at rest, up to what the finite difference leaves."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nl_jax as nl
from nl_jax.propagation import feedforward
from tests import problems

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)
GAMMA = 0.7  # feedback that matters
STENCILS = {
    "one_sided": lambda beta: nl.nudges.Nudge((beta,)),
    "symmetric": lambda beta: nl.nudges.Nudge((beta, -beta)),
    "circle": lambda beta: nl.nudges.Nudge(tuple(beta * turn for turn in (1, 1j, -1, -1j))),
}


def squared_error(outputs, targets):
    return jnp.sum((outputs - targets) ** 2, axis=1) / 2


def distance(a, b):
    return float(sum(np.sum((x - y) ** 2) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)) ** 0.5)


class Case:
    """A smooth network whose two hidden layers are reached by feedback, and the gradient of its loss at rest."""

    def __init__(self):
        network = nl.mlp([3, 4, 3, 2], activation=nl.activations.tanh())
        self.objective = nl.supervised(network.apply, squared_error)
        self.params = jax.jit(lambda key: jax.tree.map(lambda w: 0.6 * w + 0.1, network.init(key, jnp.float64)))(KEY)
        rng = np.random.default_rng(0)
        self.batch = rng.normal(size=(5, 3)), rng.normal(size=(5, 2))
        rest = nl.at_equilibrium(self.objective, feedback_strength=GAMMA, tolerance=1e-14)
        self.at_rest = jax.jit(jax.value_and_grad(lambda params: jnp.mean(rest(params, self.batch))))
        self.exact = self.at_rest(self.params)[1]

        self.estimators = {name: jax.jit(functools.partial(self._estimate, make)) for name, make in STENCILS.items()}

    def _estimate(self, stencil, beta):
        settings = {"feedback_strength": GAMMA, "num_steps": 1000, "tolerance": 1e-14}
        estimator = nl.equilibrium_propagation(self.objective, nudge=stencil(beta), **settings)
        return estimator.estimate(KEY, (), self.params, self.batch)

    def estimate(self, stencil, beta):
        """(distance to the gradient, the estimate, its info)."""
        grads, _, info = self.estimators[stencil](np.asarray(beta))
        return distance(grads, self.exact), grads, info


@pytest.fixture(scope="module")
def case():
    with jax.enable_x64(True):
        return Case()


def test_implicit_derivative_is_that_of_the_loss_at_rest(case, x64):
    """By central differences along the parameters themselves."""
    h = 1e-5
    scaled = lambda factor: jax.tree.map(lambda w: factor * np.asarray(w), case.params)
    up, down = (case.at_rest(scaled(factor))[0] for factor in (1 + h, 1 - h))
    products = jax.tree.map(lambda w, g: np.sum(np.asarray(w) * np.asarray(g)), case.params, case.exact)
    np.testing.assert_allclose((up - down) / (2 * h), sum(jax.tree.leaves(products)), rtol=1e-8)
    at_once = jax.jit(case.objective)(case.params, case.batch)
    assert abs(case.at_rest(case.params)[0] - np.mean(at_once)) > 0.01


@pytest.mark.parametrize(("stencil", "order"), [("one_sided", 1), ("symmetric", 2), ("circle", 4)])
def test_error_falls_with_beta_to_the_order_of_the_stencil(case, stencil, order, x64):
    beta = 0.2 + 0j if stencil == "circle" else 0.02
    (coarse, *_), (fine, *_) = (case.estimate(stencil, b) for b in (beta, beta / 2))
    np.testing.assert_allclose(np.log2(coarse / fine), order, atol=0.05 * order)


def test_certificate_says_how_far_rest_and_gradient_are(case, x64):
    """The multipliers are the adjoint's, so that ∂L/∂x falls as the estimate's own error does, four times."""
    (_, grads, coarse), (_, _, fine) = (case.estimate("symmetric", beta) for beta in (0.02, 0.01))
    assert max(jax.tree.leaves(fine.residuals.primal)) < 1e-14
    for layer, residual in fine.residuals.dual.items():
        np.testing.assert_allclose(coarse.residuals.dual[layer] / residual, 4, rtol=0.01)
    norms = jax.tree.map(lambda g: np.sqrt(np.sum(g**2)), grads)
    chex.assert_trees_all_close(coarse.residuals.gradient, norms)
    np.testing.assert_allclose(fine.loss, case.at_rest(case.params)[0], rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("skip", nl.equilibrium_propagation),
        ("convolution", nl.equilibrium_propagation),
        ("tied", nl.contrastive_hebbian),
    ],
)
def test_any_network_has_a_way_back(name, make, x64):
    """With feedback of a hundredth the estimates are backprop's up to about as much."""
    problem = problems.PROBLEMS[name]()
    params = jax.tree.map(lambda w: np.asarray(w) / 2 if w.ndim > 1 else w, problem.params)
    estimator = make(problem.objective, feedback_strength=0.01)

    @jax.jit
    def estimates(params):
        return [e.estimate(KEY, (), params, problem.batch)[0] for e in (estimator, nl.backprop(problem.objective))]

    estimated, exact = estimates(params)
    size = distance(exact, jax.tree.map(np.zeros_like, exact))
    assert 1e-4 * size < distance(estimated, exact) < 0.02 * size


def grown(factor):
    """A chain of linear layers, whose feedback is positive: no rest where it exceeds 1."""
    network = nl.mlp([2, 2, 2], activation=nl.activations.identity(), bias=False)
    objective = nl.supervised(network.apply, nl.losses.half_squared_error)
    eye, ones = factor * np.eye(2, dtype=np.float32), np.ones((3, 2), np.float32)
    return objective, {name: {"weight": eye} for name in ("hidden1", "output")}, (ones, ones)


@pytest.mark.parametrize("make", [nl.equilibrium_propagation, nl.contrastive_hebbian])
def test_divergence_names_the_rate(make):
    objective, params, batch = grown(20.0)
    estimate = make(objective, rate=0.9, num_steps=50).estimate
    if make is nl.contrastive_hebbian:  # the cheaper one, for what is not compiled
        with pytest.raises(
            FloatingPointError, match=r"diverged at rate=0\.9: choose a smaller one, or smaller weights"
        ):
            estimate(KEY, (), params, batch)
    grads, _, info = jax.jit(estimate)(KEY, (), params, batch)
    assert np.isnan(info.loss)
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(grads))
    with pytest.raises(FloatingPointError, match=r"diverged at rate=0\.9"):
        nl.raise_if_failed(info.failures)


def test_a_program_that_finds_no_rest_raises_or_is_nan():
    objective, params, batch = grown(20.0)
    losses = nl.at_equilibrium(objective, rate=0.9, num_steps=50)
    for run in (losses, jax.grad(lambda *at: jnp.mean(losses(*at)))):
        with pytest.raises(
            FloatingPointError, match=r"diverged at rate=0\.9: choose a smaller one, or smaller weights"
        ):
            run(params, batch)
    found = jax.jit(lambda *at: (losses(*at), jax.grad(lambda *at: jnp.mean(losses(*at)))(*at)))(params, batch)
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(found))


def test_a_gradient_whose_own_iteration_diverges_is_nan():
    """A network without input rests at once, where it would not stay: the way back from there grows."""
    objective, params, (inputs, targets) = grown(20.0)
    losses = nl.at_equilibrium(objective, rate=0.9, num_steps=50)
    run = jax.jit(jax.value_and_grad(lambda *at: jnp.mean(losses(*at))))
    loss, grads = run(params, (0 * inputs, targets))
    np.testing.assert_array_equal(loss, 1.0)
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(grads))


def gain_in_activation(params, x, propagate=feedforward):
    return propagate("only", lambda w, x: x @ w, lambda nu: params["gain"] * nu, params["weight"], x)


def weights_in_connection(params, x, propagate=feedforward):
    return propagate("only", lambda _, x: x @ params["weight"], jnp.tanh, (), x)


@pytest.mark.parametrize("make", [nl.equilibrium_propagation, nl.contrastive_hebbian])
@pytest.mark.parametrize(
    ("forward", "complaint"),
    [
        (gain_in_activation, "the activation of layer 'only' holds parameters"),
        (weights_in_connection, "no layer has parameters"),
    ],
)
def test_what_has_no_energy_here_is_refused(make, forward, complaint):
    objective = nl.supervised(forward, nl.losses.half_squared_error)
    params = {"weight": jnp.eye(2), "gain": jnp.float32(2)}
    with pytest.raises(ValueError, match=complaint):
        make(objective).estimate(KEY, (), params, (jnp.ones((3, 2)),) * 2)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"nudge": 0.1}, r"nudge must be one of nl\.nudges"),
        ({"nudge": nl.nudges.Nudge((0.1, 0.1))}, "all different and not 0"),
        ({"nudge": nl.nudges.Nudge((0.1, math.nan))}, "nudge must have finite strengths"),
        ({"feedback_strength": 0.0}, "feedback_strength must be a finite Python number above 0"),
        ({"rate": 1.5}, "rate must be at most 1"),
        ({"num_steps": 0}, "num_steps must be a whole number"),
        ({"tolerance": 1.0}, "tolerance must be below 1"),
    ],
)
def test_bad_settings_are_refused(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        nl.equilibrium_propagation(grown(1.0)[0], **settings)


def test_feedback_that_is_lost_is_refused():
    """Of 45 layers the first receives γ^44: beyond float32's precision below 0.696, beyond its range below 0.161."""

    def forward(params, x, propagate=feedforward):
        step = lambda h, _, propagate: (propagate("layer", lambda w, h: h * w, jnp.tanh, params, h), None)
        h, _ = nl.scan("depth", step, x, None, propagate, length=44)
        return propagate("output", lambda w, h: h * w, lambda x: x, params, h)

    objective = nl.supervised(forward, nl.losses.half_squared_error)
    params, batch = jnp.float32(0.1), (jnp.ones((2, 2)),) * 2
    for make in (nl.equilibrium_propagation, nl.contrastive_hebbian):
        estimate = lambda gamma, make=make: make(objective, feedback_strength=gamma).estimate(KEY, (), params, batch)
        for gamma, bound in (
            (0.6, r"at least 0\.697"),
            (jnp.float32(0.6), r"at least 0\.697"),
            (1.5, r"at most 1\.436"),
        ):
            with pytest.raises(
                ValueError, match=rf"feedback_strength=.* 45 layers.*precision of its axons; choose {bound}"
            ):
                estimate(gamma)
        jax.eval_shape(lambda estimate=estimate: [estimate(0.697), estimate(1.436)])
        jax.eval_shape(estimate, jnp.float32(0.1))  # its value is not known while tracing
    at_rest = lambda gamma: nl.at_equilibrium(objective, feedback_strength=gamma)(params, batch)
    with pytest.raises(ValueError, match=r"range of its axons; choose at least 0\.156"):
        at_rest(0.1)
    jax.eval_shape(lambda: at_rest(0.156))
