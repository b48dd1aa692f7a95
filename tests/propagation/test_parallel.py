"""`parallel_loop`: the layers of all steps of a loop at once."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nl_jax as nl
from nl_jax.propagation import clamp, parallel_loop, plain_loop, record
from nl_jax.propagation.loops import accumulated
from tests import problems

STEPS = 4


def step(carry, slices):
    """Has every kind of a carried part: fixed, counter, total, made anew, made anew from the counter, and waiting."""
    scale, index, total, made, placed, waiting, cut = carry
    x, given = slices
    place = index.astype(given.dtype)
    inner = jnp.sin(made @ x["weight"]) + waiting * place + placed
    total = total + jnp.sum(inner**2, axis=-1)
    after = jnp.tanh(given), given * place, 0.5 * waiting + given * made, jax.lax.stop_gradient(cut) + given
    return (scale, index + 1, total, *after), (inner * scale, index)


def loops(jaxpr):
    return [equation for equation in jaxpr.eqns if equation.primitive.name == "scan"]


def dots_in_loops(function, *at):
    """Returns the numbers of compiled loops and of products of matrices in them."""
    compiled = jax.jit(function).lower(*at).compile().as_text()
    assert "dot(" in compiled
    bodies = re.findall(r"body=%?([\w.\-]+)", compiled)
    texts = [re.search(rf"^%?{re.escape(name)} .*?^}}", compiled, re.MULTILINE | re.DOTALL)[0] for name in bodies]
    called = [re.findall(r"calls=%?([\w.\-]+)", text) for text in texts]
    inner = [
        re.search(rf"^%?{re.escape(n)} .*?^}}", compiled, re.MULTILINE | re.DOTALL)[0] for of in called for n in of
    ]
    return len(bodies), sum(text.count("dot(") for text in [*texts, *inner])


def problem():
    keys = jax.random.split(jax.random.key(0), 4)
    weights = {"weight": jax.random.normal(keys[0], (STEPS, 3, 3))}
    given, start = jax.random.normal(keys[1], (STEPS, 5, 3)), jax.random.normal(keys[2], (5, 3))
    return start, weights, given


def run(loop, start, weights, given):
    carry = jnp.full((), 2, start.dtype), jnp.int32(3), start[:, 0], start, start, start, start
    return loop("time", step, carry, (weights, given), STEPS)


def test_values_and_derivatives_are_those_of_a_scan(x64):
    at = problem()
    credit = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), run(plain_loop, *at))

    @jax.jit
    def both(*at):
        def of(loop):
            outputs, back = jax.vjp(lambda *at: run(loop, *at), *at)
            zeros = lambda out, c: (
                c if jnp.issubdtype(out.dtype, jnp.inexact) else np.zeros(out.shape, jax.dtypes.float0)
            )
            return outputs, back(jax.tree.map(zeros, outputs, credit))

        return of(parallel_loop), of(plain_loop)

    ours, scanned = both(*at)
    chex.assert_trees_all_close(ours, scanned, rtol=1e-12)
    chex.assert_trees_all_equal_shapes_and_dtypes(ours, scanned)


def test_only_what_waits_is_in_a_loop():
    """The product of matrices is outside, and a loop in which nothing waits is gone."""
    jaxpr = jax.make_jaxpr(lambda *at: run(parallel_loop, *at))(*problem())
    (scan,) = loops(jaxpr)
    assert len([out for out in scan.outvars if out.aval.shape == (STEPS, 5, 3)]) == 2
    assert dots_in_loops(lambda *at: run(parallel_loop, *at), *problem()) == (1, 0)

    without = lambda x: parallel_loop("time", lambda carry, x: (jnp.tanh(x), carry @ x), x[0], x, None)
    assert not loops(jax.make_jaxpr(without)(jnp.ones((STEPS, 3, 3))))


BODIES = {
    "a product waits": lambda h, x: (jnp.tanh(h @ x), h),
    "a product waits in a call": lambda h, x: (jax.jit(lambda h: jnp.tanh(h @ x))(h), h),
    "a loop waits": lambda h, x: (jax.lax.scan(lambda h, _: (h + x, None), h, None, 2)[0], h),
    "a condition": lambda h, x: (jnp.tanh(x), jax.lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, h)),
    "a loop with a condition": lambda h, x: (x, jax.lax.while_loop(lambda h: h[0, 0] < 1, lambda h: h + 1, h @ x)),
    "a checkpoint": lambda h, x: (x, jax.checkpoint(lambda h: jnp.tanh(h @ x))(h)),
    "a side effect": lambda h, x: (x, [jax.debug.callback(lambda h: None, h), h][1]),
    "a callback": lambda h, x: (x, jax.pure_callback(lambda h: h, h, h)),
}


@pytest.mark.parametrize("name", BODIES)
def test_what_has_to_be_run_step_by_step_is_a_scan(name):
    at = jnp.eye(3), jax.random.normal(jax.random.key(0), (STEPS, 3, 3))
    run = lambda loop: loops(jax.make_jaxpr(lambda h, x: loop("time", BODIES[name], h, x, None))(*at))
    (ours,), (scanned,) = run(parallel_loop), run(plain_loop)
    assert ours.params["length"] == STEPS
    assert len(ours.outvars) == len(scanned.outvars)


def test_random_numbers_of_other_generators_are_drawn_step_by_step():
    """jax.vmap of rbg keys draws other numbers."""
    keys = jax.random.split(jax.random.key(0, impl="rbg"), STEPS)
    step = lambda h, key: (jnp.tanh(h), jax.random.normal(key, (3,)))
    ours, scanned = (loop("time", step, jnp.ones(3), keys, None) for loop in (parallel_loop, plain_loop))
    chex.assert_trees_all_equal(ours, scanned)


def test_side_effects_happen_once_a_step():
    seen = []

    def step(h, x):
        jax.debug.callback(lambda h: seen.append(float(h)), h, ordered=True)
        return x, h

    parallel_loop("time", step, jnp.float32(7), jnp.arange(3.0), None)
    jax.effects_barrier()
    assert seen == [7, 0, 1]


def test_a_custom_derivative_may_read_what_the_value_does_not():
    """A scale of the gradient that is carried."""

    @jax.custom_vjp
    def scaled(x, scale):
        return x

    scaled.defvjp(lambda x, scale: (x, scale), lambda scale, credit: (credit * scale, jnp.zeros_like(scale)))
    step = lambda carry, x: ((scaled(jnp.sin(x), carry[1]), 0.5 * carry[1]), carry[0] ** 2)

    def slope(loop):
        start = jnp.zeros(3), jnp.float32(1)
        return jax.grad(lambda x: loop("time", step, start, x, None)[1].sum())(jnp.ones((STEPS, 3)))

    np.testing.assert_allclose(slope(parallel_loop), slope(plain_loop), rtol=1e-6)


def test_what_is_carried_is_known_before_a_custom_derivative_reads_it():
    """The carry's initial value, which stands for what is not known yet, would have an infinite derivative here."""

    @jax.custom_vjp
    def two(x, scale):
        return jnp.tanh(x), jnp.sqrt(scale)

    def backward(at, credit):
        x, scale = at
        return credit[0] * (1 - jnp.tanh(x) ** 2), credit[1] * 0.5 / jnp.sqrt(scale)

    two.defvjp(lambda *at: (two(*at), at), backward)

    def step(carry, x):
        made, root = two(x, carry[1] - x)
        return (made, root + x * x + 3), carry[0] * carry[1]

    def slope(loop):
        of = lambda start, xs: loop("time", step, (start, start), xs, None)[1].sum()
        return jax.grad(of, argnums=(0, 1))(jnp.float32(2), jnp.arange(4.0))

    chex.assert_trees_all_close(slope(parallel_loop), slope(plain_loop), rtol=1e-6)


