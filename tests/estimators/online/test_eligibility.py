"""e-prop, RFLO and the three-factor rule."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nl_jax as nl
from nl_jax.estimators.online.own_units import fault
from nl_jax.estimators.online.three_factor import cubed
from nl_jax.evaluation.conformance.problem import Problem
from nl_jax.evaluation.conformance.subject import keys, sampler
from nl_jax.propagation import Site, feedforward
from nl_jax.propagation.trial import recorded
from tests import problems
from tests.deviation import largest_deviation
from tests.estimators.online import programs

pytestmark = pytest.mark.slow

CELLS = {
    "leaky": nl.cells.leaky(3, rate=0.3),
    "lif": nl.cells.lif(3, threshold=0.5),
    "adaptive": nl.cells.lif(3, threshold=0.5, adaptation=0.3, current_decay=0.5, reset=nl.cells.to_zero),
}


@pytest.fixture(autouse=True, scope="module")
def fresh():
    """Programs of this module's precision."""
    programs.leaky.cache_clear()


@pytest.fixture(autouse=True)
def double(x64):
    """Programs of float64."""


def _exact(objective, params, batch):
    return jax.value_and_grad(lambda params: jnp.mean(objective(params, batch)))(params)


def _estimates(makes, objective, params, batch):
    """Estimates of several estimators as (gradient, state, info), then the mean loss and its gradient: one program."""

    @jax.jit
    def run(params, batch):
        found = []
        for estimator in (make(objective) for make in makes):
            state = estimator.init(jax.random.key(1), params)
            found.append(estimator.estimate(jax.random.key(0), state, params, batch))
        return found, _exact(objective, params, batch)

    found, exact = run(params, batch)
    return (*found, exact)


def _network(cell, read, recurrent=0.0):
    network = nl.recurrent(cell, 2, 3, read=read)

    @jax.jit
    def drawn():
        params = network.init(jax.random.key(0), float)
        params["hidden"]["recurrent"] *= recurrent
        return params, (3 * jax.random.normal(jax.random.key(2), (4, 6, 2)), jnp.arange(4) % 3)

    return nl.supervised(network.apply, nl.losses.cross_entropy), *drawn()


@pytest.mark.parametrize(("cell", "read"), [("leaky", "mean"), ("lif", "mean"), ("lif", "last"), ("adaptive", "last")])
def test_without_recurrent_connections_it_is_backprop_through_time(cell, read):
    at = _network(CELLS[cell], getattr(nl.cells, read))
    (grads, _, info), (loss, exact) = _estimates([nl.e_prop], *at)
    chex.assert_trees_all_close(grads, exact, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(info.loss, loss, rtol=1e-12)


def test_a_loss_may_be_subtracted_and_read_labels_from_outside_the_loop():
    """Neither labels, which have no derivative, nor the way that a sum is written change an estimate."""
    inputs, labels = jax.random.normal(jax.random.key(2), (4, 6, 2)), jnp.arange(4) % 2
    params = programs.leaky().params

    def objective(params, batch, propagate, outside):
        x, y = batch

        def step(carry, slices, propagate):
            h, total = carry
            x, target = slices if not outside else (slices, y)
            h = 0.7 * h + 0.3 * propagate("hidden", programs.connected, jnp.tanh, params["hidden"], x, h)
            scores = propagate("output", programs.affine, lambda nu: nu, params["output"], h)
            gain = jnp.take_along_axis(jax.nn.log_softmax(scores), target[:, None], axis=1)[:, 0]
            return (h, total - gain if outside else total + -gain), None

        xs = jnp.swapaxes(x, 0, 1)
        slices = xs if outside else (xs, jnp.broadcast_to(y, (len(xs), *y.shape)))
        start = jnp.zeros((len(x), 3), x.dtype), jnp.zeros(len(x), x.dtype)
        return nl.scan("time", step, start, slices, propagate)[0][1]

    @jax.jit
    def both(params):
        found = []
        for outside in (True, False):
            program = lambda params, batch, propagate=feedforward, outside=outside: objective(
                params, batch, propagate, outside
            )
            for make in (nl.e_prop, nl.rflo, nl.snap):
                estimator = make(program)
                state = estimator.init(jax.random.key(1), params)
                found.append(estimator.estimate(jax.random.key(0), state, params, (inputs, labels))[0])
        return found[:3], found[3:]

    chex.assert_trees_all_close(*both(params), rtol=1e-12)


def test_with_recurrent_connections_it_leaves_out_what_units_do_to_others():
    at = _network(CELLS["leaky"], nl.cells.mean, recurrent=4.0)
    (grads, _, _), (_, exact) = _estimates([nl.e_prop], *at)
    chex.assert_trees_all_close(grads["output"], exact["output"], rtol=1e-12)
    ours, theirs = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(g["hidden"])]) for g in (grads, exact))
    cosine = ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs)
    assert 0.5 < cosine < 0.9999


