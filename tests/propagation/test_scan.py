"""`nl.scan`: programs with loops, and what interpretations make of them."""

import chex
import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

import nl_jax as nl
from nl_jax import propagation
from nl_jax.propagation import Around, feedforward
from tests import problems
from tests.propagation.test_propagation import check_exact_credit

STEPS = problems.STEPS


def test_without_interpretation_it_is_lax_scan():
    p = problems.recurrent()
    both = jax.jit(lambda *at: (p.forward(*at), problems.unrolled(p).forward(*at)))
    chex.assert_trees_all_close(*both(p.params, p.batch[0]), rtol=1e-5)


def test_found_values_have_an_axis_of_steps_and_the_order_of_propagation():
    p, depth = problems.recurrent(), problems.depth()
    _, axons = jax.eval_shape(propagation.record(p.forward), p.params, p.batch[0])
    assert {name: x.shape for name, x in axons.items()} == {"time/hidden": (STEPS, 5, 3), "output": (5, 3)}
    order = []
    jax.eval_shape(lambda *at: order.extend(propagation.record(depth.forward)(*at)[1]), depth.params, depth.batch[0])
    assert order == ["input", "blocks/low", "blocks/high", "output"]


@pytest.mark.slow
def test_what_is_given_is_sliced_along_the_steps(x64):
    """Held axons, offsets and their derivatives are those of the unrolled program."""
    p = problems.recurrent()
    twin = problems.unrolled(p)
    offsets = np.random.default_rng(0).normal(size=(STEPS, 5, 3))
    apart = {f"hidden{t}": offsets[t] for t in range(STEPS)}
    for run in (propagation.inject, lambda program: lambda *at: propagation.clamp(program)(*at)[0]):
        ours = lambda o, run=run: jnp.sum(run(p.forward)(p.params, p.batch[0], {"time/hidden": o}) ** 2)
        theirs = lambda o, run=run: jnp.sum(run(twin.forward)(p.params, p.batch[0], o) ** 2)
        both = jax.jit(lambda o, a, f=ours, g=theirs: (jax.value_and_grad(f)(o), jax.value_and_grad(g)(a)))
        (value, slope), (expected, slopes) = both(offsets, apart)
        np.testing.assert_allclose(value, expected, rtol=1e-12)
        np.testing.assert_allclose(slope, np.stack(list(slopes.values())), atol=1e-12)


def test_given_values_may_be_computed_without_regard_to_the_scope(x64):
    """A function that always returns the values of all layers gives every layer its own, at every step."""
    p = problems.recurrent()
    offsets = {"time/hidden": np.full((5, 3), 0.3), "output": np.full((5, 3), -0.2)}
    stacked = {**offsets, "time/hidden": np.stack([offsets["time/hidden"]] * STEPS)}
    run = jax.jit(lambda *at: [propagation.inject(p.forward)(*at, o) for o in (lambda scope, steps: offsets, stacked)])
    chex.assert_trees_all_close(*run(p.params, p.batch[0]), rtol=1e-12)


def test_some_steps_may_be_held_and_others_computed(x64):
    p = problems.recurrent()
    x = np.random.default_rng(0).normal(size=(STEPS, 5, 3))

    @jax.jit
    def run(params, inputs, x):
        held = {"time/hidden": propagation.PartlyClamped(x, jnp.arange(STEPS) == 1)}
        unrolled = propagation.clamp(problems.unrolled(p).forward)
        return propagation.clamp(p.forward)(params, inputs, held), unrolled(params, inputs, {"hidden1": x[1]})

    (outputs, layers), (expected, apart) = run(p.params, p.batch[0], x)
    np.testing.assert_allclose(outputs, expected, rtol=1e-12)
    axons = np.stack([apart[f"hidden{t}"].axons for t in range(STEPS)])
    np.testing.assert_allclose(layers["time/hidden"].axons, axons, rtol=1e-12)
    assert np.max(np.abs(axons - x)) > 0.1


def test_what_is_given_may_be_made_where_it_is_needed():
    p = problems.recurrent()
    offsets = jnp.arange(STEPS * 15.0).reshape(STEPS, 5, 3) / 100

    def made(scope, steps):
        return {"time/hidden": offsets[steps[0]]} if scope == "time/" else {}

    injected = propagation.inject(p.forward)
    both = jax.jit(lambda *at: (injected(*at, made), injected(*at, {"time/hidden": offsets})))
    chex.assert_trees_all_close(*both(p.params, p.batch[0]))


def test_values_made_step_by_step_can_be_differentiated():
    """They are made a step ahead, but never for a step that there is not: 1/(T − t) is finite."""
    p = problems.recurrent()

    def loss(theta):
        made = lambda scope, steps: (
            {"time/hidden": theta / (STEPS - steps[0]).astype(float) * jnp.ones((5, 3))} if scope else {}
        )
        return jnp.sum(propagation.inject(p.forward)(p.params, p.batch[0], made))

    value, slope = jax.jit(jax.value_and_grad(loss))(1.0)
    assert np.isfinite(slope)
    np.testing.assert_allclose(slope, (loss(1.001) - loss(0.999)) / 0.002, rtol=1e-2)
    assert np.isfinite(value)


