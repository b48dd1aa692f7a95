"""Multiplier methods and ADMM end at backpropagation's gradient, and say how far they are from it."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nl_jax as nl
from nl_jax.propagation import feedforward
from tests import problems

KEY = jax.random.key(0)

primal_dual = functools.partial(nl.primal_dual, step_size=0.2, multiplier_step_size=0.2, tolerance=0.0)
# Curved units under large weights: a large penalty, and patience.
stiff = functools.partial(primal_dual, step_size=0.005, multiplier_step_size=20.0, damping=20.0, num_steps=6000)
extragradient = functools.partial(nl.extragradient, step_size=0.15, damping=1.0, num_steps=1500, tolerance=0.0)
augmented_lagrangian = functools.partial(nl.augmented_lagrangian, num_outer=100, tolerance=0.0)
admm = functools.partial(nl.admm, tolerance=0.0)
descending = functools.partial(admm, solve=nl.layer_solves.gradient_descent(step_size=0.2, num_steps=5))


def _flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (primal_dual, problems.chain),
        (stiff, problems.closed_over),
        (extragradient, problems.skip),
        (augmented_lagrangian, problems.tied),
        (admm, problems.one_layer),
        (descending, problems.chain),
    ],
)
def test_ends_at_the_gradient_from_either_start(make, problem, x64):
    problem = problem()

    @jax.jit
    def run():
        at = KEY, (), problem.params, problem.batch
        found = [
            make(problem.objective, start=s).estimate(*at)
            for s in (nl.initial_activity.feedforward, nl.initial_activity.zeros)
        ]
        return jax.grad(lambda p: jnp.mean(problem.objective(p, problem.batch)))(problem.params), found

    exact, found = run()
    for grads, _, info in found:
        assert np.linalg.norm(_flat(grads) - _flat(exact)) < 1e-8 * np.linalg.norm(_flat(exact))
        assert max(jax.tree.leaves((info.residuals.primal, info.residuals.dual))) < 1e-8
        norms = jax.tree.map(lambda leaf: np.sqrt(np.sum(np.square(np.asarray(leaf)))), grads)
        chex.assert_trees_all_close(info.residuals.gradient, norms, rtol=1e-12)


SHORT = {
    "primal_dual": functools.partial(primal_dual, num_steps=4),
    "extragradient": functools.partial(extragradient, num_steps=4),
    "augmented_lagrangian": functools.partial(augmented_lagrangian, num_outer=2, num_inner=3),
    "admm": functools.partial(admm, num_steps=2, solve=nl.layer_solves.gauss_newton(2)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_examples_do_not_see_one_another(name, x64):
    """Far from convergence the estimate of a batch is the mean of its examples' own."""
    objective, params, batch, _ = problems.one_layer()
    estimate = jax.vmap(SHORT[name](objective).estimate, in_axes=(None, None, None, 0))
    mean = lambda params: jnp.mean(objective(params, batch))

    @jax.jit
    def run():
        together = SHORT[name](objective).estimate(KEY, (), params, batch)[0]
        alone = estimate(KEY, (), params, jax.tree.map(lambda leaf: leaf[:, None], batch))[0]
        return together, jax.tree.map(lambda grads: jnp.mean(grads, axis=0), alone), jax.grad(mean)(params)

    together, alone, exact = run()
    chex.assert_trees_all_close(together, alone, rtol=1e-12)
    assert np.linalg.norm(_flat(together) - _flat(exact)) > 0.01 * np.linalg.norm(_flat(exact))


PER_STEP = {
    "primal_dual": lambda o, K: primal_dual(o, num_steps=K),
    "extragradient": lambda o, K: nl.extragradient(o, num_steps=K, tolerance=0.0),
    "augmented_lagrangian": lambda o, K: nl.augmented_lagrangian(o, num_outer=K, num_inner=10, tolerance=0.0),
}


@pytest.mark.parametrize("name", PER_STEP)
def test_the_error_falls_with_the_number_of_steps(name, x64):
    objective, params, batch, _ = problems.one_layer()

    @jax.jit
    def run():
        found = [PER_STEP[name](objective, K).estimate(KEY, (), params, batch)[0] for K in (8, 16, 32)]
        return found, nl.backprop(objective).estimate(KEY, (), params, batch)[0]

    found, exact = run()
    errors = [np.linalg.norm(_flat(grads) - _flat(exact)) / np.linalg.norm(_flat(exact)) for grads in found]
    assert errors[1] < errors[0] / 2
    assert errors[2] < errors[1] / 2


