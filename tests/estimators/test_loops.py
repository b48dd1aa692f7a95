"""Every estimator on programs with loops: as on the unrolled program, or a refusal that says what to use."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nl_jax as nl
from nl_jax.estimators.feedback.target_propagation import Decoders
from nl_jax.evaluation.conformance.calibration import largest_deviation
from nl_jax.evaluation.conformance.subject import flat, keys, sampler
from nl_jax.propagation import feedforward, interpret
from tests import problems
from tests.equations import equations
from tests.estimators.online import programs
from tests.registry import ESTIMATORS

REFUSES = {
    "zero_divergence": "fixed_prediction",
    "admm": "augmented_lagrangian",
}
"""What makes no sense there, and what the message recommends."""

OWN_NOISE = ("node_", "forward_nodes", "reinforce", "average", "partition")
# Laws that take a stacked weight for one where a loop slices it, which the unrolled program does by its own arithmetic.
STACKED = (
    *("weight_rank_one", "weight_flipout_antithetic", "forward_low_rank"),
    *("subspace_inputs", "subspace_random_antithetic"),
)
"""Beginnings of those that draw noise for each layer: in a loop another one than unrolled, with the same mean."""

OF_LOSSES = "weight_none", "weight_antithetic", "weight_running_mean", "evolution_strategy", "normalised"
"""Like "weight_clean", these run a program whole, whatever loops it has: that one stands for them over depth."""

FADING = ("equilibrium_propagation", "contrastive_hebbian")
"""Credit fades by γ a layer on its way down, and rounding counts 1/γ times as much: γ = 0.1, ten layers."""

KEY = jax.random.key(0)
LOOPS = {"time": problems.recurrent, "depth": problems.depth}


@functools.cache  # in float64, by all that ask
def _exact(loop):
    problem = LOOPS[loop]()
    return jax.jit(jax.grad(lambda p: jnp.mean(problem.objective(p, problem.batch))))(problem.params)


def _estimate(make, problem):
    estimator = make(problem.objective)
    state = estimator.init(jax.random.key(0), problem.params)
    grads, _, info = jax.jit(estimator.estimate)(jax.random.key(1), state, problem.params, problem.batch)
    return grads, info


BY_NAME = "direct_feedback", "target_propagation"
"""Their weights are those of a layer's name or of a parameter, which an unrolled program has others of; see below."""


def _layer_and_step(loop, name):
    """In the program with a loop, of a layer of the unrolled one: "hidden2" is the second step of "time/hidden"."""
    layer, step = name.rstrip("0123456789"), name.lstrip("abcdefghijklmnopqrstuvwxyz")
    return (f"{'time' if loop == 'time' else 'blocks'}/{layer}", int(step)) if step else (layer, None)