def test_loops_nest(x64):
    def program(params, x, propagate=feedforward):
        def block(x, weight, propagate):
            return propagate("unit", lambda w, x: x @ w, jnp.tanh, weight, x), None

        def step(x, _, propagate):
            x, _ = nl.scan("depth", block, x, params, propagate)
            return propagate("leak", lambda w, x: x, lambda nu: nu / 2, (), x), None

        return nl.scan("time", step, x, None, propagate, length=3)[0]

    weights, x = np.random.default_rng(0).normal(size=(2, 4, 4)), np.ones((5, 4))
    outputs, axons = jax.eval_shape(propagation.record(program), weights, x)
    assert {name: a.shape for name, a in axons.items()} == {"time/depth/unit": (3, 2, 5, 4), "time/leak": (3, 5, 4)}
    ranks, count = propagation.places({name: a.shape for name, a in axons.items()})
    assert count == 9
    assert ranks["time/depth/unit"].tolist() == [[0, 1], [3, 4], [6, 7]]
    assert ranks["time/leak"].tolist() == [2, 5, 8]

    @jax.jit
    def gradients(weights, x):
        offsets = jax.tree.map(jnp.zeros_like, axons)
        credit = jax.grad(lambda o: jnp.sum(propagation.inject(program)(weights, x, o)))(offsets)
        ours = propagation.local_gradient(program)(weights, x, jnp.ones_like(outputs), credit)
        return ours, jax.grad(lambda w: jnp.sum(program(w, x)))(weights)

    chex.assert_trees_all_close(*gradients(weights, x), rtol=1e-12)


@pytest.mark.slow
def test_credit_of_layers_is_accumulated_and_right(x64):
    """With exact node credit the local gradient is the gradient, through time and depth, learned starts included."""
    for p in (problems.recurrent(), problems.depth(), problems.learned_start()):
        check_exact_credit(p)


def test_a_plain_propagate_is_called_inside_the_loop_as_it_is():
    p = problems.recurrent()
    names = []

    def halved(name, connection, activation, params, *inputs):
        names.append(name)
        return feedforward(name, connection, activation, params, *inputs) / 2

    around = Around(feedforward, lambda site, given, propagate: propagate(*site[:4], *site.inputs) / 2)
    run = jax.jit(lambda *at: [p.forward(*at, propagate=propagate) for propagate in (halved, around)])
    chex.assert_trees_all_equal(*run(p.params, p.batch[0]))
    assert set(names) == {"hidden", "output"}


def test_wrong_programs_are_refused_with_a_remedy():
    def inside(params, x, propagate=feedforward):
        step = lambda x, _: (propagate("unit", lambda w, x: x @ w, jnp.tanh, params, x), None)
        return jax.lax.scan(step, x, None, length=2)[0]

    def named(name, loop="time"):
        def program(params, x, propagate=feedforward):
            step = lambda x, _, propagate: (propagate(name, lambda w, x: x @ w, jnp.tanh, params, x), None)
            return nl.scan(loop, step, x, None, propagate, length=2)[0]

        return program

    def twice(params, x, propagate=feedforward):
        step = lambda x, _, propagate: (propagate("unit", lambda w, x: x @ w, jnp.tanh, params, x), None)
        x, _ = nl.scan("time", step, x, None, propagate, length=2)
        return nl.scan("time", step, x, None, propagate, length=2)[0]

    run = lambda program: propagation.record(program)(jnp.eye(2), jnp.ones((3, 2)))
    with pytest.raises(ValueError, match=r"layer 'unit' is propagated inside a jax\.vmap, lax\.scan.*use nl\.scan"):
        run(inside)
    told = hasattr(jax.extend.core, "get_opaque_trace_state")  # from JAX 0.10
    for traced in (jax.eval_shape, lambda f, x: jax.jit(f)(x)) if told else ():
        with pytest.raises(ValueError, match=r"layer 'unit' is propagated inside a jax\.vmap, lax\.scan.*use nl\.scan"):
            traced(lambda x: propagation.record(inside)(jnp.eye(2), x), np.ones((3, 2), np.float32))
    with pytest.raises(ValueError, match="layer 'a/b': a name must not contain '/'"):
        run(named("a/b"))
    with pytest.raises(ValueError, match="layer 'a/b': a name must not contain '/'"):
        run(named("unit", loop="a/b"))
    with pytest.raises(ValueError, match="'time' is propagated twice"):
        run(twice)
    ghost = {"time/ghost": np.ones((2, 3, 2))}
    with pytest.raises(ValueError, match="no layer is named 'time/ghost'; the layers are time/unit"):
        jax.eval_shape(propagation.clamp(named("unit")), np.eye(2), np.ones((3, 2)), ghost)
    with pytest.raises(ValueError, match="propagate must be what the program was called with, got None"):
        nl.scan("time", lambda c, x, propagate: (c, x), 0.0, jnp.ones(2), None)


def test_the_network_of_a_batch_norm_keeps_statistics_of_each_step():
    """Inference with gathered statistics, one set for every step of the loop."""
    layer = nl.network(nl.Layer("in", 3), nl.batch_norm(nl.Layer("normed", 3, nl.connections.dense())))
    params = jax.jit(layer.init)(jax.random.key(0))

    def program(params, x, propagate=feedforward):
        step = lambda x, _, propagate: (layer.apply(params, x, propagate), None)
        return nl.scan("time", step, x, None, propagate, length=2)[0]

    batches = np.random.default_rng(1).normal(size=(4, 10, 3)).astype(np.float32)
    statistics = jax.jit(nl.normalisation.population(program))(params, batches)
    assert statistics["time/normed"].mean.shape == (2, 3)
    outputs = jax.jit(nl.normalisation.inference(program, statistics))(params, batches.reshape(40, 3))
    np.testing.assert_allclose(outputs.mean(axis=0), 0, atol=1e-5)
