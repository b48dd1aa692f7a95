"""Difference target propagation: what is sent down, what decoders learn, and when it is backprop."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nl_jax as nl
from nl_jax.estimators.feedback.target_propagation import Decoders
from tests import problems

pytestmark = pytest.mark.slow

KEY, OTHER = jax.random.key(0), jax.random.key(5)
SGD = optax.sgd(0.1)
identity = lambda nu: nu


def propagation(objective, batch=None, **settings):
    return nl.difference_target_propagation(objective, batch, **({"optimizer": SGD} | settings))


@functools.cache
def square(orthogonal):
    """Three square linear layers on random data."""
    network = nl.mlp([3, 3, 3, 3], activation=identity)
    scheme = jax.nn.initializers.orthogonal() if orthogonal else jax.nn.initializers.normal(1.0)

    @jax.jit
    def draw():
        params = network.init(KEY, jnp.float64)
        for key, own in zip(jax.random.split(OTHER, 3), params.values(), strict=True):
            own["weight"] = scheme(key, (3, 3))
        return params, (jax.random.normal(KEY, (5, 3)), jax.random.normal(OTHER, (5, 3)))

    return nl.supervised(network.apply, nl.losses.half_squared_error), *draw()


def decoders(estimator, params, weights):
    """The first state with the given weights."""
    (_, biases), inner = estimator.init(OTHER, params)
    return Decoders(weights, biases), inner


def test_with_the_inverses_of_orthogonal_linear_layers_it_is_backprop(x64):
    objective, params, batch = square(orthogonal=True)
    estimator = propagation(objective, activation=identity)

    @jax.jit
    def both(params):
        ours, _, info = estimator.estimate(KEY, decoders(estimator, params, params), params, batch)
        return ours, nl.backprop(objective).estimate(KEY, (), params, batch)[0], info.residuals

    ours, exact, residuals = both(params)
    chex.assert_trees_all_close(ours, exact, rtol=1e-12, atol=1e-12)
    assert max(jax.tree.leaves((residuals.primal, residuals.dual))) < 1e-12


def test_inverse_decoders_send_credit_through_the_inverse(x64):
    """z_{l−1} = W_l⁻¹ z_l, which is no longer backprop (Meulemans et al. 2020), as the report of the point says."""
    objective, params, (x, targets) = square(orthogonal=False)
    estimator = propagation(objective, activation=identity)

    @jax.jit
    def both(params):
        inverse = {name: {**own, "weight": jnp.linalg.inv(own["weight"]).T} for name, own in params.items()}
        state = decoders(estimator, params, inverse)
        ours, _, info = estimator.estimate(KEY, state, params, (x, targets))
        _, axons = nl.propagation.record(objective)(params, (x, targets))
        z, by_hand = (axons["output"] - targets) / 5, {}
        for name, below in (("output", axons["hidden2"]), ("hidden2", axons["hidden1"]), ("hidden1", x)):
            by_hand[name] = {"weight": below.T @ z, "bias": jnp.sum(z, axis=0)}
            z = z @ inverse[name]["weight"].T
        norms = jax.tree.map(lambda g: jnp.linalg.norm(g.ravel()), ours)
        return (ours, info.residuals.gradient), (by_hand, norms), info.residuals.dual

    ours, expected, dual = both(params)  # the Lagrangian has the same ∂L/∂W at the point that is reported
    chex.assert_trees_all_close(ours, expected, rtol=1e-10, atol=1e-12)
    assert dual["output"] < 1e-12
    assert min(dual["hidden1"], dual["hidden2"]) > 0.1


def test_targets_are_decoded_in_difference_form(x64):
    """t_2 = x_2 − η ∂C/∂x_2 of each example, t_1 = x_1 + g(t_2) − g(x_2), δ_1 = (x_1 − t_1)/η f' (Lee et al. 2015)."""
    problem, eta = problems.chain(), 0.5
    estimator = propagation(problem.objective, problem.batch, eta=eta)

    @jax.jit
    def both(params, x, labels):
        (b, _), inner = estimator.init(OTHER, params)
        c = jnp.linspace(-1, 1, 5)
        _, axons = nl.propagation.record(problem.objective)(params, (x, labels))
        first, second = axons["hidden1"], axons["output"]
        g = lambda y: jnp.tanh(y @ b["output"]["weight"].T + c[None])
        target = first + g(second - eta * (jax.nn.softmax(second) - jax.nn.one_hot(labels, 3))) - g(second)
        by_hand = x.T @ ((first - target) / eta * (1 - first**2)) / 6
        state = Decoders(b, {"output": (c,)}), inner
        return estimator.estimate(KEY, state, params, (x, labels))[0]["hidden1"]["weight"], by_hand

    np.testing.assert_allclose(*both(problem.params, *problem.batch), rtol=1e-10, atol=1e-12)