@pytest.mark.parametrize("loop", LOOPS)
def test_direct_feedback_tells_every_step(loop, x64):
    """As unrolled with the same B: over time one for all steps, over depth one for each."""
    problem, unrolled = LOOPS[loop](), problems.unrolled(LOOPS[loop]())
    estimator = nl.direct_feedback_alignment(problem.objective)
    other = nl.direct_feedback_alignment(unrolled.objective)
    seed = estimator.init(KEY, problem.params)
    state, there = (nl.direct_feedback_weights(p.objective, seed, p.params, p.batch) for p in (problem, unrolled))
    own = {}
    for name in there:
        layer, step = _layer_and_step(loop, name)
        own[name] = state[layer] if step is None or loop == "time" else state[layer][step]
    args = problem.params, problem.batch
    grads, _, info = jax.jit(estimator.estimate)(KEY, seed, *args)
    expected, _, there = jax.jit(other.estimate)(KEY, own, *args)
    chex.assert_trees_all_close(grads, expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(info.loss, there.loss, rtol=1e-12)


@pytest.mark.parametrize("loop", LOOPS)
def test_targets_are_decoded_from_step_to_step(loop, x64):
    """As unrolled with the same decoders: over time one for all steps, over depth one for each."""
    problem, unrolled = LOOPS[loop](), problems.unrolled(LOOPS[loop]())
    make = functools.partial(nl.difference_target_propagation, optimizer=optax.sgd(0.1), eta=0.5)
    estimator, other = make(problem.objective, problem.batch), make(unrolled.objective, unrolled.batch)
    (weights, biases), inner = estimator.init(KEY, problem.params)
    biases = jax.tree.map(lambda c: jax.random.normal(KEY, c.shape), biases)
    own = {}
    for name in other.init(KEY, unrolled.params)[0].biases:
        layer, step = _layer_and_step(loop, name)
        own[name] = tuple(c if step is None or loop == "time" else c[step] for c in biases[layer])
    args = problem.params, problem.batch
    state = Decoders(weights, biases), inner
    grads, ((_, learned), _), info = jax.jit(estimator.estimate)(KEY, state, *args)
    expected, _, there = jax.jit(other.estimate)(KEY, (Decoders(weights, own), inner), *args)
    chex.assert_trees_all_close(grads, expected, rtol=1e-10, atol=1e-12)
    squares = dict.fromkeys(info.residuals.dual, 0.0)
    for name, dual in there.residuals.dual.items():
        squares[_layer_and_step(loop, name)[0]] += dual**2
    for name, dual in info.residuals.dual.items():
        np.testing.assert_allclose(dual, squares[name] ** 0.5, rtol=1e-8)
    moved = jax.tree.map(lambda before, after: jnp.any(before != after), biases, learned)
    assert all(jax.tree.leaves(moved))


def test_decoders_learn_from_all_steps(x64):
    """½‖g(f(x + σξ)) − (x + σξ)‖² at σ → 0, by hand: the change of c is the sum of the steps' errors."""
    problem = programs.leaky()
    make = functools.partial(nl.difference_target_propagation, activation=lambda nu: nu, sigma=1e-12)
    estimator = make(problem.objective, problem.batch, optimizer=optax.sgd(1.0))
    state = estimator.init(KEY, problem.params)
    _, ((_, biases), _), _ = jax.jit(estimator.estimate)(KEY, state, problem.params, problem.batch)
    B, hidden, change = state[0].weights["hidden"], jnp.zeros((4, 3)), 0.0
    for x, _ in zip(*programs.by_step(problem), strict=True):
        fed = jnp.tanh(programs.connected(problem.params["hidden"], x, hidden))
        change += jnp.mean(hidden - fed @ B["recurrent"].T, axis=0)
        hidden = 0.7 * hidden + 0.3 * fed
    np.testing.assert_allclose(biases["time/hidden"][1], change, rtol=1e-8)


def test_direct_feedback_hears_a_read_out_in_the_loop_step_by_step(x64):
    """By hand: B e_t, with the error of the same step, through the activation of this one."""
    problem = programs.leaky()
    estimator = nl.direct_feedback_alignment(problem.objective)
    seed = estimator.init(KEY, problem.params)
    state = nl.direct_feedback_weights(problem.objective, seed, problem.params, problem.batch)
    grads, _, _ = jax.jit(estimator.estimate)(KEY, seed, problem.params, problem.batch)
    (B,), hidden, expected = state.values(), jnp.zeros((4, 3)), 0.0
    for x, target in zip(*programs.by_step(problem), strict=True):
        fed = jnp.tanh(programs.connected(problem.params["hidden"], x, hidden))
        hidden = 0.7 * hidden + 0.3 * fed
        e = 2 * (programs.affine(problem.params["output"], hidden) - target) / 4
        expected += x.T @ (e @ B.T * (1 - fed**2))
    np.testing.assert_allclose(grads["hidden"]["weight"], expected, rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "loop"),
    [
        (name, loop)
        for name in ESTIMATORS
        for loop in LOOPS
        if name not in REFUSES and name not in BY_NAME and not name.startswith(OWN_NOISE)
        if not (name in (*STACKED, *OF_LOSSES) and loop == "depth")
    ],
)
def test_agrees_with_the_unrolled_program(name, loop, x64):
    entry, problem = ESTIMATORS[name], LOOPS[loop]()
    grads, info = _estimate(entry.make, problem)
    expected, there = _estimate(entry.make, problems.unrolled(problem))
    chex.assert_trees_all_close(grads, expected, rtol=1e-7 if name in FADING else 1e-10, atol=1e-12)
    np.testing.assert_allclose(info.loss, there.loss, rtol=1e-12)
    if entry.derivative and not entry.random and entry.calibrated and name != "fixed_prediction":  # of two steps
        chex.assert_trees_all_close(grads, _exact(loop), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "name",
    [n for n, e in ESTIMATORS.items() if n.startswith((*OWN_NOISE, *STACKED)) and e.calibrated and n != "node_none"],
)  # too noisy
def test_its_own_noise_has_the_gradient_for_its_mean_over_depth(name, x64):
    """Over time their certificate says so."""
    problem = problems.depth()
    estimator = ESTIMATORS[name].make(problem.objective)
    found = sampler(estimator, problem)(keys(2000), estimator.init(jax.random.key(0), problem.params))
    g = flat(_exact("depth"))
    assert largest_deviation(found, g) < 5
    assert largest_deviation(1.3 * found, g) > 5  # a twin too long


