"""Direct feedback alignment is backprop but for what is sent, and where to."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nl_jax as nl
from tests import problems

KEY, OTHER = jax.random.key(0), jax.random.key(5)


def gradients(params, batch, *given):
    """The gradients of pairs (estimator, state), compiled together."""

    @jax.jit
    def run(params, batch, states):
        pairs = zip(given, states, strict=True)
        return [estimator.estimate(KEY, state, params, batch)[0] for (estimator, _), state in pairs]

    return run(params, batch, [state for _, state in given])


def preactivations(problem, params, batch, given):
    """ν of every layer, with some layers' axons given."""
    nus = {}

    def propagate(name, connection, activation, params, *inputs):
        nus[name] = connection(params, *inputs)
        return given[name] if name in given else activation(nus[name])

    problem.objective(params, batch, propagate=propagate)
    return nus


@pytest.mark.slow
@pytest.mark.parametrize("name", problems.PROBLEMS)
def test_with_the_jacobians_of_one_example_it_is_backprop(name, x64):
    """B = ∂ν^L/∂x^l, all ways up counted, is what backprop multiplies e by."""
    problem = problems.PROBLEMS[name]()
    batch = jax.tree.map(lambda x: np.asarray(x)[:1], problem.batch)
    estimator = nl.direct_feedback_alignment(problem.objective)

    @jax.jit
    def both(params, batch):
        drawn = nl.direct_feedback_weights(problem.objective, estimator.init(OTHER, params), params, batch)
        _, axons = nl.propagation.record(problem.objective)(params, batch)
        top = list(axons)[-1]

        def jacobian(layer, b):
            to_top = jax.jacrev(lambda x: preactivations(problem, params, batch, {layer: x})[top].ravel())
            return to_top(axons[layer]).reshape(b.shape[::-1]).T

        exact = {layer: jacobian(layer, b) for layer, b in drawn.items()}
        ours, theirs = (estimator.estimate(KEY, state, params, batch)[0] for state in (exact, drawn))
        return ours, theirs, nl.backprop(problem.objective).estimate(KEY, (), params, batch)[0]

    ours, theirs, exact = both(problem.params, batch)
    chex.assert_trees_all_close(ours, exact, rtol=1e-12, atol=1e-12)
    same = jax.tree.map(lambda a, b: np.allclose(a, b, rtol=1e-12, atol=1e-12), theirs, exact)
    assert all(jax.tree.leaves(same)) == (name == "one_layer")


@pytest.mark.slow
def test_in_a_linear_network_products_of_weights_are_backprop(x64):
    network = nl.mlp([3, 5, 4, 2], activation=lambda nu: nu)
    objective = nl.supervised(network.apply, nl.losses.cross_entropy)
    params = jax.device_get(jax.jit(network.init, static_argnums=1)(KEY, jnp.float64))
    batch = np.random.default_rng(0).normal(size=(6, 3)), np.arange(6) % 2
    second, third = params["hidden2"]["weight"], params["output"]["weight"]
    products = {"hidden1": second @ third, "hidden2": third}
    pairs = (nl.direct_feedback_alignment(objective), products), (nl.backprop(objective), ())
    chex.assert_trees_all_close(*gradients(params, batch, *pairs), rtol=1e-12, atol=1e-14)


def test_below_the_top_it_is_feedback_alignment_with_the_same_weights(x64):
    problem = problems.chain()
    direct, aligned = (
        nl.direct_feedback_alignment(problem.objective),
        nl.feedback_alignment(problem.objective),
    )
    b = jax.jit(aligned.init)(OTHER, problem.params)
    pairs = (direct, {"hidden1": b["output"]["weight"]}), (aligned, b)
    chex.assert_trees_all_close(*gradients(problem.params, problem.batch, *pairs), rtol=1e-12)