def test_displacements_add_up_over_the_layers_above(x64):
    """With linear decoders z_low = B z_out + B' z_high, z_high = B'' z_out, whatever η."""
    problem = problems.skip()
    estimator = propagation(problem.objective, activation=identity, eta=3.0)

    @jax.jit
    def both(params, x, labels):
        state = estimator.init(OTHER, params)
        _, axons = nl.propagation.record(problem.objective)(params, (x, labels))
        b, low, high = state[0].weights, axons["low"], axons["high"]
        z = (jax.nn.softmax(axons["output"]) - jax.nn.one_hot(labels, 3)) / 6
        z_high = z @ b["output"]["high"]["weight"].T
        z_low = z @ b["output"]["low"]["weight"].T + z_high @ b["high"]["weight"].T
        by_hand = low.T @ jnp.where(high > 0, z_high, 0), x.T @ (z_low * low * (1 - low))
        ours = estimator.estimate(KEY, state, params, (x, labels))[0]
        return (ours["high"]["weight"], ours["low"]["weight"]), by_hand

    chex.assert_trees_all_close(*both(problem.params, *problem.batch), rtol=1e-10)


def test_layers_without_parameters_are_differentiated_as_they_are(x64):
    problem = problems.convolution()
    estimator = propagation(problem.objective, problem.batch, activation=identity)
    state = jax.eval_shape(estimator.init, OTHER, problem.params)
    assert list(state[0].biases) == ["output"]  # nor is anything decoded that is data

    @jax.jit
    def both(params, images, labels):
        state = estimator.init(OTHER, params)
        _, axons = nl.propagation.record(problem.objective)(params, (images, labels))
        told = (jax.nn.softmax(axons["output"]) - jax.nn.one_hot(labels, 3)) @ state[0].weights["output"]["weight"].T

        def inner(own):
            vector = nl.propagation.record(problem.forward)({**params, "features": own}, images)[1]["vector"]
            return jnp.mean(jnp.sum(vector * told, axis=1))

        ours = estimator.estimate(KEY, state, params, (images, labels))[0]
        return ours["features"], jax.grad(inner)(params["features"])

    chex.assert_trees_all_close(*both(problem.params, *problem.batch), rtol=1e-10)


def test_decoders_learn_to_invert_their_layer(x64):
    """Of orthogonal linear layers: then credit is backprop's, to which at first it had no likeness.

    All axons are 0 while they learn, so that there is nothing to learn from but the noise.
    """
    objective, params, batch = square(orthogonal=True)
    estimator = propagation(objective, activation=identity, sigma=1.0)
    silence = jax.tree.map(np.zeros_like, batch)

    @jax.jit
    def run():
        step = lambda state, key: (estimator.estimate(key, state, params, silence)[1], None)
        start = estimator.init(OTHER, params)
        end, _ = jax.lax.scan(step, start, jax.random.split(KEY, 300))
        at = [(estimator, nl.backprop(objective), KEY, state, params, batch) for state in (start, end)]
        return [nl.diagnostics.alignment(*at) for at in at]

    before, after = run()
    assert before["hidden1"] > 45
    assert max(after.values()) < 1


def test_decoders_go_down_the_error_of_what_was_disturbed(x64):
    """E ∂/∂B ½‖σξ(W Bᵀ − 1)‖² = σ²(W Bᵀ − 1)ᵀ W, the mean over examples, where all axons are 0."""
    objective, params, batch = square(orthogonal=False)
    sigma, silence = 0.5, jax.tree.map(np.zeros_like, batch)
    estimator = propagation(objective, activation=identity, sigma=sigma, optimizer=optax.sgd(1.0))

    @jax.jit
    def run():
        state = estimator.init(OTHER, params)
        after = jax.vmap(lambda key: estimator.estimate(key, state, params, silence)[1][0].weights["output"]["weight"])
        return state[0].weights["output"]["weight"], after(jax.random.split(KEY, 300))

    b, learned = map(np.asarray, run())
    w = np.asarray(params["output"]["weight"])
    steps = b - np.asarray(learned)
    error = np.std(steps, axis=0, ddof=1) / 300**0.5
    expected = sigma**2 * (w @ b.T - np.eye(3)).T @ w
    assert np.max(np.abs(steps.mean(axis=0) - expected) / error) < 4
    for twin in (0.5, 2):  # of σ², of the mean
        assert np.max(np.abs(steps.mean(axis=0) - twin * expected) / error) > 4