def test_admm_s_error_on_one_layer(x64):
    """Of ½‖x − y‖² subject to x = p each sweep leaves 1/(1 + μ): λ ← λ + μ r where x − y + λ + μ r = 0."""
    objective, params, batch, _ = problems.one_layer()
    estimator = nl.admm(objective, penalty=3.0, solve=nl.layer_solves.gauss_newton(1), num_steps=5, tolerance=0.0)
    at = KEY, (), params, batch
    found, exact = jax.jit(lambda: (estimator.estimate(*at)[0], nl.backprop(objective).estimate(*at)[0]))()
    chex.assert_trees_all_close(found, jax.tree.map(lambda g: (1 - 4.0**-5) * g, exact), rtol=1e-12)


def test_multipliers_are_reported_as_axons_feel_them(x64):
    """One step from the feedforward run moves one layer by −η ∂C/∂x, which it feels as λ = −η(c + τ) ∂C/∂x."""
    problem = problems.one_layer()
    at = KEY, (), problem.params, problem.batch
    once = primal_dual(problem.objective, step_size=0.1, multiplier_step_size=0.3, damping=0.5, num_steps=1)
    found, exact = jax.jit(lambda: (once.estimate(*at)[0], nl.backprop(problem.objective).estimate(*at)[0]))()
    chex.assert_trees_all_close(found, jax.tree.map(lambda g: 0.1 * (0.5 + 0.3) * g, exact), rtol=1e-12)


def test_tolerance_stops(x64):
    problem = problems.one_layer()
    at = KEY, (), problem.params, problem.batch
    rough, fine = (nl.primal_dual(problem.objective, tolerance=tolerance, num_steps=1000) for tolerance in (1e-1, 1e-6))
    first, last = jax.jit(lambda: [e.estimate(*at)[2] for e in (rough, fine)])()
    assert 2 < first.evaluations < last.evaluations < 2 + 2 * 1000
    assert last.residuals.primal["output"] < 1e-4 * first.residuals.primal["output"]


def test_divergence_names_the_step_size():
    problem = problems.one_layer()
    estimate = jax.jit(nl.primal_dual(problem.objective, step_size=2.0).estimate)
    grads, _, info = estimate(KEY, (), problem.params, problem.batch)
    assert np.isnan(grads["output"]["weight"]).all()
    with pytest.raises(FloatingPointError, match=r"diverged at step_size=2\.0: choose a smaller one"):
        nl.raise_if_failed(info.failures)