def test_integers_in_the_carry_that_are_no_counters():
    step = lambda key, x: (jax.random.split(key)[0], jax.random.normal(key) * x)
    ours, scanned = (
        loop("time", step, jax.random.PRNGKey(0), jnp.ones(3), None) for loop in (parallel_loop, plain_loop)
    )
    chex.assert_trees_all_close(ours, scanned)


@pytest.mark.parametrize("loop", [parallel_loop, accumulated])
def test_a_wrong_number_of_steps_is_refused(loop):
    step = lambda h, x: (jnp.tanh(x), h)
    with pytest.raises(ValueError, match="length"):
        loop("time", step, jnp.ones(3), jnp.ones((STEPS, 3)), STEPS + 1)
    with pytest.raises(ValueError, match=r"leading ax|length"):
        loop("time", lambda h, x: (h, x), jnp.ones(3), (jnp.ones((2, 3)), jnp.ones((3, 3))), None)


def test_given_axons_of_too_few_steps_are_refused():
    def forward(w, x, propagate=nl.propagation.feedforward):
        step = lambda h, _, propagate: (propagate("layer", lambda w, h: h * w, jnp.tanh, w, h), None)
        return nl.scan("time", step, x, None, propagate, length=STEPS)[0]

    given = {"time/layer": jnp.ones((STEPS - 1, 2, 3))}
    for run in (clamp, nl.propagation.inject):
        with pytest.raises(ValueError, match="length"):
            run(forward)(jnp.float32(1), jnp.ones((2, 3)), given)


