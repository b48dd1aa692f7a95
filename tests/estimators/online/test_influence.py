"""rtrl, snap, uoro and truncated backpropagation: against the gradient, and against each other."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nl_jax as nl
from nl_jax.evaluation.conformance.calibration import largest_deviation
from nl_jax.evaluation.conformance.subject import keys, sampler
from tests import problems
from tests.equations import equations
from tests.estimators.online import programs

PROGRAMS = {
    "summed": lambda: programs.leaky(),
    "traced": lambda: programs.leaky(summed=False),
    "gated": lambda: programs.gated(),
    "rebound": problems.recurrent,
    "learned_start": problems.learned_start,
}
EXACT = {
    "rtrl": nl.rtrl,
    "snap": functools.partial(nl.snap, order=9),
    "truncated_backprop": functools.partial(nl.truncated_backprop, window=7),
}


def _gradient(problem):
    return jax.grad(lambda params: jnp.mean(problem.objective(params, problem.batch)))(problem.params)


def _estimate(make, problem, key=0):
    estimator = make(problem.objective)
    return jax.jit(estimator.estimate)(jax.random.key(key), (), problem.params, problem.batch)[0]


@pytest.fixture(autouse=True)
def fresh(x64):
    """Programs of float64."""
    programs.leaky.cache_clear()
    programs.gated.cache_clear()


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("name", EXACT)
def test_without_approximation_it_is_backprop_through_time(name, program):
    problem = PROGRAMS[program]()
    chex.assert_trees_all_close(_estimate(EXACT[name], problem), _gradient(problem), rtol=1e-12, atol=1e-13)


def _not_linear(params, x, hidden):
    return programs.connected(params, x, jnp.sin(3 * hidden))


@pytest.mark.parametrize("connection", [programs.connected, _not_linear])
def test_first_order_keeps_each_parameter_on_the_unit_it_feeds(connection):
    """J_t = S ∘ (A J_{t−1} + D) and ∂L_t/∂h_t J_t with whole Jacobians, one example after the other."""
    problem = programs.leaky(connection=connection)
    own, read = problem.params["hidden"], problem.params["output"]

    def step(hidden, params, x):
        nu = connection(params, x[None], hidden[None])[0]
        return 0.7 * hidden + 0.3 * jnp.tanh(nu)

    def of_example(xs, targets):
        hidden = jnp.zeros(3)
        J = jax.tree.map(lambda leaf: jnp.zeros((3, *leaf.shape)), own)
        grads = jax.tree.map(jnp.zeros_like, own)
        for x, target in zip(xs, targets, strict=True):
            A, D = jax.jacobian(step, argnums=(0, 1))(hidden, own, x)
            fed = jax.tree.map(lambda j, d, A=A: jnp.tensordot(A, j, 1) + d, J, D)
            J = jax.tree.map(lambda j: jnp.einsum("k...j,kj->k...j", j, jnp.eye(3)), fed)
            hidden = step(hidden, own, x)
            credit = jax.grad(lambda h, t=target: jnp.sum((programs.affine(read, h[None])[0] - t) ** 2))(hidden)
            grads = jax.tree.map(lambda g, j, c=credit: g + jnp.tensordot(c, j, 1), grads, J)
        return grads

    expected = jax.tree.map(lambda g: g.mean(axis=0), jax.vmap(of_example)(*problem.batch))
    chex.assert_trees_all_close(_estimate(nl.snap, problem)["hidden"], expected, rtol=1e-10)


def test_higher_orders_come_closer():
    problem = programs.leaky()
    flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
    g = flat(_gradient(problem))
    apart = [np.linalg.norm(flat(_estimate(functools.partial(nl.snap, order=n), problem)) - g) for n in (1, 2)]
    assert apart[1] < 1e-10 < 1e-3 < apart[0]  # all units are connected: two steps reach them all


@pytest.mark.parametrize("program", ["summed", "gated"])
def test_uoro_is_unbiased(program):
    problem = PROGRAMS[program]()
    g = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(_gradient(problem))])
    found = sampler(nl.uoro(problem.objective, num_samples=4), problem)(keys(2000), ())
    assert largest_deviation(found, g) < 5
    assert largest_deviation(1.2 * found, g) > 5  # a twin too long
    dropped = sampler(nl.truncated_backprop(problem.objective, window=1), problem)(keys(2), ())
    assert np.linalg.norm(dropped[0] - g) > 0.05 * np.linalg.norm(g)  # there is a past to be learned from


def test_windows_cut_credit_and_nothing_else():
    """By hand: the gradient of each window's losses from its own start, held."""
    problem = programs.leaky()
    xs, targets = programs.by_step(problem)
    expected, hidden = jax.tree.map(jnp.zeros_like, problem.params), jnp.zeros((4, 3))
    for begin in (0, 2, 4):
        part = xs[begin : begin + 2], targets[begin : begin + 2]

        def losses(params, hidden=hidden, part=part):
            loss = 0.0
            for x, target in zip(*part, strict=True):
                hidden = 0.7 * hidden + 0.3 * jnp.tanh(programs.connected(params["hidden"], x, hidden))
                loss = loss + jnp.sum((programs.affine(params["output"], hidden) - target) ** 2, axis=1)
            return jnp.mean(loss), hidden

        grads, hidden = jax.grad(losses, has_aux=True)(problem.params)
        expected = jax.tree.map(jnp.add, expected, grads)
    ours = _estimate(functools.partial(nl.truncated_backprop, window=2), problem)
    chex.assert_trees_all_close(ours, expected, rtol=1e-10)