def test_two_layers_a_step_send_credit_down():
    """The lower layer's units act on the upper ones' in the same step; without recurrence: exact but for what the upper
    layer's leak makes of it later, which is no state of the lower layer's own."""

    def objective(params, batch, propagate=feedforward):
        def step(carry, x, propagate):
            low, loss = carry
            low = 0.5 * low + propagate("low", programs.affine, jnp.tanh, params["low"], x)
            high = propagate("high", programs.affine, jnp.tanh, params["high"], low)
            return (low, loss + jnp.sum(high**2, axis=1)), None

        start = jnp.zeros((4, 3)), jnp.zeros(4)
        return nl.scan("time", step, start, batch, propagate)[0][1]

    rng = np.random.default_rng(0)
    weights = lambda *shape: {"weight": rng.normal(size=shape), "bias": np.zeros(shape[1])}
    params, batch = {"low": weights(2, 3), "high": weights(3, 2)}, rng.normal(size=(5, 4, 2))
    makes = nl.e_prop, functools.partial(nl.e_prop, feedback=nl.feedback.random())
    (ours, _, _), (random, _, _), (_, exact) = _estimates(makes, objective, params, batch)
    chex.assert_trees_all_close(ours, exact, rtol=1e-12)
    chex.assert_trees_all_close(random["high"], exact["high"], rtol=1e-12)
    assert not np.allclose(random["low"]["weight"], exact["low"]["weight"], rtol=0.1)


def test_rflo_is_its_equation():
    """Murray's rule written out, on a leaky network whose read-out is in the loop."""
    problem = programs.leaky()
    (xs, targets), params = programs.by_step(problem), problem.params
    (grads, feedback, _), _ = _estimates([nl.rflo], problem.objective, params, problem.batch)
    B, hidden = np.asarray(feedback["output"]["weight"]), np.zeros((4, 3))
    W, U, b = (np.asarray(params["hidden"][k]) for k in ("weight", "recurrent", "bias"))
    V, c = np.asarray(params["output"]["weight"]), np.asarray(params["output"]["bias"])
    p = {"weight": np.zeros((4, 2, 3)), "recurrent": np.zeros((4, 3, 3))}
    expected = {"weight": 0.0, "recurrent": 0.0}
    for x, target in zip(np.asarray(xs), np.asarray(targets), strict=True):
        reads = {"weight": x, "recurrent": hidden}
        fed = np.tanh(x @ W + hidden @ U + b)
        p = {k: 0.7 * p[k] + 0.3 * np.einsum("ni,nj->nij", reads[k], 1 - fed**2) for k in p}
        hidden = 0.7 * hidden + 0.3 * fed
        error = 2 * (hidden @ V + c - target)
        expected = {k: expected[k] + np.einsum("nj,nij->ij", error @ B.T, p[k]) / 4 for k in p}
    np.testing.assert_allclose(grads["hidden"]["weight"], expected["weight"], rtol=1e-10)
    np.testing.assert_allclose(grads["hidden"]["recurrent"], expected["recurrent"], rtol=1e-10)