def test_what_the_loss_reads_of_a_hidden_layer_and_what_lies_above_the_highest_is_exact(x64):
    """Two heads of which the lower is read as well, and a layer without parameters on top."""

    def objective(params, batch, propagate=nl.propagation.feedforward):
        product = lambda w, x: x @ w
        low = propagate("low", product, jnp.tanh, params["low"], batch)
        high = propagate("high", product, jnp.tanh, params["high"], low)
        top = propagate("top", lambda own, x: jnp.cumsum(x, axis=1), jnp.tanh, {}, high)
        return jnp.sum(top**2, axis=1) + jnp.sum(low**3, axis=1)

    rng = np.random.default_rng(0)
    params, batch = {"low": rng.normal(size=(3, 4)), "high": rng.normal(size=(4, 2))}, rng.normal(size=(5, 3))
    silent = {"low": np.zeros((4, 2))}
    pairs = (nl.direct_feedback_alignment(objective), silent), (nl.backprop(objective), ())
    ours, exact = gradients(params, batch, *pairs)
    np.testing.assert_allclose(ours["high"], exact["high"], rtol=1e-12)
    axons = np.tanh(batch @ params["low"])
    low = batch.T @ (3 * axons**2 * (1 - axons**2)) / 5
    np.testing.assert_allclose(ours["low"], low, rtol=1e-12)


def test_a_state_of_ones_own_has_the_layers_and_shapes_of_the_batch():
    """Other sizes of a batch are no other shapes."""

    def objective(params, batch, propagate=nl.propagation.feedforward):
        low = propagate("low", lambda gain, x: gain * x, jnp.tanh, params["low"], batch)
        high = propagate("high", lambda w, x: jnp.sum(x, axis=1, keepdims=True) * w, jnp.tanh, params["high"], low)
        return jnp.sum(high, axis=1)

    params = {"low": jnp.float32(2), "high": jnp.ones((1, 2))}
    estimator = nl.direct_feedback_alignment(objective)

    def estimate(state, *shape):
        return jax.eval_shape(estimator.estimate, KEY, state, params, jnp.ones(shape))

    own, drawn = {"low": jnp.ones((3, 2))}, estimator.init(KEY, params)
    for state, shape in ((own, (5, 3)), (own, (2, 3)), (drawn, (5, 3)), (drawn, (5, 4))):
        grads, after, _ = estimate(state, *shape)
        chex.assert_trees_all_equal_shapes_and_dtypes((grads, after), (params, state))
    with pytest.raises(ValueError, match=r"layer 'low': the state's B has shape \(3, 2\).*\(4, 2\).*the state of init"):
        estimate(own, 5, 4)
    with pytest.raises(ValueError, match=r"the state has B of the layers high, but those .* are low: give each"):
        estimate({"high": jnp.ones((3, 2))}, 5, 3)
    with pytest.raises(ValueError, match=r"key must be a typed key made by jax\.random\.key"):
        estimator.init(jnp.zeros(2, jnp.uint32), params)


@pytest.mark.slow
def test_every_estimate_has_the_same_weights(x64):
    """With the drawn weights handed in, every step of training is the same; from another seed it is not."""
    problem = problems.chain()
    learner = nl.learner(nl.direct_feedback_alignment(problem.objective), optax.sgd(0.1))

    def trained(own, start):
        start = start._replace(estimator=own)
        halves = [jax.tree.map(lambda x, n=n: x[n:], problem.batch) for n in (0, 3)]  # of two sizes
        step = lambda state, key: (learner.step(key, learner.step(key, state, halves[0])[0], halves[1])[0], None)
        return jax.lax.scan(step, start, jax.random.split(KEY, 3))[0].params

    @jax.jit
    def run(params, batch):
        start = learner.init(OTHER, params)
        drawn = nl.direct_feedback_weights(problem.objective, start.estimator, params, batch)
        return [trained(own, start) for own in (drawn, start.estimator, start.estimator + jnp.uint32(1))]

    expected, ours, other = run(problem.params, problem.batch)
    chex.assert_trees_all_close(ours, expected, rtol=1e-12)
    assert not np.allclose(other["hidden1"]["weight"], expected["hidden1"]["weight"], rtol=1e-3)


