"""Feedback alignment is backprop but for the weights on the way back."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nl_jax as nl
from nl_jax.theory import conservation
from tests import problems

KEY, OTHER = jax.random.key(0), jax.random.key(5)
ALL = {**problems.PROBLEMS, "batch_normed": problems.batch_normed}


def gradients(estimator, state, params, batch):
    return jax.jit(estimator.estimate)(KEY, state, params, batch)[0]


@pytest.mark.parametrize("name", ALL)
def test_with_the_forward_weights_it_is_backprop(name, x64):
    problem = ALL[name]()
    estimator = nl.feedback_alignment(problem.objective)
    at = problem.params, problem.batch
    exact = gradients(nl.backprop(problem.objective), (), *at)
    chex.assert_trees_all_close(gradients(estimator, problem.params, *at), exact, rtol=1e-12, atol=1e-12)
    drawn = gradients(estimator, estimator.init(OTHER, problem.params), *at)
    same = jax.tree.map(lambda a, b: bool(jnp.allclose(a, b, rtol=1e-12, atol=1e-12)), drawn, exact)
    if name in ("chain", "skip", "convolution", "batch_normed"):
        assert all(jax.tree.leaves(same["output"]))
    assert all(jax.tree.leaves(same)) == (name == "one_layer")  # which has no way back


def test_is_the_recursion_of_the_paper(x64):
    """δ³ = p − p̄, δ² = B³ δ³ ⊙ f'(ν²), δ¹ = B² δ² ⊙ f'(ν¹) (Lillicrap et al. 2016, methods)."""
    network = nl.mlp([3, 5, 4, 2], activation=nl.activations.tanh())
    params = network.init(KEY, jnp.float64)
    x, labels = jax.random.normal(OTHER, (6, 3)), jnp.arange(6) % 2
    estimator = nl.feedback_alignment(nl.supervised(network.apply, nl.losses.cross_entropy))
    b = estimator.init(OTHER, params)
    grads = gradients(estimator, b, params, (x, labels))

    def affine(name, x):
        return x @ params[name]["weight"] + params[name]["bias"][None, :]

    first = jnp.tanh(affine("hidden1", x))
    second = jnp.tanh(affine("hidden2", first))
    error = (jax.nn.softmax(affine("output", second)) - jax.nn.one_hot(labels, 2)) / 6
    above = (error @ b["output"]["weight"].T) * (1 - second**2)
    below = (above @ b["hidden2"]["weight"].T) * (1 - first**2)
    by_hand = {
        name: {"weight": lower.T @ delta, "bias": jnp.sum(delta, axis=0)}
        for name, lower, delta in (("hidden1", x, below), ("hidden2", first, above), ("output", second, error))
    }
    chex.assert_trees_all_close(grads, by_hand, rtol=1e-12, atol=1e-14)


def test_what_a_linear_network_conserves(x64):
    """W₀W₀ᵀ − (BW + WᵀBᵀ) of feedback alignment, W₀W₀ᵀ − WᵀW of backprop, and neither the other's.

    One step moves what is conserved by η² alone, other quantities by η: a quarter or a half of it at half the step.
    """
    network = nl.mlp([3, 4, 2], activation=lambda nu: nu, bias=False)
    params = network.init(KEY, jnp.float64)
    batch = jax.random.normal(KEY, (6, 3)), jax.random.normal(OTHER, (6, 2))
    objective = nl.supervised(network.apply, nl.losses.half_squared_error)
    aligned = nl.feedback_alignment(objective)
    b = aligned.init(OTHER, params)

    def seed_weights(params):
        return params["hidden1"]["weight"].T, params["output"]["weight"].T

    def of_alignment(params):
        return conservation.feedback_alignment(*seed_weights(params), b["output"]["weight"])

    def of_backprop(params):
        return conservation.backprop(seed_weights(params))[0]

    def moved(quantity, grads, eta):
        after = jax.tree.map(lambda w, g: w - eta * g, params, grads)
        return jnp.linalg.norm(quantity(after) - quantity(params))

    fed_back, exact = gradients(aligned, b, params, batch), gradients(nl.backprop(objective), (), params, batch)
    for quantity, grads, order in (
        (of_alignment, fed_back, 2),
        (of_backprop, exact, 2),
        (of_alignment, exact, 1),
        (of_backprop, fed_back, 1),
    ):
        assert float(moved(quantity, grads, 2e-5) / moved(quantity, grads, 1e-5)) == pytest.approx(2**order, rel=1e-3)


def test_forward_weights_align_with_the_feedback():
    """A student of a teacher, from small weights (Lillicrap et al. 2016): cosine to the gradient, over draws of B."""
    network = nl.mlp([10, 20, 5], activation=nl.activations.tanh())
    inputs = jax.random.normal(jax.random.key(2), (100, 10))
    batch = inputs, network.apply(network.init(jax.random.key(3)), inputs)
    params = jax.tree.map(lambda w: 0.1 * w, network.init(KEY))
    objective = nl.supervised(network.apply, nl.losses.half_squared_error)
    estimator = nl.feedback_alignment(objective)
    learner = nl.learner(estimator, optax.sgd(0.3))

    def cosine(b, params):
        ours = estimator.estimate(KEY, b, params, batch)[0]["hidden1"]["weight"]
        exact = nl.backprop(objective).estimate(KEY, (), params, batch)[0]["hidden1"]["weight"]
        return jnp.vdot(ours, exact) / jnp.linalg.norm(ours) / jnp.linalg.norm(exact)

    def run(key):
        start = learner.init(key, params)
        end, info = jax.lax.scan(lambda state, _: learner.step(KEY, state, batch), start, length=300)
        return cosine(start.estimator, start.params), cosine(end.estimator, end.params), info.loss[-1] / info.loss[0]

    before, after, left = (np.asarray(x) for x in jax.jit(jax.vmap(run))(jax.random.split(OTHER, 20)))
    assert abs(before.mean()) < 3 * before.std(ddof=1) / 20**0.5
    assert after.min() > 0.3
    assert left.max() < 0.1


def test_kolen_pollack_becomes_backprop(x64):
    """W − B decays by 1 − ηλ at each step, whatever is learned, and Adam's scaling included."""
    problem = problems.chain()
    optimizer = optax.adamw(0.1, weight_decay=0.5)
    learner = nl.learner(
        nl.feedback_alignment(problem.objective, feedback=nl.feedback.kolen_pollack(optimizer)), optimizer
    )
    state = learner.init(KEY, problem.params)
    gap = jax.tree.map(jnp.subtract, state.params, state.estimator[0])
    step = jax.jit(learner.step)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for _ in range(4):
            state, _ = step(KEY, state, problem.batch)
    assert float(jnp.linalg.norm(state.params["output"]["weight"] - problem.params["output"]["weight"])) > 0.1
    shrunk = jax.tree.map(lambda g: (1 - 0.1 * 0.5) ** 4 * g, gap)
    chex.assert_trees_all_close(jax.tree.map(jnp.subtract, state.params, state.estimator[0]), shrunk, rtol=1e-12)


