"""rtrl, snap, uoro and truncated backpropagation: against the gradient, and against each other."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nl_jax as nl
from nl_jax.evaluation.conformance.subject import keys, sampler
from tests import problems
from tests.deviation import largest_deviation
from tests.estimators.online import programs

pytestmark = pytest.mark.slow

PROGRAMS = {
    "summed": lambda: programs.leaky(),
    "traced": lambda: programs.leaky(summed=False),
    "gated": lambda: programs.gated(),
    "rebound": problems.recurrent,
    "learned_start": problems.learned_start,
}
ALL_ORDERS = functools.partial(nl.snap, order=9)
ONE_WINDOW = functools.partial(nl.truncated_backprop, window=7)
# All run programs by forward_credit: each program by rtrl, and by what differs in how its own loop is taken apart.
EXACT = {
    "summed": (nl.rtrl, functools.partial(nl.rtrl, chunk=3), ONE_WINDOW),
    "traced": (nl.rtrl, ONE_WINDOW),
    "gated": (nl.rtrl, ALL_ORDERS, ONE_WINDOW),
    "rebound": (nl.rtrl, ALL_ORDERS),
    "learned_start": (nl.rtrl, ALL_ORDERS, ONE_WINDOW),
}


def _gradient(objective, params, batch):
    return jax.grad(lambda params: jnp.mean(objective(params, batch)))(params)


def _estimates(makes, problem, key=0):
    """The estimates of several estimators without state, and the gradient; compiled together."""

    @jax.jit
    def run(params, batch):
        return [make(problem.objective).estimate(jax.random.key(key), (), params, batch)[0] for make in makes], (
            _gradient(problem.objective, params, batch)
        )

    return run(problem.params, problem.batch)


@pytest.fixture(autouse=True, scope="module")
def fresh():
    """Programs of this module's precision."""
    programs.leaky.cache_clear()
    programs.gated.cache_clear()


@pytest.fixture(autouse=True)
def double(x64):
    """Programs of float64."""


@pytest.mark.parametrize("program", PROGRAMS)
def test_without_approximation_it_is_backprop_through_time(program):
    estimates, exact = _estimates(EXACT[program], PROGRAMS[program]())
    for estimate in estimates:
        chex.assert_trees_all_close(estimate, exact, rtol=1e-12, atol=1e-13)


def test_a_batch_may_hold_what_is_no_example():
    own = programs.leaky()
    objective = lambda params, batch, propagate=nl.propagation.feedforward: (
        batch["scale"].sum() * own.objective(params, batch["examples"], propagate=propagate)
    )
    shared = own._replace(objective=objective, batch={"scale": jnp.ones(2), "examples": own.batch})
    (estimate,), exact = _estimates([nl.rtrl], shared)
    chex.assert_trees_all_close(estimate, exact, rtol=1e-12, atol=1e-13)


def _not_linear(params, x, hidden):
    return programs.connected(params, x, jnp.sin(3 * hidden))


def _first_order(connection, params, batch):
    """J_t = S ∘ (A J_{t−1} + D) and ∂L_t/∂h_t J_t with whole Jacobians, one example after the other."""
    own, read = params["hidden"], params["output"]

    def step(hidden, params, x):
        nu = connection(params, x[None], hidden[None])[0]
        return 0.7 * hidden + 0.3 * jnp.tanh(nu)

    def of_step(carry, slices):
        (hidden, J, grads), (x, target) = carry, slices
        A, D = jax.jacobian(step, argnums=(0, 1))(hidden, own, x)
        fed = jax.tree.map(lambda j, d: jnp.tensordot(A, j, 1) + d, J, D)
        J = jax.tree.map(lambda j: jnp.einsum("k...j,kj->k...j", j, np.eye(3)), fed)
        hidden = step(hidden, own, x)
        credit = jax.grad(lambda h: jnp.sum((programs.affine(read, h[None])[0] - target) ** 2))(hidden)
        return (hidden, J, jax.tree.map(lambda g, j: g + jnp.tensordot(credit, j, 1), grads, J)), None

    def of_example(*example):
        J = jax.tree.map(lambda leaf: jnp.zeros((3, *leaf.shape)), own)
        start = jnp.zeros(3), J, jax.tree.map(jnp.zeros_like, own)
        return jax.lax.scan(of_step, start, example)[0][2]

    return jax.tree.map(lambda g: g.mean(axis=0), jax.vmap(of_example)(*batch))


@pytest.mark.parametrize("connection", [programs.connected, _not_linear])
def test_first_order_keeps_each_parameter_on_the_unit_it_feeds(connection):
    problem = programs.leaky(connection=connection)

    @jax.jit
    def both(params, batch):
        ours = nl.snap(problem.objective).estimate(jax.random.key(0), (), params, batch)[0]
        return ours["hidden"], _first_order(connection, params, batch)

    chex.assert_trees_all_close(*both(problem.params, problem.batch), rtol=1e-10)


def _flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def test_higher_orders_come_closer():
    estimates, exact = _estimates([functools.partial(nl.snap, order=n) for n in (1, 2)], programs.leaky())
    apart = [np.linalg.norm(_flat(estimate) - _flat(exact)) for estimate in estimates]
    assert apart[1] < 1e-10 < 1e-3 < apart[0]  # all units are connected: two steps reach them all


