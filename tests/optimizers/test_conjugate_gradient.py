"""Nonlinear conjugate gradients: the algebra on quadratics, the fallbacks, the search."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nl_jax as nl
from benchmarks.functions import powell_singular
from nl_jax import optimizers
from tests import problems

pytestmark = pytest.mark.slow

BETAS = {
    f.__name__: f
    for f in (
        optimizers.fletcher_reeves,
        optimizers.polak_ribiere,
        optimizers.hestenes_stiefel,
        optimizers.dai_yuan,
    )
}
RNG = np.random.default_rng(0)
N = 6
A = (lambda q: q @ np.diag([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) @ q.T)(np.linalg.qr(RNG.normal(size=(N, N)))[0])
B, X0 = RNG.normal(size=(2, N))


@functools.cache
def exact_search(beta, steps=N):
    """x_n, r_n, p_n and β_n of conjugate gradients on ½ xAx − Bx with exact line search (seed 003 eq. 30)."""
    cg = optimizers.scale_by_conjugate_gradient(beta, nonneg=False, restart=None)

    def step(at, _):
        state, x = at
        g = A @ x - B
        previous = state
        updates, state = cg.update(g, state)
        p = -updates
        kept = beta(g, previous.gradient, previous.direction)
        return (state, x - (p @ g) / (p @ A @ p) * p), (x, -g, p, kept)

    run = jax.jit(lambda x: jax.lax.scan(step, (cg.init(x), x), length=steps))
    (_, x), path = jax.tree.map(np.asarray, run(jnp.asarray(X0)))
    return path, x


@pytest.mark.parametrize("name", BETAS)
def test_n_steps_on_a_quadratic(name, x64):
    """Residuals orthogonal (eq. 29–31), directions conjugate (eq. 25), β = r_{n+1}²/r_n² (eq. 33), the end at n."""
    (_, r, p, beta), x = exact_search(BETAS[name])
    np.testing.assert_allclose(x, np.linalg.solve(A, B), rtol=1e-11, atol=1e-12)
    gram = r @ r.T / np.outer(*[np.linalg.norm(r, axis=1)] * 2)
    np.testing.assert_allclose(gram, np.eye(N), atol=1e-10)
    energies = p @ A @ p.T
    np.testing.assert_allclose(energies, np.diag(np.diag(energies)), atol=1e-9 * energies.max())
    squares = (r**2).sum(axis=1)
    np.testing.assert_allclose(beta[1:], squares[1:] / squares[:-1], rtol=1e-9)


def test_the_four_agree(x64):
    paths = {name: exact_search(beta)[0] for name, beta in BETAS.items()}
    first = paths.pop("fletcher_reeves")
    for other in paths.values():
        np.testing.assert_allclose(other[0], first[0], rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(other[3][1:4], first[3][1:4], rtol=1e-12)


def test_the_four_differ_off_the_line_minimum(x64):
    """Eq. 36 to the letter, with r = −g: where nothing is orthogonal, four different numbers."""
    g, previous, p = RNG.normal(size=(3, 4))
    r, r_old = -g, -previous
    expected = {
        "fletcher_reeves": r @ r / (r_old @ r_old),
        "polak_ribiere": r @ (r - r_old) / (r_old @ r_old),
        "hestenes_stiefel": -r @ (r - r_old) / (p @ (r - r_old)),
        "dai_yuan": -r @ r / (p @ (r - r_old)),
    }
    for name, value in expected.items():
        tree = lambda x: {"a": jnp.asarray(x[:1]), "b": jnp.asarray(x[1:])}
        np.testing.assert_allclose(BETAS[name](tree(g), tree(previous), tree(p)), value, rtol=1e-12)


def directions(gradients, **settings):
    cg = optimizers.scale_by_conjugate_gradient(**settings)
    state, out = cg.init(jnp.asarray(gradients[0])), []
    for g in gradients:
        updates, state = cg.update(jnp.asarray(g), state)
        out.append((-np.asarray(updates), bool(state.restarted)))
    return out


def test_fallbacks(x64):
    first, second = np.array([1.0, 0.0, 0.0]), np.array([0.1, 2.0, 0.0])
    fr = {"beta": optimizers.fletcher_reeves}
    bent = -second - 4.01 * first
    np.testing.assert_allclose(directions([first, second], **fr)[1][0], bent)
    # gradients far from orthogonal
    assert directions([first, np.array([2.0, 1.0, 0.0])], **fr)[1][1]
    assert not directions([first, np.array([2.0, 1.0, 0.0])], restart=None, **fr)[1][1]
    # a direction that would climb
    climbs = np.array([-1.0, 0.1, 0.0])
    p, restarted = directions([first, climbs], restart=None, **fr)[1]
    assert restarted
    np.testing.assert_array_equal(p, -climbs)
    # a negative β, by Polak and Ribière, is 0 or itself
    shorter = np.array([0.5, 0.1, 0.0])
    np.testing.assert_array_equal(directions([first, shorter], restart=None)[1][0], -shorter)
    unclipped = directions([first, shorter], restart=None, nonneg=False)[1][0]
    np.testing.assert_allclose(unclipped, -shorter + 0.24 * first, rtol=1e-12)
    # a β that is a Python number
    fixed = directions([first, second], beta=lambda *of: 0.5, nonneg=False)[1][0]
    np.testing.assert_allclose(fixed, -second - 0.5 * first)
    # the same gradient again, as after a failed search: y = 0, nothing to divide by
    for name, beta in BETAS.items():
        p, restarted = directions([first, first], beta=beta)[1]
        assert restarted, name
        np.testing.assert_array_equal(p, -first)
    # at a minimum: no NaN
    np.testing.assert_array_equal(directions([first, 0 * first, 0 * first])[2][0], [0, 0, 0])
    # every other step, whatever the gradients
    orthogonal = list(2.0 ** np.arange(3)[:, None] * np.eye(3))
    assert [r for _, r in directions(orthogonal, restart_every=2)] == [True, False, True]
    assert [r for _, r in directions(orthogonal)] == [True, False, False]


def search(function, start, steps, optimizer=None):
    """Values along the way, by optax's own calling convention, and trials of each line search."""
    optimizer = optimizers.conjugate_gradient() if optimizer is None else optimizer
    value_and_grad = optax.value_and_grad_from_state(function)

    def step(at, _):
        x, state = at
        value, grad = value_and_grad(x, state=state)
        updates, state = optimizer.update(grad, state, x, value=value, grad=grad, value_fn=function)
        slope = updates @ jax.grad(function)(x + updates) / (updates @ grad)
        return (x + updates, state), (value, optax.tree.get(state, "num_linesearch_steps"), slope)

    return jax.lax.scan(step, (start, optimizer.init(start)), length=steps)