def test_hidden_layers_learn_what_the_output_alone_cannot():
    """Whether two numbers have the same sign."""
    network = nl.mlp([2, 8, 2], activation=nl.activations.tanh())
    inputs = np.random.default_rng(0).uniform(-1, 1, (32, 2)).astype(np.float32)
    batch = inputs, (inputs[:, 0] * inputs[:, 1] > 0).astype(np.int32)
    estimator = propagation(nl.supervised(network.apply, nl.losses.cross_entropy))

    @jax.jit
    @jax.vmap
    def loss(hidden_rate):
        def step(carry, key):
            params, state = carry
            grads, state, info = estimator.estimate(key, state, params, batch)
            rates = {"hidden1": hidden_rate, "output": jnp.float32(1)}
            moved = {n: jax.tree.map(lambda w, g, n=n: w - rates[n] * g, params[n], grads[n]) for n in params}
            return (moved, state), info.loss

        params = network.init(KEY)
        start = params, estimator.init(OTHER, params)
        return jax.lax.scan(step, start, jax.random.split(KEY, 300))[1][-1]

    alone, both = loss(jnp.array([0.0, 1.0]))
    assert both < 0.7 * alone


def test_settings_out_of_range_and_other_shapes_are_refused():
    problem = problems.chain()
    estimator = propagation(problem.objective, problem.batch)
    (weights, biases), inner = jax.eval_shape(estimator.init, KEY, problem.params)
    (c,) = biases["output"]
    narrow = Decoders(weights, {"output": (jax.ShapeDtypeStruct((1,), c.dtype),)}), inner
    with pytest.raises(ValueError, match=r"layer 'output': its decoder is for inputs of shapes \[\(1,\)\].*\[\(5,\)\]"):
        jax.eval_shape(estimator.estimate, KEY, narrow, problem.params, problem.batch)
    with pytest.raises(ValueError, match=r"key must be a typed key made by jax\.random\.key"):
        estimator.estimate(jnp.zeros(2, jnp.uint32), narrow, problem.params, problem.batch)
    with pytest.raises(ValueError, match=r"optimizer must be an optax optimizer .* got 0\.1"):
        propagation(problem.objective, optimizer=0.1)
    with pytest.raises(ValueError, match=r"activation must take one argument, got tanh: .*nl\.activations\.tanh\(\)"):
        propagation(problem.objective, activation=nl.activations.tanh)
    with pytest.raises(ValueError, match="eta must be a finite Python number above 0, got 0"):
        propagation(problem.objective, eta=0)
    with pytest.raises(ValueError, match="sigma must be a finite Python number above 0, got -1"):
        propagation(problem.objective, sigma=-1)


def test_without_layers_there_is_nothing_to_decode(x64):
    def objective(params, batch, propagate=nl.propagation.feedforward):
        return jnp.sum((batch @ params) ** 2, axis=1)

    params, batch = np.eye(2), np.ones((3, 2))
    estimator = propagation(objective)
    run = jax.jit(lambda *at: estimator.estimate(KEY, estimator.init(OTHER, params), *at))
    ours, _, _ = run(params, batch)
    np.testing.assert_allclose(ours, 2 * batch.T @ batch @ params / 3, rtol=1e-12)