def test_weights_depend_on_the_seed_and_the_name_alone_and_have_their_initializers_law():
    """Variance 1/units of the layer, of 300 × 40 values; a layer put between others changes none of the rest."""
    networks = [nl.mlp(sizes, activation=jnp.tanh) for sizes in ([3, 300, 40], [3, 300, 40, 40])]
    objectives = [nl.supervised(network.apply, nl.losses.cross_entropy) for network in networks]
    batch = np.ones((2, 3), np.float32), np.zeros(2, np.int32)

    @jax.jit
    def drawn(batch):
        found = []
        for network, objective in zip(networks, objectives, strict=True):
            params = network.init(KEY)
            seed = nl.direct_feedback_alignment(objective).init(OTHER, params)
            found.append(nl.direct_feedback_weights(objective, seed, params, batch))
        return found

    short, deep = drawn(batch)
    assert (list(short), list(deep)) == (["hidden1"], ["hidden1", "hidden2"])
    np.testing.assert_array_equal(short["hidden1"], deep["hidden1"])
    found = np.asarray(short["hidden1"], np.float64)
    error = (found**2).std() / found.size**0.5
    assert abs((found**2).mean() - 1 / 300) < 4 * error
    assert abs((found**2).mean() - 1 / 40) > 4 * error  # the variance of B's transpose
    assert abs(np.corrcoef(found[:40].ravel(), np.ravel(deep["hidden2"]))[0, 1]) < 4 / 40  # 40 × 40 pairs


@pytest.mark.parametrize("stack", [jnp.asarray, list])
def test_steps_with_their_own_weights_hear_by_their_own_and_others_share_one(stack):
    """Whatever the lengths of loops, and wherever the stack is made; a stack's B has the scale of one layer's."""
    units, depth = 40, 3

    def forward(params, x, propagate=nl.propagation.feedforward):
        matmul, steps = lambda w, x: x @ w, len(x)

        def recur(h, x, propagate):  # a weight that is gated and masked at each step is one
            x, mask, number, key = x
            gated = params["r"] * jnp.mean(x) * mask * jax.random.bernoulli(key, 0.5, (units, units)).astype(float)
            cell = lambda w, x, h: x + h @ (w * jnp.where(number > 0, 1.0, 0.5))
            return propagate("layer", cell, jnp.tanh, gated * jnp.where(number > 0, 1.0, 0.5), x, h), None

        xs = x, jnp.ones((steps, 1, 1)), jnp.arange(steps), jax.random.split(KEY, steps)
        h, _ = nl.scan("time", recur, jnp.zeros((x.shape[1], units)), xs, propagate)

        def carried(carry, _, propagate):  # weights that are carried are the same at every step
            h, w = carry
            return (propagate("layer", matmul, jnp.tanh, w, h), w), None

        (h, _), _ = nl.scan("again", carried, (h, params["r"]), None, propagate, length=depth)
        block = lambda h, w, propagate: (propagate("layer", matmul, jnp.tanh, w, h), None)
        h, _ = nl.scan("depth", block, h, jnp.stack(list(params["blocks"])), propagate)

        def gated(h, w, propagate):  # by data in a loop within, of fewer steps than there are weights
            inner = lambda h, x, propagate: (propagate("layer", matmul, jnp.tanh, w * x, h), None)
            return nl.scan("inner", inner, h, x[:2, :1, :1], propagate)[0], None

        h, _ = nl.scan("outer", gated, h, jnp.stack(list(params["blocks"])), propagate)

        def counted(carry, _, propagate):
            h, i = carry
            return (propagate("layer", matmul, jnp.tanh, jnp.stack(list(params["blocks"]))[i], h), i + 1), None

        (h, _), _ = nl.scan("count", counted, (h, 0), None, propagate, length=depth)
        return propagate("output", matmul, lambda nu: nu, params["output"], h)

    objective = nl.supervised(forward, nl.losses.half_squared_error)
    params = {
        "r": jnp.ones((units, units)),
        "blocks": stack(jnp.ones((depth, units, units))),
        "output": jnp.ones((units, 30)),
    }
    seed = nl.direct_feedback_alignment(objective).init(OTHER, params)
    for steps in (depth, depth + 2):  # the time loop may be as long as the stack is deep
        batch = jnp.ones((steps, 6, units)), jnp.ones((6, 30))

        drawn = nl.direct_feedback_weights(objective, seed, params, batch)
        shapes = {name: weight.shape for name, weight in drawn.items()}
        one, several = (units, 30), (depth, units, 30)
        shared = dict.fromkeys(("time/layer", "again/layer"), one)
        assert shapes == shared | dict.fromkeys(("depth/layer", "outer/inner/layer", "count/layer"), several)
        assert float(drawn["depth/layer"].std()) == pytest.approx(units**-0.5, rel=0.1)