def test_learned_feedback_is_carried_from_estimate_to_estimate():
    at = _network(CELLS["leaky"], nl.cells.last)
    estimator = nl.e_prop(at[0], feedback=nl.feedback.kolen_pollack(optax.sgd(0.1)))

    @jax.jit
    def run(params, batch):
        state = estimator.init(jax.random.key(1), params)
        grads, after, _ = estimator.estimate(jax.random.key(0), state, params, batch)
        return after[0], jax.tree.map(lambda B, g: B - 0.1 * g, state[0], grads), state[0]

    after, moved, before = run(*at[1:])
    chex.assert_trees_all_close(after, moved, rtol=1e-10)
    assert not np.allclose(after["hidden"]["weight"], before["hidden"]["weight"], rtol=1e-6)


def test_what_is_no_units_own_state_is_refused():
    def objective(params, batch, propagate=feedforward):
        def step(sums, x, propagate):
            return 0.5 * sums + propagate("hidden", lambda w, x: x @ w, jnp.tanh, params, x).sum(axis=1), None

        return nl.scan("time", step, jnp.zeros(4), batch, propagate)[0]

    at = jnp.ones((2, 3)), jnp.ones((5, 4, 2))
    with pytest.raises(ValueError, match=r"layer 'time/hidden' has pre-activations of shape \(4, 3\) and moves a"):
        _estimates([nl.e_prop], objective, *at)
    with pytest.raises(ValueError, match="e_prop: the program has no loop named loop='tim'"):
        _estimates([functools.partial(nl.e_prop, loop="tim")], objective, *at)
    chain = problems.chain()
    network = nl.recurrent(nl.cells.rnn(2), 1, 2)
    error = nl.supervised(network.apply, nl.losses.half_squared_error)
    no_steps = network.init(jax.random.key(0), jnp.float64), (jnp.ones((3, 0, 1)), jnp.ones((3, 2)))
    for make in (nl.e_prop, nl.rtrl, nl.three_factor):
        with pytest.raises(ValueError, match="loop 'time' has no steps: give it a length, or xs"):
            _estimates([make], error, *no_steps)
        with pytest.raises(ValueError, match=r"loop must be the name of the program's loop over time.* got 3"):
            make(objective, loop=3)
    with pytest.raises(ValueError, match="rflo: the program has no loop named loop='time', its loops are none"):
        _estimates([nl.rflo], chain.objective, chain.params, chain.batch)
    with pytest.raises(ValueError, match=r"feedback must be one of nl\.feedback"):
        nl.e_prop(objective, feedback="random")


@pytest.mark.parametrize("make", [nl.rflo, nl.three_factor])  # e_prop is rflo without the feedback weights
def test_memory_does_not_grow_with_the_steps(make):
    assert programs.cost(make, 1000).temporaries <= 1.1 * programs.cost(make, 100).temporaries


def test_three_factors_have_the_gradient_for_their_mean():
    objective, params, batch = _network(CELLS["leaky"], nl.cells.mean, recurrent=1.0)
    problem = Problem(objective, params, batch, None)
    _, gradient = jax.jit(functools.partial(_exact, objective))(params, batch)
    make = functools.partial(nl.three_factor, sigma=0.02, num_samples=2, baseline=nl.reward_baselines.leave_one_out())
    expected = np.concatenate([np.ravel(x) for x in jax.tree.leaves(gradient)])
    found = sampler(make(problem.objective), problem)(keys(4000), ())
    assert largest_deviation(found, expected) < 5
    assert largest_deviation(1.2 * found, expected) > 5  # a twin too long
    twin = sampler(make(problem.objective, response=cubed), problem)(keys(4000), ())
    assert largest_deviation(twin, expected) > 5  # E ξ⁴ = 3: not calibrated
    assert largest_deviation(twin / 3, expected) < 5


