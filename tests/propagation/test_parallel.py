"""`parallel_loop`: the layers of all steps of a loop at once."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nl_jax as nl
from nl_jax.propagation import clamp, parallel_loop, plain_loop, record
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


@pytest.mark.parametrize(
    "body",
    [
        lambda h, x: (jnp.tanh(h @ x), h),
        lambda h, x: (jax.jit(lambda h: jnp.tanh(h @ x))(h), h),
        lambda h, x: (jax.lax.fori_loop(0, 2, lambda i, h: h + x, h), h),
    ],
)
def test_what_would_wait_for_a_product_or_a_loop_is_a_scan(body):
    at = jnp.eye(3), jax.random.normal(jax.random.key(0), (STEPS, 3, 3))
    ours, scanned = (
        jax.make_jaxpr(lambda h, x, of=of: of("time", body, h, x, None))(*at) for of in (parallel_loop, plain_loop)
    )
    assert len(loops(ours)) == len(loops(scanned)) == 1
    assert len(ours.eqns) <= len(scanned.eqns) + 1  # a broadcast start, no steps at once


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