def test_sign_symmetric_is_one_bit_of_each_weight(x64):
    problem = problems.convolution()
    scheme = nl.feedback.sign_symmetric()
    b = scheme.weights((), problem.params)
    np.testing.assert_allclose(b["features"]["weight"], np.sign(problem.params["features"]["weight"]) / 18**0.5)
    np.testing.assert_allclose(b["output"]["weight"], np.sign(problem.params["output"]["weight"]) / 12**0.5)
    estimator = nl.feedback_alignment(problem.objective, feedback=scheme)
    ours = gradients(estimator, (), problem.params, problem.batch)
    given = gradients(nl.feedback_alignment(problem.objective), b, problem.params, problem.batch)
    chex.assert_trees_all_close(ours, given, rtol=1e-12)


@pytest.mark.parametrize(
    "feedback", [nl.feedback.random(), nl.feedback.sign_symmetric(), nl.feedback.kolen_pollack(optax.sgd(0.1))]
)
def test_keeps_the_precision(feedback):
    params = jax.tree.map(lambda w: w.astype(jnp.bfloat16), problems.chain().params)
    inputs, labels = problems.chain().batch
    estimator = nl.feedback_alignment(problems.chain().objective, feedback=feedback)
    state = estimator.init(KEY, params)
    grads, after, _ = estimator.estimate(KEY, state, params, (inputs.astype(jnp.bfloat16), labels))
    chex.assert_trees_all_equal_shapes_and_dtypes(grads, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)


def test_draws_have_the_scale_of_forward_weights_and_see_none():
    params = nl.mlp([50, 40, 30], activation=jnp.tanh).init(KEY)
    draw = nl.feedback.random().init
    b = draw(OTHER, params)
    for layer, fan_in in (("hidden1", 50), ("output", 40)):
        assert float(jnp.std(b[layer]["weight"])) == pytest.approx(fan_in**-0.5, rel=0.1)
    chex.assert_trees_all_equal(b, draw(OTHER, jax.tree.map(lambda w: 3 * w + 1, params)))


def test_a_connection_that_holds_its_weight_is_fed_back_like_one_that_is_given_it(x64):
    def spelled(weight_of):
        def forward(params, x, propagate=nl.propagation.feedforward):
            connection, own = weight_of(params)
            hidden = propagate("hidden", connection("hidden"), jnp.tanh, own["hidden"], x)
            return propagate("output", connection("output"), lambda nu: nu, own["output"], hidden)

        return nl.supervised(forward, nl.losses.half_squared_error)

    given = spelled(lambda params: (lambda name: lambda own, x: x @ own, params))
    held = spelled(lambda params: (lambda name: lambda own, x: x @ params[name], {"hidden": (), "output": ()}))
    params = {"hidden": jax.random.normal(KEY, (3, 4)), "output": jax.random.normal(KEY, (4, 2))}
    b = nl.feedback.random().init(OTHER, params)
    batch = jax.random.normal(KEY, (5, 3)), jnp.ones((5, 2))
    a, c = (gradients(nl.feedback_alignment(objective), b, params, batch) for objective in (given, held))
    chex.assert_trees_all_close(a, c, rtol=1e-12)


@pytest.mark.parametrize("feedback", [nl.feedback.random(), nl.feedback.kolen_pollack(optax.sgd(0.1))])
def test_untyped_keys_are_refused(feedback):
    with pytest.raises(ValueError, match=r"key must be a typed key made by jax\.random\.key"):
        feedback.init(jnp.zeros(2, jnp.uint32), problems.chain().params)