@pytest.mark.parametrize("name", REFUSES)
def test_refuses_with_a_remedy(name):
    with pytest.raises(ValueError, match=rf"layer 'time/hidden' is in a loop.*{REFUSES[name]}"):
        _estimate(ESTIMATORS[name].make, problems.recurrent())


def _outputs_in_the_loop(read_out, looped=True):
    """Outputs at every step; or none, but for the last state, which only the loss reads."""

    def objective(params, xs, propagate=feedforward):
        def step(carry, x, propagate, t=""):
            h, loss = carry
            h = propagate(f"hidden{t}", lambda w, x, h: x @ w + 0.5 * h, jnp.tanh, params["hidden"], x, h)
            if read_out:
                y = propagate(f"output{t}", lambda w, h: h @ w, jnp.sin, params["output"], h)
                loss = loss + jnp.sum((y - 0.3) ** 2, axis=1)
            return (h, loss), None

        carry = jnp.zeros((len(xs), 3), xs.dtype), jnp.zeros(len(xs), xs.dtype)
        if looped:
            carry, _ = nl.scan("time", step, carry, jnp.swapaxes(xs, 0, 1), propagate)
        else:
            for t in range(problems.STEPS):
                carry, _ = step(carry, xs[:, t], propagate, t)
        h, loss = carry
        return loss if read_out else jnp.sum((h - 0.3) ** 2, axis=1)

    params = {"hidden": jnp.linspace(-1, 1, 6).reshape(2, 3), "output": jnp.linspace(-1, 2, 9).reshape(3, 3)}
    return objective, params if read_out else {"hidden": params["hidden"]}, problems.recurrent().batch[0]


@pytest.mark.parametrize("read_out", [True, False])
@pytest.mark.parametrize(
    ("make", "exact"),
    [
        (functools.partial(nl.predictive_coding, num_steps=3, tolerance=0.0), False),
        (functools.partial(nl.error_predictive_coding, num_steps=3, tolerance=0.0), False),
        (functools.partial(nl.auxiliary_coordinates, penalties=(1, 10), num_steps=3, tolerance=0.0), False),
        (nl.fixed_prediction, True),
    ],
)
def test_outputs_may_stand_in_the_loop(make, exact, read_out, x64):
    """What no layer reads is an output: every step's read-out, or the last step of what only later steps read."""
    found = []
    for looped in (True, False):
        objective, *at = _outputs_in_the_loop(read_out, looped)
        grads, _, info = jax.jit(make(objective).estimate)(KEY, (), *at)
        found.append(grads)
        if not exact:
            assert {name for name, r in info.residuals.primal.items() if r > 1e-9}  # some axons have moved
            assert all(r < 1e-12 for name, r in info.residuals.primal.items() if "output" in name)
    chex.assert_trees_all_close(*found, rtol=1e-10, atol=1e-12)
    gradient = jax.grad(lambda p: jnp.mean(objective(p, at[1])))(at[0])
    apart = max(float(jnp.max(jnp.abs(a - b))) for a, b in zip(*map(jax.tree.leaves, (grads, gradient)), strict=True))
    assert apart < 1e-12 if exact else apart > 1e-3


def test_outputs_that_are_not_known_are_refused():
    def objective(params, xs, propagate=feedforward):
        def inner(h, _, propagate):
            return propagate("hidden", lambda w, h: h @ w, jnp.tanh, params, h), None

        outer = lambda h, _, propagate: (nl.scan("inner", inner, h, None, propagate, length=2)[0], None)
        return nl.scan("outer", outer, xs, None, propagate, length=3)[0][:, 0]

    with pytest.raises(ValueError, match=r"predictive_coding: layer 'outer/inner/hidden'.*output layer read it"):
        nl.predictive_coding(objective).estimate(KEY, (), jnp.eye(3), jnp.ones((2, 3)))


def test_contrastive_hebbian_refuses_outputs_in_the_loop():
    objective, *at = _outputs_in_the_loop(True)
    message = r"contrastive_hebbian: the last layer 'time/output' is in a loop.*equilibrium_propagation"
    with pytest.raises(ValueError, match=message):
        nl.contrastive_hebbian(objective).estimate(KEY, (), *at)