@pytest.mark.usefixtures("lenient")
def test_lines_are_searched_and_lanes_of_vmap_are_as_alone(x64):
    starts = jnp.array([[3.0, -1.0, 0.0, 1.0], [1.0, 2.0, 3.0, 4.0]])
    run = lambda start: search(powell_singular, start, 12)
    (x, _), (values, trials, slopes) = jax.jit(jax.vmap(run))(starts)
    alone = jax.jit(run)
    for lane, start in enumerate(starts):
        (x_alone, _), (values_alone, trials_alone, _) = alone(start)
        np.testing.assert_allclose(values[lane], values_alone, rtol=1e-6)
        np.testing.assert_allclose(x[lane], x_alone, rtol=1e-3, atol=1e-6)
        np.testing.assert_array_equal(trials[lane], trials_alone)
    assert np.all(np.diff(values, axis=1) < 0)
    assert np.all(np.abs(slopes) <= 0.05 + 1e-9)  # the curvature condition, at every step
    assert np.mean(trials) < 8


@pytest.mark.usefixtures("lenient")
def test_a_search_that_fails_does_not_end_the_run():
    """A function of infinite value beside a narrow domain: no step may be found, a later one must."""

    def walled(x):
        return jnp.where(jnp.abs(x[0]) < 1, jnp.sum(x**2), jnp.nan)

    optimizer = optimizers.conjugate_gradient(max_linesearch_steps=2)
    (x, _), _ = jax.jit(lambda x: search(walled, x, 30, optimizer))(jnp.array([0.9, 500.0]))
    assert np.all(np.isfinite(x))
    assert walled(x) < 1


