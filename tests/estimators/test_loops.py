"""Every estimator on programs with loops: as on the unrolled program, or a refusal that says what to use."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nl_jax as nl
from nl_jax.estimators.feedback.target_propagation import Decoders
from nl_jax.evaluation.conformance.subject import flat, keys, sampler
from nl_jax.propagation import feedforward, interpret
from tests import problems
from tests.deviation import largest_deviation
from tests.equations import equations
from tests.estimators.online import programs
from tests.registry import ESTIMATORS

pytestmark = pytest.mark.slow

REFUSES = {
    "zero_divergence": "fixed_prediction",
    "admm": "augmented_lagrangian",
}
"""What makes no sense there, and what the message recommends."""

BY_NAME = "direct_feedback", "target_propagation"
"""Their weights are those of a layer's name or of a parameter, which an unrolled program has others of; see below."""

AGREES = {
    **dict.fromkeys(("backprop_recursion", "predictive_coding", "equilibrium_propagation"), ("time", "depth")),
    **dict.fromkeys(("feedback_random", "dual_propagation", "weight_clean", "forward_weights"), ("time", "depth")),
    **dict.fromkeys(("backprop", "fixed_prediction", "primal_dual", "augmented_lagrangian"), ("time",)),
    **dict.fromkeys(("feedback_weight_mirror", "subspace_inputs", "weight_rank_one"), ("time",)),
    **dict.fromkeys(("lagrangian_backprop", "error_predictive_coding", "extragradient"), ("depth",)),
    **dict.fromkeys(("contrastive_hebbian", "feedback_kolen_pollack"), ("depth",)),
}
"""Those that are compared with the unrolled program, and in which loops: each family in both."""

OWN_NOISE = (
    *("node_clean", "node_batch_credit", "node_orthogonal", "node_iterative", "forward_nodes", "reinforce"),
    # Laws that take a stacked weight for one where a loop slices it, which the unrolled program does by itself.
    *("weight_rank_one", "weight_flipout_antithetic", "subspace_inputs", "subspace_random_antithetic"),
)
"""Those that draw other noise in a loop than unrolled, with the same mean."""

LIKE = {
    "auxiliary_coordinates": "predictive_coding",
    "feedback_sign_symmetric": "feedback_random",
    "feedback_sign_concordant": "feedback_random",
    # These run a program whole, whatever loops it has.
    **dict.fromkeys(("weight_none", "weight_antithetic", "weight_running_mean"), "weight_clean"),
    **dict.fromkeys(("evolution_strategy", "normalised"), "weight_clean"),
    "mix": "forward_weights",
    "forward_low_rank": "weight_rank_one",
    **dict.fromkeys(("node_none", "node_antithetic", "node_activity", "average", "partition"), "node_clean"),
}
"""Those that differ from another in nothing that loops concern; their certificate runs them over time as well."""

FADING = ("equilibrium_propagation", "contrastive_hebbian")
"""Credit fades by γ a layer on its way down, and rounding counts 1/γ times as much: γ = 0.1, eight layers."""

KEY = jax.random.key(0)
LOOPS = {"time": problems.recurrent, "depth": problems.depth}


def _estimate(make, problem):
    estimator = make(problem.objective)

    @jax.jit
    def run(params, batch):
        return estimator.estimate(jax.random.key(1), estimator.init(jax.random.key(0), params), params, batch)

    grads, _, info = run(problem.params, problem.batch)
    return grads, info