def test_three_factors_take_no_derivative():
    @jax.custom_jvp
    def rough(x):
        return jnp.tanh(x)

    @rough.defjvp
    def refuse(primals, tangents):
        raise AssertionError("differentiated")

    def objective(params, batch, propagate=feedforward):
        def step(h, x, propagate):
            return rough(h + propagate("hidden", lambda w, x, h: (x + h) @ w, rough, params, x, h)), None

        return rough(nl.scan("time", step, jnp.zeros((4, 2)), batch, propagate)[0]).sum(axis=1)

    estimator, key = nl.three_factor(objective), jax.random.key(0)
    run = jax.jit(lambda *at: estimator.estimate(key, estimator.init(key, at[0]), *at))
    grads, _, info = run(np.eye(2), np.ones((5, 4, 2)))
    assert np.all(np.isfinite(grads))
    assert np.any(grads != 0)
    assert int(info.evaluations) == 2


def _of_layer(connection):
    """Leaky units over four steps, without a recurrent connection."""

    def objective(params, batch, propagate=feedforward):
        x, target = batch
        step = lambda h, x, propagate: (h / 2 + propagate("layer", connection, jnp.tanh, params, x), None)
        return jnp.sum((nl.scan("time", step, jnp.zeros_like(target), x, propagate)[0] - target) ** 2, axis=1)

    return objective


def _centred(params, x):
    nu = x @ params["weight"]
    return (nu - nu.mean(axis=0)) * params["gain"]


def _declared(params, x):
    return _centred(params, x)


_declared.mixes_examples = True


@jax.custom_vjp
def _by_hand(params, x):
    return x @ params["weight"]


_by_hand.defvjp(
    lambda params, x: (x @ params["weight"], (params, x)),
    lambda at, credit: ({"weight": at[1].T @ credit}, credit @ at[0]["weight"].T),
)

SQUARE, UP = np.arange(9.0).reshape(3, 3) / 9 - 0.4, np.arange(1.0, 4.0)
OWN_UNITS = "has parameters that act on other units than that of their place on the last axis"


@pytest.mark.parametrize(
    ("connection", "params", "said"),
    [
        (lambda params, x: x @ params["weight"] * params["gain"], {"gain": SQUARE[0]}, None),
        (lambda params, x: x @ params["weight"].T, {}, OWN_UNITS),
        (lambda params, x: (x * params["gain"]) @ params["weight"], {"gain": SQUARE[0]}, OWN_UNITS),
        (lambda params, x: x @ params["weight"] * params["gain"], {"gain": jnp.array(0.5)}, r"'gain' of shape \(\)"),
        (lambda params, x: x @ jnp.roll(params["weight"], 2, axis=-1), {}, OWN_UNITS),
        (lambda params, x: jnp.where(x > -9, x, 0) @ params["weight"].T, {}, OWN_UNITS),
        (lambda params, x: (x @ params["weight"] * jnp.sqrt(params["gain"]))[:, ::-1], {"gain": UP}, OWN_UNITS),
        (_by_hand, {}, None),
        (_centred, {"gain": SQUARE[0]}, "mixes examples"),
        (_declared, {"gain": SQUARE[0]}, "mixes examples"),
    ],
    ids=[
        "own_units",
        "transposed",
        "inputs_scaled",
        "one_gain",
        "rolled",
        "masked",
        "reversed",
        "custom_derivative",
        "centred",
        "declared",
    ],
)
def test_traces_need_parameters_of_their_own_unit_and_example(connection, params, said, lenient):
    batch = jax.random.normal(jax.random.key(0), (4, 5, 3)), jnp.ones((5, 3))
    at = _of_layer(connection), {"weight": SQUARE, **params}, batch
    if said is not None:
        with pytest.raises(ValueError, match=f"e_prop: layer 'time/layer' .*{said}"):
            _estimates([nl.e_prop], *at)
        return
    (grads, _, _), (_, exact) = _estimates([nl.e_prop], *at)
    chex.assert_trees_all_close(grads, exact, rtol=1e-6)