def _rebinding(bound):
    """A program whose functions close over a name that is bound again; or that hold its value, as they should."""

    def forward(params, x, propagate=feedforward):
        u = x
        for l in range(3):
            if bound:
                connection = lambda w, x, u=u: x @ w + 0.5 * u
                activation = lambda nu, u=u: jnp.tanh(nu) * u
            else:
                connection = lambda w, x: x @ w + 0.5 * u  # noqa: B023 it is what is tested
                activation = lambda nu: jnp.tanh(nu) * u  # noqa: B023
            x = propagate(f"layer{l}", connection, activation, params[f"layer{l}"], x)
            u = u + x
        return x

    objective = nl.supervised(forward, nl.losses.half_squared_error)
    params = {f"layer{l}": w for l, w in enumerate(jax.random.normal(jax.random.key(0), (3, 3, 3)))}
    x = jax.random.normal(jax.random.key(1), (5, 3))
    return objective, params, (x, x)


OWN_SETTINGS = {
    "partition": lambda objective: nl.partition(objective, {"layer2": nl.backprop, "*": nl.node_perturbation}),
}


def _lowered(make, bound):
    objective, *at = _rebinding(bound)
    estimator = make(objective)
    return jax.jit(estimator.estimate).lower(KEY, estimator.init(KEY, at[0]), *at).as_text()


@pytest.mark.parametrize("name", [n for n, entry in ESTIMATORS.items() if entry.layers])
def test_closures_over_names_that_are_bound_again(name):
    """A layer's functions are called only while it runs: what a name means later does not change the program."""
    make = OWN_SETTINGS.get(name, ESTIMATORS[name].make)
    assert _lowered(make, False) == _lowered(make, True)


def test_functions_called_after_the_program_has_gone_on_are_noticed():
    def late(objective):
        def estimate(key, state, params, batch):
            sites = []
            interpret(objective, lambda site, given: (sites.append(site) or site.axons(), None))(params, batch)
            return jax.tree.map(jnp.zeros_like, params), state, nl.Info(sites[0].axons().mean(), jnp.int32(1))

        return nl.GradientEstimator(lambda key, params: (), estimate)

    assert _lowered(late, False) != _lowered(late, True)


def test_closures_over_names_that_are_bound_again_have_their_gradient(x64):
    objective, params, batch = _rebinding(False)
    exact = jax.grad(lambda p: jnp.mean(objective(p, batch)))(params)
    for name in ("backprop_recursion", "lagrangian_backprop"):
        grads, _, _ = jax.jit(ESTIMATORS[name].make(objective).estimate)(KEY, (), params, batch)
        chex.assert_trees_all_close(grads, exact, rtol=1e-10, atol=1e-12)


def _silent(steps, units=16):
    """A network that runs for so many steps on what it is given at the first."""

    def forward(params, x, propagate=feedforward):
        def step(h, _, propagate):
            return propagate("hidden", lambda w, h: h @ w, jnp.tanh, params["hidden"], h), None

        h = propagate("input", lambda w, x: x @ w, jnp.tanh, params["input"], x)
        h, _ = nl.scan("time", step, h, None, propagate, length=steps)
        return propagate("output", lambda w, h: h @ w, lambda nu: nu, params["output"], h)

    params = {"input": jnp.ones((4, units)), "hidden": jnp.eye(units), "output": jnp.ones((units, 3))}
    return nl.supervised(forward, nl.losses.cross_entropy), params, (jnp.ones((2, 4)), jnp.zeros(2, int))


IN_TIME = {
    "backprop": nl.backprop,
    "backprop_recursion": nl.backprop_recursion,
    "lagrangian_backprop": nl.lagrangian_backprop,
    "feedback_alignment": nl.feedback_alignment,
    "node_perturbation": nl.node_perturbation,
    "forward_gradient": functools.partial(nl.forward_gradient, space=nl.spaces.nodes),
    "reinforce": functools.partial(nl.reinforce, units=nl.units.gaussian(sigma=0.1)),
    "predictive_coding": nl.predictive_coding,
    "fixed_prediction": nl.fixed_prediction,
    "direct_feedback": nl.direct_feedback_alignment,
    "target_propagation": functools.partial(nl.difference_target_propagation, optimizer=optax.sgd(0.1)),
}