@pytest.mark.parametrize("kind", ["rbg", "unsafe_rbg"])
def test_any_kind_of_key_makes_a_seed(kind):
    problem = problems.chain()
    estimator = nl.direct_feedback_alignment(problem.objective)
    state = estimator.init(jax.random.key(0, impl=kind), problem.params)
    assert (state.shape, state.dtype) == ((2,), jnp.uint32)
    jax.eval_shape(estimator.estimate, KEY, state, problem.params, problem.batch)


def test_an_example_is_no_longer_needed():
    problem = problems.chain()
    with pytest.warns(
        DeprecationWarning, match=r"direct_feedback_alignment: the argument 'example'.*leave it out"
    ) as seen:
        estimator = nl.direct_feedback_alignment(problem.objective, problem.batch)
    assert seen[0].filename == __file__
    state = estimator.init(OTHER, problem.params)
    expected = nl.direct_feedback_alignment(problem.objective).init(OTHER, problem.params)
    np.testing.assert_array_equal(state, expected)


def test_every_head_has_its_exact_gradient_and_all_are_heard_below(x64):
    """Two outputs, neither above the other, and the hidden layer they share: B = (W_first, W_second) is backprop."""

    def objective(params, batch, propagate=nl.propagation.feedforward):
        product, linear = lambda w, x: x @ w, lambda nu: nu
        low = propagate("low", product, jnp.tanh, params["low"], batch)
        first = propagate("first", product, linear, params["first"], low)
        second = propagate("second", product, linear, params["second"], low)
        return jnp.sum(first**2, axis=1) + jnp.sum((second - 1) ** 2, axis=1)

    rng = np.random.default_rng(0)
    shapes = {"low": (3, 4), "first": (4, 2), "second": (4, 1)}
    params, batch = {name: rng.normal(size=shape) for name, shape in shapes.items()}, rng.normal(size=(5, 3))
    estimator = nl.direct_feedback_alignment(objective)
    drawn = jax.eval_shape(
        lambda *at: nl.direct_feedback_weights(objective, estimator.init(OTHER, params), *at), params, batch
    )
    assert jax.tree.map(jnp.shape, drawn) == {"low": (4, 3)}
    b = {"low": np.concatenate([params["first"], params["second"]], axis=1)}
    chex.assert_trees_all_close(*gradients(params, batch, (estimator, b), (nl.backprop(objective), ())), rtol=1e-12)


@pytest.mark.parametrize(
    ("shape", "complaint"),
    [
        ((-1, 2), r"layer 'only' has a pre-activation of shape \(6, 2\), whose first axis is not the batch of 3"),
        (None, "no layer depends on the parameters"),
    ],
)
def test_layers_that_are_no_examples_are_refused(shape, complaint):
    def objective(params, batch, propagate=nl.propagation.feedforward):
        folded = batch if shape is None else batch.reshape(shape)
        product = lambda w, x: x * w
        nu = folded * params if shape is None else propagate("only", product, jnp.tanh, params, folded)
        return jnp.sum(nu.reshape(3, -1), axis=1)

    batch = jnp.ones((3, 4))
    with pytest.raises(ValueError, match=complaint):
        nl.direct_feedback_alignment(objective).estimate(KEY, jnp.zeros(2, jnp.uint32), jnp.float32(2), batch)