def test_masks_and_tables():
    """Integers and Booleans: neither hides a fault, nor is a table refused."""

    def why(connection, params, x):
        return fault(recorded(Site("layer", connection, jnp.tanh, params, (x,))))

    transposed = lambda weight, x: jnp.where(x, 1.0, 0.0) @ weight.T
    assert why(transposed, SQUARE, jnp.ones((5, 3), bool)) == OWN_UNITS
    assert why(lambda table, ids: table[ids], SQUARE, jnp.ones(5, int)) is None


def test_a_declared_mix_is_refused_in_a_batch_of_one(lenient):
    batch = jnp.ones((4, 1, 3)), jnp.ones((1, 3))
    with pytest.raises(ValueError, match="layer 'time/layer' mixes examples"):
        _estimates([nl.e_prop], _of_layer(_declared), {"weight": SQUARE, "gain": UP}, batch)


def test_a_recurrent_input_may_be_gated():
    """An input from the previous step that passes a gate of this step is still one from the previous step."""
    batch = jax.random.normal(jax.random.key(0), (4, 5, 3)), jnp.ones((5, 3))
    connection = lambda weight, x, h: (x + h) @ weight

    def objective(params, batch, propagate=feedforward, gated=False):
        def step(h, slices, propagate):
            x, gate = slices
            before = h * gate if gated else h
            return h / 2 + propagate("layer", connection, jnp.tanh, params, x, before), None

        slices = batch[0], jnp.ones_like(batch[0])
        return jnp.sum(nl.scan("time", step, jnp.zeros_like(batch[1]), slices, propagate)[0] ** 2, axis=1)

    def with_gate(params, batch, propagate=feedforward):
        return objective(params, batch, propagate, gated=True)

    (plain, _, _), _ = _estimates([nl.e_prop], objective, SQUARE, batch)
    (gated, _, _), _ = _estimates([nl.e_prop], with_gate, SQUARE, batch)
    np.testing.assert_allclose(gated, plain, rtol=1e-12)


def test_layers_of_loops_before_and_within():
    """A loop before that over time takes no traces; in one within it, there are none."""
    affine = lambda weight, x: x @ weight
    batch = jax.random.normal(jax.random.key(0), (4, 5, 3)), jnp.ones((5, 3))

    def after(params, batch, propagate=feedforward):
        layer = lambda x, w, propagate: (propagate("layer", affine, jnp.tanh, w, x), None)
        x, _ = nl.scan("depth", layer, batch[0], params["depth"], propagate)
        return _of_layer(affine)(params["time"], (x, batch[1]), propagate)

    params = {"depth": np.stack([SQUARE, SQUARE.T]), "time": SQUARE}
    (grads, _, _), (_, exact) = _estimates([nl.e_prop], after, params, batch)
    chex.assert_trees_all_close(grads["time"], exact["time"], rtol=1e-6)  # the encoder has no traces

    def within(params, batch, propagate=feedforward):
        def step(h, x, propagate):
            layer = lambda h, w, propagate: (h / 2 + propagate("layer", affine, jnp.tanh, w, x), None)
            return nl.scan("depth", layer, h, params["depth"], propagate)[0], None

        return jnp.sum(nl.scan("time", step, jnp.zeros_like(batch[1]), batch[0], propagate)[0] ** 2, axis=1)

    with pytest.raises(ValueError, match="e_prop: layer 'time/depth/layer' is in a loop within a loop"):
        _estimates([nl.e_prop], within, params, batch)
    with pytest.raises(ValueError, match="layer 'time/depth/layer' is in another loop than the one over time"):
        _estimates([functools.partial(nl.three_factor, loop="time/depth")], within, params, batch)