@pytest.mark.parametrize("name", IN_TIME)
def test_what_is_compiled_does_not_depend_on_the_number_of_steps(name):
    def count(steps):
        objective, *at = _silent(steps)
        estimator = IN_TIME[name](objective)
        state = estimator.init(jax.random.key(0), at[0])
        return equations(estimator.estimate, jax.random.key(1), state, *at)

    assert count(25) == count(300) == count(10_000)


GRADIENT_FREE = {
    "node_perturbation": nl.node_perturbation,
    "many_samples": functools.partial(nl.node_perturbation, num_samples=40, directions=nl.directions.rademacher()),
    "batch_credit": functools.partial(nl.node_perturbation, credit=nl.spaces.per_batch_credit()),
    "forward_gradient": functools.partial(nl.forward_gradient, space=nl.spaces.nodes),
    "weight_perturbation": nl.weight_perturbation,
    "reinforce": functools.partial(nl.reinforce, units=nl.units.gaussian(sigma=0.1)),
}


@pytest.mark.parametrize("name", GRADIENT_FREE)
def test_memory_does_not_grow_with_the_number_of_steps(name):
    assert _temporaries(GRADIENT_FREE[name], 1000) <= 1.1 * _temporaries(GRADIENT_FREE[name], 100)


def test_memory_of_backprop_does():
    assert _temporaries(nl.backprop, 1000) > 5 * _temporaries(nl.backprop, 100)


def _temporaries(make, steps):
    objective, *at = _silent(steps)
    estimator = make(objective)
    compiled = jax.jit(estimator.estimate).lower(jax.random.key(1), estimator.init(jax.random.key(0), at[0]), *at)
    return compiled.compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("name", ["feedback_alignment", "backprop_recursion", "lagrangian_backprop"])
def test_one_run_forth_and_back_at_any_depth(name):
    """No more than three times backprop's equations: nothing is run once for every layer."""
    for depth in (10, 40):
        network = nl.mlp([3] * (depth + 1), activation=nl.activations.tanh())
        objective = nl.supervised(network.apply, nl.losses.cross_entropy)
        at = network.init(jax.random.key(0)), (jnp.ones((2, 3)), jnp.zeros(2, int))
        estimator = IN_TIME[name](objective)
        state = estimator.init(jax.random.key(0), at[0])
        ours = equations(estimator.estimate, jax.random.key(1), state, *at)
        assert ours <= 3 * equations(nl.backprop(objective).estimate, jax.random.key(1), (), *at)


def test_gradient_free_rules_take_no_derivative_in_loops():
    """The activation raises when it is differentiated; it closes over a state of the loop, which is an input too."""

    @jax.custom_jvp
    def rough(nu):
        return jnp.tanh(nu)

    @rough.defjvp
    def refuse(primals, tangents):
        raise AssertionError("differentiated")

    def forward(params, x, propagate=feedforward):
        def step(v, _, propagate):
            h = propagate("hidden", lambda w, v: v @ w, lambda nu: rough(nu + v), params["hidden"], v)
            return 0.5 * v + h, None

        return rough(nl.scan("time", step, x @ jnp.ones((4, 3)), None, propagate, length=5)[0])

    objective = nl.supervised(forward, nl.losses.half_squared_error)
    params, batch = {"hidden": jnp.eye(3)}, (jnp.ones((2, 4)), jnp.zeros((2, 3)))
    for name in ("node_perturbation", "weight_perturbation", "reinforce"):
        grads, _, _ = GRADIENT_FREE[name](objective).estimate(jax.random.key(0), (), params, batch)
        assert bool(jnp.all(jnp.isfinite(grads["hidden"])))
        assert bool(jnp.any(grads["hidden"] != 0))


def test_the_tools_of_diagnosis_work_on_loops():
    problem = problems.recurrent()
    at = jax.random.key(0), problem.params, problem.batch
    estimator, reference = nl.node_perturbation(problem.objective, num_samples=50), nl.backprop(problem.objective)
    measured = jax.jit(lambda: nl.diagnostics.measure(estimator, reference, *at, num_estimates=20))()
    assert float(measured.cosine) > 0.5
    feedback = nl.feedback_alignment(problem.objective)
    state = feedback.init(jax.random.key(1), problem.params)
    angles = jax.jit(lambda: nl.diagnostics.alignment(feedback, reference, at[0], state, *at[1:]))()
    assert float(angles["output"]) < 1e-3
    assert 1 < float(angles["hidden"]) < 179