def test_masks_beside_axons_are_given_no_target(x64):
    """Credit of what is let through is decoded; the decoder's other input stays as it is."""
    linear, product = lambda nu: nu, lambda w, x: x @ w
    masked = lambda w, x, mask: jnp.where(mask, x @ w, 0)

    def objective(params, batch, propagate=nl.propagation.feedforward):
        low = propagate("low", product, linear, params["low"], batch[0])
        return jnp.sum(propagate("high", masked, linear, params["high"], low, batch[1]) ** 2, axis=1) / 2

    rng = np.random.default_rng(0)
    params = {"low": rng.normal(size=(3, 4)), "high": rng.normal(size=(4, 2))}
    x, mask = rng.normal(size=(5, 3)), rng.random((5, 2)) < 0.5
    estimator = propagation(objective, (x, mask), activation=linear)

    @jax.jit
    def run(params, batch):
        state = estimator.init(OTHER, params)
        return estimator.estimate(KEY, state, params, batch), state[0].weights["high"]

    (ours, after, _), b = run(params, (x, mask))
    told = np.where(mask, x @ params["low"] @ params["high"], 0) @ np.asarray(b).T
    np.testing.assert_allclose(ours["low"], x.T @ told / 5, rtol=1e-12)
    assert [c.shape for c in after[0].biases["high"]] == [(4,)]


WITHOUT_EXAMPLE = {f.__name__: f for f in (problems.convolution, problems.closed_over, problems.batch_normed)} | {
    "recurrent": problems.recurrent,
    "depth": problems.depth,
}


@pytest.mark.parametrize("name", WITHOUT_EXAMPLE)
def test_weights_show_the_shapes_of_decoders_as_well_as_an_example(name, x64):
    """The same B, and c = 0: then the same estimates, also of the second step, when c has learned."""
    problem = WITHOUT_EXAMPLE[name]()
    told, shown = propagation(problem.objective, problem.batch), propagation(problem.objective)

    @jax.jit
    def two_steps(params, batch):
        def steps(estimator):
            state = estimator.init(OTHER, params)
            step = lambda state, key: estimator.estimate(key, state, params, batch)[1::-1]
            (decoders, _), grads = jax.lax.scan(step, state, jax.random.split(KEY, 2))
            return state[0].weights, grads, decoders

        return steps(told), steps(shown)

    (theirs, expected, by_layer), (own, ours, by_parameter) = two_steps(problem.params, problem.batch)
    chex.assert_trees_all_equal(own, theirs)
    chex.assert_trees_all_close(ours, expected, rtol=1e-10, atol=1e-12)
    chex.assert_trees_all_close(by_parameter.weights, by_layer.weights, rtol=1e-10, atol=1e-12)
    learned = [sorted(np.asarray(c).ravel()) for c in jax.tree.leaves(by_layer.biases)]
    found = [sorted(np.asarray(c).ravel()) for c in jax.tree.leaves(by_parameter.biases) if np.any(np.asarray(c) != 0)]
    assert np.all([np.any(c) for c in learned])
    for c in learned:  # the same arrays, in another tree
        assert any(np.allclose(c, other, rtol=1e-10) for other in found if len(other) == len(c))
    assert len(found) == len(learned)


def test_inputs_that_no_weight_shows_need_an_example():
    """A kernel does not say how many positions there are, nor a weight that it is used transposed."""
    c = nl.connections
    network = nl.network(
        nl.Layer("image", (6, 6, 1)),
        nl.Layer("low", (4, 4, 2), c.conv(3), jnp.tanh),
        nl.Layer("high", (2, 2, 3), c.conv(3), jnp.tanh),
        nl.Layer("vector", None, c.flatten()),
        nl.Layer("output", 3, c.dense()),
    )
    objective, params = nl.supervised(network.apply, nl.losses.cross_entropy), jax.eval_shape(network.init, KEY)
    batch = np.ones((2, 6, 6, 1), np.float32), np.zeros(2, np.int32)
    tied = problems.tied()
    cases = (objective, params, batch, r"'high' .* shape \(4, 4, 2\)"), (*tied[:3], r"'decode' .* shape \(3,\)")
    for objective, params, batch, named in cases:

        def traced(estimator, objective=objective, params=params, batch=batch):
            state = jax.eval_shape(estimator.init, OTHER, params)
            return jax.eval_shape(estimator.estimate, KEY, state, params, batch)[0]

        with pytest.raises(ValueError, match=rf"layer {named} for one example, .*objective, example=batch, …"):
            traced(propagation(objective))
        chex.assert_trees_all_equal_shapes_and_dtypes(traced(propagation(objective, batch)), params)


def test_an_example_that_is_no_batch_is_named():
    problem = problems.chain()
    estimator = propagation(problem.objective, problem.batch[0])
    with pytest.raises(ValueError, match=r"example must be a batch as the objective takes it"):
        estimator.init(KEY, problem.params)