@pytest.mark.usefixtures("lenient")
def test_where_nothing_descends_it_stays():
    """A gradient of the wrong sign: no step is one, where optax's search alone takes one that climbs."""

    @jax.custom_vjp
    def misled(x):
        return jnp.sum(x**2)

    misled.defvjp(lambda x: (jnp.sum(x**2), x), lambda x, weight: (-2 * weight * x,))
    start, few = jnp.array([1.0, 2.0]), optimizers.conjugate_gradient(max_linesearch_steps=3)
    (x, state), (values, _, _) = jax.jit(lambda x: search(misled, x, 3, few))(start)
    np.testing.assert_array_equal(x, start)
    np.testing.assert_array_equal(values, [5, 5, 5])
    np.testing.assert_array_equal(optax.tree.get(state, "grad"), -2 * start)
    zoom = optax.scale_by_zoom_linesearch(3, curv_rtol=0.05)
    alone = optax.chain(optimizers.scale_by_conjugate_gradient(), optax.scale(-1), zoom)
    (x, _), _ = jax.jit(lambda x: search(misled, x, 1, alone))(start)
    assert misled(x) > 5


def test_one_bad_search_does_not_make_the_next_ones_microscopic():
    """½ ‖w‖², where every exact step is of length 1: a gradient of the wrong sign, then right ones again."""
    optimizer = optimizers.conjugate_gradient()
    f = lambda w: 0.5 * jnp.sum(w**2)

    @jax.jit
    def step(state, w, sign):
        return optimizer.update(sign * w, state, w, value=f(w), grad=sign * w, value_fn=f)

    right, other = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
    _, state = step(optimizer.init(right), right, 1.0)
    updates, state = step(state, other, -1.0)
    assert np.linalg.norm(updates) < 1e-3
    for w in (right, other, right):
        updates, state = step(state, w, 1.0)
        assert np.linalg.norm(updates) > 0.5


def test_half_precision_restarts_where_it_would_overflow():
    cg = optimizers.scale_by_conjugate_gradient(optimizers.fletcher_reeves, restart=None)
    first, second = jnp.array([0.1, 0.0], jnp.float16), jnp.array([0.0, 200.0], jnp.float16)
    updates, state = jax.jit(lambda: cg.update(second, cg.update(first, cg.init(first))[1]))()
    np.testing.assert_array_equal(updates, second)
    assert state.restarted


@pytest.mark.usefixtures("lenient")
def test_a_part_of_the_parameters_is_not_a_line():
    problem = problems.chain()
    kinds = lambda params: jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key, params)
    parts = {"weight": optimizers.conjugate_gradient(), "bias": optax.adam(0.01)}
    learner = nl.learner(nl.backprop(problem.objective), optax.multi_transform(parts, kinds))
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"take nl\.alternating with a stage for each part"):
        jax.eval_shape(learner.step, key, learner.init(key, problem.params), problem.batch)


BAD = [
    ({"beta": "polak_ribiere"}, "beta must take 3 arguments"),
    ({"restart": 0}, "restart must be a finite Python number above 0, got 0"),
    ({"restart_every": 0}, "restart_every must be a whole number of at least 1, got 0"),
    ({"curv_rtol": 1.0}, "curv_rtol must be below 1, got 1.0"),
    ({"max_linesearch_steps": 0}, "max_linesearch_steps must be a whole number of at least 1, got 0"),
]


@pytest.mark.parametrize(("settings", "message"), BAD, ids=lambda x: next(iter(x)) if isinstance(x, dict) else "")
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        optimizers.conjugate_gradient(**settings)


def test_a_line_cannot_be_searched_without_a_function():
    optimizer, w = optimizers.conjugate_gradient(), jnp.ones(2)
    with pytest.raises(ValueError, match=r"update needs params, value, grad and value_fn"):
        optimizer.update(w, optimizer.init(w), w)