@pytest.mark.slow
def test_what_mixes_examples_is_refused_by_admm_alone():
    problem = problems.batch_normed()
    at = KEY, (), problem.params, problem.batch
    with pytest.raises(ValueError, match="layer 'low' mixes examples, and admm solves for each alone: use primal_dual"):
        jax.eval_shape(nl.admm(problem.objective).estimate, *at)
    jax.eval_shape(nl.primal_dual(problem.objective).estimate, *at)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda o: nl.primal_dual(o, step_size=0.0), "step_size must be a finite Python number above 0"),
        (lambda o: nl.primal_dual(o, multiplier_step_size=-1.0), "multiplier_step_size must be"),
        (lambda o: nl.primal_dual(o, damping=-1.0), "damping must be a finite Python number of at least 0"),
        (lambda o: nl.primal_dual(o, num_steps=0), "num_steps must be a whole number of at least 1"),
        (lambda o: nl.extragradient(o, step_size=-0.1), "step_size must be"),
        (lambda o: nl.extragradient(o, damping=-0.1), "damping must be"),
        (lambda o: nl.extragradient(o, tolerance=1.0), "tolerance must be below 1"),
        (lambda o: nl.augmented_lagrangian(o, penalty=0.0), "penalty must be"),
        (lambda o: nl.augmented_lagrangian(o, num_inner=0), "num_inner must be"),
        (lambda o: nl.augmented_lagrangian(o, num_outer=0), "num_outer must be"),
        (lambda o: nl.admm(o, penalty=-1.0), "penalty must be"),
        (
            lambda o: nl.primal_dual(o, start=None),
            "start must take one argument, got None: choose nl.initial_activity.feedforward",
        ),
        (lambda o: nl.augmented_lagrangian(o, optimizer=0.1), "optimizer must be an optax optimizer"),
        (lambda o: nl.admm(o, solve=nl.layer_solves.gauss_newton), "solve must be a LayerSolve such as nl.layer_solv"),
        (lambda o: nl.layer_solves.gauss_newton(0), "num_steps must be"),
        (lambda o: nl.layer_solves.gradient_descent(step_size=0.0), "step_size must be"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(problems.one_layer().objective)


@pytest.mark.parametrize("make", [nl.primal_dual, nl.predictive_coding])
def test_a_start_that_forgets_a_layer_is_refused(make):
    problem = problems.skip()
    estimate = make(problem.objective, start=lambda axons: {"high": axons["high"]}).estimate
    with pytest.raises(ValueError, match=r"start must return axons of the layers.*got {'high': 'float32\[6, 4\]'}"):
        jax.eval_shape(estimate, KEY, (), problem.params, problem.batch)


MAKES = {
    "lagrangian_backprop": nl.lagrangian_backprop,
    "fixed_prediction": functools.partial(nl.fixed_prediction, rate=np.float64(0.5)),
    "zero_divergence": nl.zero_divergence,
    "predictive_coding": nl.predictive_coding,
    "error_predictive_coding": nl.error_predictive_coding,
    "auxiliary_coordinates": nl.auxiliary_coordinates,
    "primal_dual": functools.partial(nl.primal_dual, step_size=np.float64(0.2)),
    "extragradient": functools.partial(nl.extragradient, step_size=np.float64(0.2)),
    "augmented_lagrangian": functools.partial(nl.augmented_lagrangian, penalty=np.float64(5)),
    "admm": functools.partial(nl.admm, penalty=np.float64(1)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKES)
def test_layers_may_compute_in_different_precisions(name, x64):
    """Half precision below, float32 above, settings of numpy's float64: nothing is promoted on the way."""

    def forward(params, x, propagate=feedforward):
        halved = lambda w, x: x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16)
        hidden = propagate("hidden", halved, jnp.tanh, params["hidden"], x)
        return propagate("output", lambda w, x: x.astype(jnp.float32) @ w, lambda nu: nu, params["output"], hidden)

    objective = nl.supervised(forward, nl.losses.half_squared_error)
    shapes = {"hidden": (4, 3), "output": (3, 2)}
    params = {layer: jax.ShapeDtypeStruct(shape, jnp.float32) for layer, shape in shapes.items()}
    batch = jax.ShapeDtypeStruct((5, 4), jnp.float32), jax.ShapeDtypeStruct((5, 2), jnp.float32)
    grads, _, _ = jax.eval_shape(MAKES[name](objective).estimate, KEY, (), params, batch)
    chex.assert_trees_all_equal_shapes_and_dtypes(grads, params)


def test_gauss_newton_stops_at_rounding():
    """More steps than units: once all is solved there is nothing to divide by."""
    A = np.random.default_rng(0).normal(size=(200, 2, 2)).astype(np.float32)

    @jax.jit
    @jax.vmap
    def solved(A):
        minimise = nl.layer_solves.gauss_newton(40).minimise
        return minimise(lambda x: 0.005 * jnp.sum(x**2), lambda x: (x - 1e-3, A @ x), 0.05, jnp.zeros(2))

    expected = np.linalg.solve(0.06 * np.eye(2) + 0.05 * np.swapaxes(A, 1, 2) @ A, np.full((200, 2, 1), 5e-5))
    np.testing.assert_allclose(solved(A), expected[..., 0], rtol=1e-4, atol=1e-8)


def test_gauss_newton_is_exact_for_linear_layers_and_quadratic_losses(x64):
    """argmin ½(x − y)ᵀH(x − y) + μ/2 (‖x − p‖² + ‖Ax − q‖²), in as many steps as there are units."""
    y, p, q = jnp.array([1.0, -2.0, 0.5]), jnp.array([0.3, 0.1, -1.0]), jnp.array([2.0, -1.0])
    A, H, mu = jnp.array([[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]]), jnp.diag(jnp.array([1.0, 0.5, 2.0])), 0.7

    @jax.jit
    def solved():
        loss = lambda x: 0.5 * (x - y) @ H @ (x - y)
        return nl.layer_solves.gauss_newton(3).minimise(loss, lambda x: (x - p, A @ x - q), mu, jnp.zeros(3))

    expected = np.linalg.solve(H + mu * (np.eye(3) + A.T @ A), H @ y + mu * (p + A.T @ q))
    np.testing.assert_allclose(solved(), expected, rtol=1e-12)