def test_uoro_is_unbiased():
    problem = programs.gated()
    (dropped,), exact = _estimates([functools.partial(nl.truncated_backprop, window=1)], problem)
    found = sampler(nl.uoro(problem.objective, num_samples=4), problem)(keys(2000), ())
    assert largest_deviation(found, _flat(exact)) < 5
    assert largest_deviation(1.2 * found, _flat(exact)) > 5  # a twin too long
    apart = np.linalg.norm(_flat(dropped) - _flat(exact))
    assert apart > 0.05 * np.linalg.norm(_flat(exact))  # there is a past to be learned from


def test_windows_cut_credit_and_nothing_else():
    """By hand: the gradient of each window's losses from its own start, held."""
    problem = programs.leaky()

    def window(carry, part, params):
        grads, hidden = carry

        def losses(params):
            def step(hidden, slices):
                x, target = slices
                hidden = 0.7 * hidden + 0.3 * jnp.tanh(programs.connected(params["hidden"], x, hidden))
                return hidden, jnp.sum((programs.affine(params["output"], hidden) - target) ** 2, axis=1)

            end, found = jax.lax.scan(step, hidden, part)
            return jnp.mean(found.sum(axis=0)), end

        own, hidden = jax.grad(losses, has_aux=True)(params)
        return jax.tree.map(jnp.add, grads, own), hidden

    @jax.jit
    def both(params, batch):
        cut = nl.truncated_backprop(problem.objective, window=2).estimate(jax.random.key(0), (), params, batch)[0]
        carry = jax.tree.map(jnp.zeros_like, params), jnp.zeros((4, 3))
        for part in (slice(0, 2), slice(2, 4), slice(4, 5)):
            carry = window(carry, tuple(leaf[part] for leaf in programs.by_step(problem)), params)
        return cut, carry[0]

    chex.assert_trees_all_close(*both(problem.params, problem.batch), rtol=1e-10)


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
    few, many = (programs.cost(FORWARD[name], steps, copies) for steps in (100, 1000))
    assert 0 < many.temporaries <= 1.1 * few.temporaries
    assert many.equations == few.equations


def test_memory_is_that_of_a_chunk():
    network = nl.recurrent(nl.cells.rnn(12), 2, 3)
    objective = nl.supervised(network.apply, nl.losses.cross_entropy)
    batch = jnp.ones((16, 4, 2), jnp.float32), jnp.arange(16) % 3
    at = (), jax.eval_shape(network.init, jax.random.key(0)), batch

    def temporaries(chunk):
        estimate = jax.jit(nl.rtrl(objective, chunk=chunk).estimate)
        return estimate.lower(jax.random.key(0), *at).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(None) > 3 * temporaries(4) > 9 * temporaries(1)


def test_eager_jit_and_vmap_agree():
    """All run programs alike, and their certificates compare what is mapped: the cheapest, for what is not compiled."""
    problem = programs.leaky()
    estimate = nl.truncated_backprop(problem.objective, window=2).estimate
    at = (), problem.params, problem.batch
    several = jax.random.split(jax.random.key(3), 2)

    @jax.jit
    def run(keys, *at):
        return estimate(keys[1], *at), jax.vmap(lambda key: estimate(key, *at))(keys)

    one, mapped = run(several, *at)
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[1], mapped), one, rtol=1e-10)
    chex.assert_trees_all_close(estimate(several[1], *at), one, rtol=1e-10)


def test_wrong_settings_are_refused_with_a_remedy():
    problem = programs.leaky()
    with pytest.raises(ValueError, match=r"rtrl: the program has no loop named loop='tim', its loops are 'time': give"):
        _estimates([functools.partial(nl.rtrl, loop="tim")], problem)
    with pytest.raises(ValueError, match="its loops are none"):
        _estimates([nl.rtrl], problems.chain())
    with pytest.raises(ValueError, match="order must be a whole number of at least 1, got 0"):
        nl.snap(problem.objective, order=0)
    with pytest.raises(ValueError, match="window must be a whole number of at least 1, got 0"):
        nl.truncated_backprop(problem.objective, window=0)
    with pytest.raises(ValueError, match=r"loop must be the name of the program's loop over time, .* got 3"):
        nl.rtrl(problem.objective, loop=3)
    with pytest.raises(ValueError, match="chunk must be a whole number of at least 1, got 0"):
        nl.rtrl(problem.objective, chunk=0)
    with pytest.raises(ValueError, match="uoro needs to reach the layers"):
        nl.uoro(lambda params, batch: batch)
    with pytest.raises(ValueError, match="key must be a typed key"):
        nl.uoro(problem.objective).estimate(jnp.zeros(2, jnp.uint32), (), problem.params, problem.batch)


def test_examples_that_meet_in_a_layer_are_run_together():
    """A layer that subtracts its batch's mean: alone, an example would be left with nothing."""

    def centred(params, x, hidden):
        nu = programs.connected(params, x, hidden)
        return nu - nu.mean(axis=0, keepdims=True)

    centred.mixes_examples = True
    problem = programs.leaky(connection=centred)
    with pytest.raises(ValueError, match=r"rtrl: chunk=2 runs examples separately, but a layer .* leave chunk out"):
        _estimates([functools.partial(nl.rtrl, chunk=2)], problem)
    estimates, exact = _estimates((nl.rtrl, ALL_ORDERS), problem)
    for estimate in estimates:
        chex.assert_trees_all_close(estimate, exact, rtol=1e-12, atol=1e-13)