def _exact(problem, params, batch):
    return jax.grad(lambda p: jnp.mean(problem.objective(p, batch)))(params)


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

    @jax.jit
    def both(*args):
        seed = estimator.init(KEY, args[0])
        state, there = (nl.direct_feedback_weights(p.objective, seed, *args) for p in (problem, unrolled))
        own = {}
        for name in there:
            layer, step = _layer_and_step(loop, name)
            own[name] = state[layer] if step is None or loop == "time" else state[layer][step]
        return estimator.estimate(KEY, seed, *args), other.estimate(KEY, own, *args)

    (grads, _, info), (expected, _, there) = both(problem.params, problem.batch)
    chex.assert_trees_all_close(grads, expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(info.loss, there.loss, rtol=1e-12)


@pytest.mark.parametrize("loop", LOOPS)
def test_targets_are_decoded_from_step_to_step(loop, x64):
    """As unrolled with the same decoders: over time one for all steps, over depth one for each."""
    problem, unrolled = LOOPS[loop](), problems.unrolled(LOOPS[loop]())
    make = functools.partial(nl.difference_target_propagation, optimizer=optax.sgd(0.1), eta=0.5)
    estimator, other = make(problem.objective, problem.batch), make(unrolled.objective, unrolled.batch)

    @jax.jit
    def both(*args):
        (weights, biases), inner = estimator.init(KEY, args[0])
        biases = jax.tree.map(lambda c: jax.random.normal(KEY, c.shape), biases)
        own = {}
        for name in jax.eval_shape(other.init, KEY, args[0])[0].biases:
            layer, step = _layer_and_step(loop, name)
            own[name] = tuple(c if step is None or loop == "time" else c[step] for c in biases[layer])
        ours = estimator.estimate(KEY, (Decoders(weights, biases), inner), *args)
        return biases, ours, other.estimate(KEY, (Decoders(weights, own), inner), *args)

    biases, (grads, ((_, learned), _), info), (expected, _, there) = both(problem.params, problem.batch)
    chex.assert_trees_all_close(grads, expected, rtol=1e-10, atol=1e-12)
    squares = dict.fromkeys(info.residuals.dual, 0.0)
    for name, dual in there.residuals.dual.items():
        squares[_layer_and_step(loop, name)[0]] += dual**2
    for name, dual in info.residuals.dual.items():
        np.testing.assert_allclose(dual, squares[name] ** 0.5, rtol=1e-8)
    moved = jax.tree.map(lambda before, after: np.any(before != after), biases, learned)
    assert all(jax.tree.leaves(moved))


def test_decoders_learn_from_all_steps(x64):
    """½‖g(f(x + σξ)) − (x + σξ)‖² at σ → 0, by hand: the change of c is the sum of the steps' errors."""
    problem = programs.leaky()
    make = functools.partial(nl.difference_target_propagation, activation=lambda nu: nu, sigma=1e-12)
    estimator = make(problem.objective, problem.batch, optimizer=optax.sgd(1.0))

    @jax.jit
    def run(params, batch):
        state = estimator.init(KEY, params)
        _, ((_, biases), _), _ = estimator.estimate(KEY, state, params, batch)
        return state[0].weights["hidden"]["recurrent"], biases["time/hidden"][1]

    B, found = run(problem.params, problem.batch)
    hidden, change = np.zeros((4, 3)), 0.0
    for x in np.asarray(programs.by_step(problem)[0]):
        fed = _fed(problem, x, hidden)
        change += np.mean(hidden - fed @ np.asarray(B).T, axis=0)
        hidden = 0.7 * hidden + 0.3 * fed
    np.testing.assert_allclose(found, change, rtol=1e-8)


def _fed(problem, x, hidden):
    """What the layer of `programs.leaky` computes, by numpy."""
    own = jax.tree.map(np.asarray, problem.params["hidden"])
    return np.tanh(x @ own["weight"] + hidden @ own["recurrent"] + own["bias"])


def test_direct_feedback_hears_a_read_out_in_the_loop_step_by_step(x64):
    """By hand: B e_t, with the error of the same step, through the activation of this one."""
    problem = programs.leaky()
    estimator = nl.direct_feedback_alignment(problem.objective)

    @jax.jit
    def run(params, batch):
        seed = estimator.init(KEY, params)
        state = nl.direct_feedback_weights(problem.objective, seed, params, batch)
        return estimator.estimate(KEY, seed, params, batch)[0], state

    grads, state = run(problem.params, problem.batch)
    (B,), hidden, expected = map(np.asarray, state.values()), np.zeros((4, 3)), 0.0
    read = jax.tree.map(np.asarray, problem.params["output"])
    for x, target in zip(*map(np.asarray, programs.by_step(problem)), strict=True):
        fed = _fed(problem, x, hidden)
        hidden = 0.7 * hidden + 0.3 * fed
        e = 2 * (hidden @ read["weight"] + read["bias"] - target) / 4
        expected += x.T @ (e @ B.T * (1 - fed**2))
    np.testing.assert_allclose(grads["hidden"]["weight"], expected, rtol=1e-10)


def test_direct_feedback_hears_heads_inside_and_outside_a_loop(x64):
    """By hand: a step hears the head in its loop at the same step; a layer below the loop hears the sum over steps."""

    def forward(params, x, propagate=feedforward):
        product, linear = lambda w, x: x @ w, lambda nu: nu

        def step(x, _, propagate):
            x = propagate("r", product, jnp.tanh, params["r"], x)
            return x, propagate("y", product, linear, params["y"], x)

        low = propagate("low", product, jnp.tanh, params["low"], x)
        x, read = nl.scan("time", step, low, None, propagate, length=3)
        return jnp.sum(read**2, axis=0) + propagate("out", product, linear, params["out"], x)

    rng = np.random.default_rng(0)
    shapes = {"low": (2, 4), "r": (4, 4), "y": (4, 2), "out": (4, 2)}
    params = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    state = {"low": rng.normal(size=(4, 4)), "time/r": rng.normal(size=(4, 4))}
    objective = nl.supervised(forward, nl.losses.half_squared_error)
    estimator = nl.direct_feedback_alignment(objective)
    batch = rng.normal(size=(6, 2)), rng.normal(size=(6, 2))
    credit = jax.jit(estimator.credit)(KEY, state, params, batch)
    first, last = credit["time/y"].delta, credit["out"].delta
    heard = np.concatenate([first, np.broadcast_to(last, (3, 6, 2))], axis=-1)
    own = credit["time/r"]
    np.testing.assert_allclose(own.delta, heard @ state["time/r"].T * (1 - own.axons**2), rtol=1e-10)
    heard, own = np.concatenate([np.sum(first, axis=0), last], axis=-1), credit["low"]
    np.testing.assert_allclose(own.delta, heard @ state["low"].T * (1 - own.axons**2), rtol=1e-10)


def test_every_estimator_has_its_place_here():
    placed = {*AGREES, *OWN_NOISE, *LIKE, *BY_NAME, *REFUSES}
    assert placed == set(ESTIMATORS)
    assert set(LIKE.values()) <= {*AGREES, *OWN_NOISE}


@pytest.mark.parametrize(("name", "loop"), [(name, loop) for name, loops in AGREES.items() for loop in loops])
def test_agrees_with_the_unrolled_program(name, loop, x64):
    entry, problem = ESTIMATORS[name], LOOPS[loop]()
    exact = entry.derivative and not entry.random and entry.calibrated and name != "fixed_prediction"  # of two steps

    @jax.jit
    def run(*at):
        found = []
        for objective in (problem.objective, problems.unrolled(problem).objective):
            estimator = entry.make(objective)
            grads, _, info = estimator.estimate(jax.random.key(1), estimator.init(jax.random.key(0), at[0]), *at)
            found.append((grads, info.loss))
        return found, _exact(problem, *at) if exact else None

    ((grads, loss), (expected, there)), gradient = run(problem.params, problem.batch)
    chex.assert_trees_all_close(grads, expected, rtol=1e-7 if name in FADING else 1e-10, atol=1e-12)
    np.testing.assert_allclose(loss, there, rtol=1e-12)
    if exact:
        chex.assert_trees_all_close(grads, gradient, rtol=1e-10, atol=1e-12)


@functools.cache
def _depth_gradient():
    problem = problems.depth()
    return flat(jax.jit(functools.partial(_exact, problem))(problem.params, problem.batch))


@pytest.mark.parametrize("name", OWN_NOISE)
def test_its_own_noise_has_the_gradient_for_its_mean_over_depth(name, x64):
    """Over time their certificate says so."""
    problem = problems.depth()
    estimator = ESTIMATORS[name].make(problem.objective)
    found = sampler(estimator, problem)(keys(2000), estimator.init(jax.random.key(0), problem.params))
    g = _depth_gradient()
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

    dtype = jnp.asarray(0.0).dtype
    params = {"hidden": np.linspace(-1, 1, 6).reshape(2, 3), "output": np.linspace(-1, 2, 9).reshape(3, 3)}
    params = {name: jnp.asarray(w, dtype) for name, w in params.items()}
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
    looped, unrolled = (_outputs_in_the_loop(read_out, loop) for loop in (True, False))

    @jax.jit
    def run(*at):
        found = [make(objective).estimate(KEY, (), *at) for objective in (looped[0], unrolled[0])]
        return [(g, i.residuals) for g, _, i in found], jax.grad(lambda p: jnp.mean(looped[0](p, at[1])))(at[0])

    found, gradient = run(*looped[1:])
    for _, residuals in found:
        if not exact:
            assert {name for name, r in residuals.primal.items() if r > 1e-9}  # some axons have moved
            assert all(r < 1e-12 for name, r in residuals.primal.items() if "output" in name)
    (grads, _), (expected, _) = found
    chex.assert_trees_all_close(grads, expected, rtol=1e-10, atol=1e-12)
    apart = max(float(np.max(np.abs(a - b))) for a, b in zip(*map(jax.tree.leaves, (grads, gradient)), strict=True))
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
        for l in range(2):
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
    rng = np.random.default_rng(0)
    dtype = jnp.asarray(0.0).dtype
    params = {f"layer{l}": jnp.asarray(rng.normal(size=(3, 3)), dtype) for l in range(2)}
    x = jnp.asarray(rng.normal(size=(5, 3)), dtype)
    return objective, params, (x, x)


OWN_SETTINGS = {
    "partition": lambda objective: nl.partition(objective, {"layer1": nl.backprop, "*": nl.node_perturbation}),
}

SAME_CALLS = (
    *("auxiliary_coordinates", "extragradient", "feedback_sign_symmetric", "feedback_sign_concordant"),
    *("feedback_kolen_pollack", "node_orthogonal", "node_none", "node_antithetic", "average"),
)
"""Those that have another one's code call the layers for them."""


def _traced(make, bound):
    """The program of an estimate, written out, but for the addresses of functions."""
    objective, *at = _rebinding(bound)
    estimator = make(objective)
    traced = jax.make_jaxpr(estimator.estimate)(KEY, jax.eval_shape(estimator.init, KEY, at[0]), *at)
    return re.sub("0x[0-9a-f]+", "", str(traced))


@pytest.mark.parametrize("name", [n for n, entry in ESTIMATORS.items() if entry.layers and n not in SAME_CALLS])
def test_closures_over_names_that_are_bound_again(name):
    """A layer's functions are called only while it runs: what a name means later does not change the program."""
    make = OWN_SETTINGS.get(name, ESTIMATORS[name].make)
    assert _traced(make, False) == _traced(make, True)


def test_functions_called_after_the_program_has_gone_on_are_noticed():
    def late(objective):
        def estimate(key, state, params, batch):
            sites = []
            interpret(objective, lambda site, given: (sites.append(site) or site.axons(), None))(params, batch)
            return jax.tree.map(jnp.zeros_like, params), state, nl.Info(sites[0].axons().mean(), jnp.int32(1))

        return nl.GradientEstimator(lambda key, params: (), estimate)

    assert _traced(late, False) != _traced(late, True)


def test_closures_over_names_that_are_bound_again_have_their_gradient(x64):
    objective, params, batch = _rebinding(False)

    @jax.jit
    def run(params):
        makes = nl.backprop_recursion, nl.lagrangian_backprop
        estimates = [make(objective).estimate(KEY, (), params, batch)[0] for make in makes]
        return estimates, jax.grad(lambda p: jnp.mean(objective(p, batch)))(params)

    estimates, exact = run(params)
    for grads in estimates:
        chex.assert_trees_all_close(grads, exact, rtol=1e-10, atol=1e-12)


def _silent(steps, units=16, layers=1):
    """A network that runs for so many steps on what it is given at the first, and the shapes of what it takes."""

    def forward(params, x, propagate=feedforward):
        def step(h, _, propagate):
            for i in range(layers):
                h = propagate(f"hidden{i}", lambda w, h: h @ w, jnp.tanh, params["hidden"], h)
            return h, None

        h = propagate("input", lambda w, x: x @ w, jnp.tanh, params["input"], x)
        h, _ = nl.scan("time", step, h, None, propagate, length=steps)
        return propagate("output", lambda w, h: h @ w, lambda nu: nu, params["output"], h)

    shapes = {"input": (4, units), "hidden": (units, units), "output": (units, 3)}
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    batch = jax.ShapeDtypeStruct((2, 4), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.int32)
    return nl.supervised(forward, nl.losses.cross_entropy), params, batch


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
        state = jax.eval_shape(estimator.init, KEY, at[0])
        return equations(estimator.estimate, KEY, state, *at)

    assert count(25) == count(10_000)


@pytest.mark.parametrize("credit", [nl.spaces.per_example_credit, nl.spaces.per_batch_credit])
def test_noise_of_a_step_is_drawn_once_for_all_its_layers(credit):
    """To perturb it and to judge it: not once for each layer."""

    def draws(layers):
        objective, *at = _silent(5, layers=layers)
        estimator = nl.node_perturbation(objective, num_samples=4, credit=credit(), chunk=4)
        return str(jax.make_jaxpr(lambda *at: estimator.estimate(KEY, (), *at))(*at)).count("erf_inv")

    assert draws(1) == draws(3) > 0


IN_NODES = {
    "node_perturbation": nl.node_perturbation,
    "forward_gradient": functools.partial(nl.forward_gradient, space=nl.spaces.nodes),
    "reinforce": functools.partial(nl.reinforce, units=nl.units.gaussian(sigma=0.01)),  # of the smoothed loss: O(σ²)
}


@pytest.mark.parametrize("name", IN_NODES)
def test_noise_in_a_loop_within_a_loop(name):
    """Layers before, in and after the inner loop have the gradient on average: every step has noise of its own."""

    def objective(params, x, propagate=feedforward):
        layer = lambda name, h, propagate: propagate(name, lambda w, h: h @ w, jnp.tanh, params[name], h)

        def outer(h, _, propagate):
            h = layer("first", h, propagate)
            inner = lambda h, _, propagate: (layer("inner", h, propagate), None)
            h, _ = nl.scan("inside", inner, h, None, propagate, length=2)
            return layer("last", h, propagate), None

        h, _ = nl.scan("outside", outer, x, None, propagate, length=2)
        return jnp.sum((h - 1) ** 2, axis=1)

    params = {name: jnp.eye(2) + 0.1 * i for i, name in enumerate(("first", "inner", "last"))}
    batch = jax.random.normal(KEY, (3, 2))
    estimator = IN_NODES[name](objective, num_samples=20)

    @jax.jit
    def both(params, batch):
        exact = jax.grad(lambda params: jnp.mean(objective(params, batch)))(params)
        estimate = lambda key: estimator.estimate(key, estimator.init(key, params), params, batch)[0]
        return jax.vmap(estimate)(jax.random.split(KEY, 4000)), exact

    found, exact = both(params, batch)
    rows = np.concatenate([np.reshape(leaf, (len(leaf), -1)) for leaf in jax.tree.leaves(found)], axis=1)
    assert largest_deviation(rows, flat(exact)) < 5


@pytest.mark.parametrize("scope", ["time/", ""], ids=["in a loop", "outside"])
def test_layers_of_several_precisions_in_one_step(scope):
    """Where promotion is strict too, as it is in these tests; credit has each layer's own precision."""

    def objective(params, x, propagate=feedforward):
        def step(h, _, propagate):
            half = propagate("half", lambda w, h: h.astype(w.dtype) @ w, jnp.tanh, params["half"], h)
            full = lambda w, h: h.astype(w.dtype) @ w
            return propagate("full", full, jnp.tanh, params["full"], half), None

        if not scope:
            return jnp.sum(step(x, None, propagate)[0] ** 2, axis=1)
        return jnp.sum(nl.scan("time", step, x, None, propagate, length=3)[0] ** 2, axis=1)

    params = {"half": jnp.eye(2, dtype=jnp.bfloat16), "full": jnp.eye(2)}
    estimator = nl.node_perturbation(objective)
    grads, credit = jax.jit(lambda *at: (estimator.estimate(*at)[0], estimator.credit(*at)))(
        KEY, (), params, jnp.ones((3, 2))
    )
    for name, weight in params.items():
        assert grads[name].dtype == credit[scope + name].delta.dtype == weight.dtype
        assert np.all(np.isfinite(np.asarray(grads[name], float)))


GRADIENT_FREE = {
    "node_perturbation": functools.partial(nl.node_perturbation, num_samples=40, directions=nl.directions.rademacher()),
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
    lowered = jax.jit(estimator.estimate).lower(KEY, jax.eval_shape(estimator.init, KEY, at[0]), *at)
    return lowered.compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("name", ["feedback_alignment", "backprop_recursion", "lagrangian_backprop"])
def test_one_run_forth_and_back_at_any_depth(name):
    """No more than three times backprop's equations: nothing is run once for every layer."""
    for depth in (5, 20):
        network = nl.mlp([3] * (depth + 1), activation=nl.activations.tanh())
        objective = nl.supervised(network.apply, nl.losses.cross_entropy)
        params = jax.eval_shape(network.init, KEY)
        at = params, (jax.ShapeDtypeStruct((2, 3), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.int32))
        estimator = IN_TIME[name](objective)
        ours = equations(estimator.estimate, KEY, jax.eval_shape(estimator.init, KEY, params), *at)
        assert ours <= 3 * equations(nl.backprop(objective).estimate, KEY, (), *at)


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
    makes = [GRADIENT_FREE[name] for name in ("node_perturbation", "weight_perturbation", "reinforce")]
    run = jax.jit(lambda params: [make(objective).estimate(KEY, (), params, batch)[0]["hidden"] for make in makes])
    for grads in run(params):
        assert np.all(np.isfinite(grads))
        assert np.any(grads != 0)


def test_the_tools_of_diagnosis_work_on_loops():
    problem = problems.recurrent()
    at = jax.random.key(0), problem.params, problem.batch
    estimator, reference = nl.node_perturbation(problem.objective, num_samples=50), nl.backprop(problem.objective)
    feedback = nl.feedback_alignment(problem.objective)

    @jax.jit
    def run():
        measured = nl.diagnostics.measure(estimator, reference, *at, num_estimates=20)
        state = feedback.init(jax.random.key(1), problem.params)
        return measured, nl.diagnostics.alignment(feedback, reference, at[0], state, *at[1:])

    measured, angles = run()
    assert float(measured.cosine) > 0.5
    assert float(angles["output"]) < 1e-3
    assert 1 < float(angles["hidden"]) < 179