@pytest.mark.parametrize("make", [nl.three_factor, nl.e_prop])
@pytest.mark.parametrize("where", ["xs", "carry"])
def test_parameters_that_change_from_step_to_step_are_refused(make, where):
    affine = lambda weight, x: x @ weight

    def objective(params, batch, propagate=feedforward):
        def step(carry, scale, propagate):
            h, decay = carry
            weight = params * (scale if where == "xs" else decay)
            return (h / 2 + propagate("layer", affine, jnp.tanh, weight, batch), 0.5 * decay), None

        start = jnp.zeros_like(batch), jnp.ones((), batch.dtype)
        (h, _), _ = nl.scan("time", step, start, jnp.arange(1.0, 4.0), propagate)
        return jnp.sum(h**2, axis=1)

    with pytest.raises(ValueError, match="has parameters that change from step to step"):
        _estimates([make], objective, SQUARE, np.ones((5, 3)))


def test_settings_of_three_factors():
    objective = programs.leaky().objective
    with pytest.raises(ValueError, match="sigma must be a finite Python number above 0, got 0"):
        nl.three_factor(objective, sigma=0)
    with pytest.raises(ValueError, match="num_samples must be at least 2 for this baseline, got 1"):
        nl.three_factor(objective, baseline=nl.reward_baselines.leave_one_out())
    with pytest.raises(ValueError, match="response must take one argument"):
        nl.three_factor(objective, response=lambda a, b: a)
    normed = problems.batch_normed()
    with pytest.raises(ValueError, match="three_factor: layer 'low' mixes examples"):
        _estimates([nl.three_factor], normed.objective, normed.params, normed.batch)


def _encoded(inside, learned_start=False):
    """An encoder of another width than the cell's, in the loop or before it."""
    weighted = lambda weight, x: x @ weight

    def objective(params, batch, propagate=feedforward):
        xs = jnp.swapaxes(batch[0], 0, 1)
        if not inside:
            xs = propagate("encoder", weighted, jnp.tanh, params["encoder"], xs)

        def step(h, x, propagate):
            if inside:
                x = propagate("encoder", weighted, jnp.tanh, params["encoder"], x)
            h = 0.7 * h + propagate("hidden", programs.connected, jnp.tanh, params["hidden"], x, h)
            return h, h

        hidden, trace = nl.scan(
            "time", step, jnp.full((4, 3), params["start"]) if learned_start else jnp.ones((4, 3)), xs, propagate
        )
        return jnp.sum((trace.mean(axis=0) + hidden - batch[1]) ** 2, axis=1)

    rng = np.random.default_rng(0)
    hidden = {"weight": rng.normal(size=(5, 3)) / 2, "bias": np.full(3, 0.1), "recurrent": rng.normal(size=(3, 3)) / 2}
    params = {"encoder": rng.normal(size=(2, 5)), "hidden": hidden, "start": np.ones(())}
    return objective, params, (rng.normal(size=(4, 6, 2)), rng.normal(size=(4, 3)))


@pytest.mark.parametrize("make", [nl.rflo, nl.snap])
def test_an_encoder_has_the_credit_of_the_moment_in_the_loop_and_before_it(make):
    _, *at = _encoded(inside=False)

    @jax.jit
    def both(params, batch):
        estimators = [make(_encoded(inside)[0]) for inside in (False, True)]
        states = [estimator.init(jax.random.key(1), params) for estimator in estimators]
        return [e.estimate(jax.random.key(0), s, params, batch)[0] for e, s in zip(estimators, states, strict=True)]

    before, within = both(*at)
    chex.assert_trees_all_close(before, within, rtol=1e-12)
    assert np.linalg.norm(before["encoder"]) > 0.01


def test_a_start_that_is_learned_is_refused():
    with pytest.raises(ValueError, match="e_prop: the loop's start depends on parameters"):
        _estimates([nl.e_prop], *_encoded(inside=True, learned_start=True))