FORWARD = {
    "rtrl": nl.rtrl,
    "snap": nl.snap,
    "uoro": nl.uoro,
    "truncated_backprop": functools.partial(nl.truncated_backprop, window=10),
}


@pytest.mark.parametrize("name", FORWARD)
def test_neither_memory_nor_equations_grow_with_the_steps(name):
    # Where examples run alone, their inputs are laid out once more.
    copies = 1.5 if name in ("rtrl", "uoro") else 1.0
    few, many = (programs.temporaries(FORWARD[name], steps, copies) for steps in (100, 1000))
    assert 0 < many <= 1.1 * few

    def count(steps):
        problem = programs.leaky(steps)
        return equations(
            FORWARD[name](problem.objective).estimate, jax.random.key(0), (), problem.params, problem.batch
        )

    assert count(30) == count(300)


@pytest.mark.parametrize("name", FORWARD)
def test_eager_jit_and_vmap_agree(name):
    problem = programs.leaky()
    estimate = FORWARD[name](problem.objective).estimate
    at = (), problem.params, problem.batch
    several = jax.random.split(jax.random.key(3), 2)
    one, mapped = jax.jit(estimate)(several[1], *at), jax.jit(jax.vmap(lambda key: estimate(key, *at)))(several)
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[1], mapped), one, rtol=1e-10)
    chex.assert_trees_all_close(estimate(several[1], *at), one, rtol=1e-10)


def test_wrong_settings_are_refused_with_a_remedy():
    problem = programs.leaky()
    with pytest.raises(ValueError, match=r"rtrl: the program has no loop named loop='tim', its loops are 'time': give"):
        _estimate(functools.partial(nl.rtrl, loop="tim"), problem)
    with pytest.raises(ValueError, match="its loops are none"):
        _estimate(nl.rtrl, problems.chain())
    with pytest.raises(ValueError, match="order must be a whole number of at least 1, got 0"):
        nl.snap(problem.objective, order=0)
    with pytest.raises(ValueError, match="window must be a whole number of at least 1, got 0"):
        nl.truncated_backprop(problem.objective, window=0)
    with pytest.raises(ValueError, match=r"loop must be the name of the program's loop over time, .* got 3"):
        nl.rtrl(problem.objective, loop=3)
    with pytest.raises(ValueError, match="uoro needs to reach the layers"):
        nl.uoro(lambda params, batch: batch)
    with pytest.raises(ValueError, match="key must be a typed key"):
        nl.uoro(problem.objective).estimate(jnp.zeros(2, jnp.uint32), (), problem.params, problem.batch)


@pytest.mark.parametrize("name", ["rtrl", "snap"])
def test_examples_that_meet_in_a_layer_are_run_together(name):
    """A layer that subtracts its batch's mean: alone, an example would be left with nothing."""

    def centred(params, x, hidden):
        nu = programs.connected(params, x, hidden)
        return nu - nu.mean(axis=0, keepdims=True)

    centred.mixes_examples = True
    problem = programs.leaky(connection=centred)
    chex.assert_trees_all_close(_estimate(EXACT[name], problem), _gradient(problem), rtol=1e-12, atol=1e-13)