@pytest.mark.parametrize("step", [lambda c, x: (c - x, None), lambda c, x: (x - c, None)])
def test_a_total_may_be_subtracted_from_but_not_subtracted(step):
    ours, scanned = (
        loop("time", step, jnp.float32(1), jnp.arange(4.0) ** 2, None) for loop in (parallel_loop, plain_loop)
    )
    chex.assert_trees_all_close(ours, scanned)


def test_no_steps_return_the_start():
    step = lambda h, x: (jnp.tanh(x), h)
    end, ys = parallel_loop("time", step, jnp.ones(3), jnp.ones((0, 3)), None)
    np.testing.assert_array_equal(end, jnp.ones(3))
    assert ys.shape == (0, 3)


def test_in_a_shard_map_that_checks_what_varies():
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("d")
    step = lambda h, x: (jnp.tanh(x), h * x)
    run = lambda h, x: parallel_loop("time", step, h, jnp.swapaxes(x, 0, 1), None)[0]
    found = jax.shard_map(run, mesh=mesh, in_specs=(spec, spec), out_specs=spec)(jnp.ones((2, 3)), jnp.ones((2, 4, 3)))
    np.testing.assert_allclose(found, np.tanh(np.ones((2, 3))))


def test_a_carry_that_changes_its_type_is_explained_as_by_lax_scan():
    with pytest.raises(TypeError, match="scan body function carry"):
        parallel_loop("time", lambda h, x: (x.astype(jnp.float16), h), jnp.ones(3), jnp.ones((STEPS, 3)), None)


def test_a_total_that_steps_show_is_no_total():
    """A running sum is credited at every step."""

    def forward(params, xs, propagate=nl.propagation.feedforward):
        hidden = propagate("layer", lambda w, x: w * x, jnp.tanh, params["layer"], xs)

        def body(total, x, propagate):
            total = total + params["outside"] * x
            return total, total

        return nl.scan("time", body, jnp.zeros(len(xs)), hidden.T, propagate)[1].sum(axis=0)[:, None]

    objective = nl.supervised(forward, nl.losses.half_squared_error)
    params = {"layer": jnp.float32(0.3), "outside": jnp.float32(0.4)}
    at = jax.random.key(0), (), params, (jnp.ones((2, STEPS)), jnp.ones((2, 1)))
    exact, _, _ = nl.backprop(objective).estimate(*at)
    for estimator in (nl.node_perturbation(objective, num_samples=1), nl.predictive_coding(objective)):
        found, _, _ = estimator.estimate(*at)
        np.testing.assert_allclose(found["outside"], exact["outside"], rtol=1e-5)
    x = jnp.arange(1.0, 5.0)
    shown = parallel_loop("time", lambda c, x: (c + x, c + x), jnp.zeros(()), x, None)[1]
    np.testing.assert_allclose(shown, jnp.cumsum(x))


@pytest.mark.slow
def test_clamped_layers_wait_for_sums_at_most():
    """A loop remains where programs add to the carry outside of layers, without a product of matrices in it."""
    network = nl.residual(3, 4, 2, layers=5, activation=nl.activations.tanh())
    deep = network.apply, network.init(jax.random.key(0)), jnp.ones((5, 3))
    leaky, skips = ((p.forward, p.params, p.batch[0]) for p in (problems.recurrent(), problems.depth()))
    for (forward, params, inputs), count in ((deep, 0), (leaky, 1), (skips, 1)):
        axons = jax.eval_shape(record(forward), params, inputs)[1]
        axons = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), axons)

        def residuals(params, inputs, axons, forward=forward):
            return {n: of.axons - of.predicted for n, of in clamp(forward)(params, inputs, axons)[1].items()}

        assert dots_in_loops(residuals, params, inputs, axons) == (count, 0)
