"""Feedback alignment is backprop but for the weights on the way back."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nl_jax as nl
from nl_jax.estimators.feedback.scale import scaled
from nl_jax.propagation import Site, feedforward
from nl_jax.propagation.trial import fan_ins
from nl_jax.theory import conservation
from tests import problems

pytestmark = pytest.mark.slow

KEY, OTHER = jax.random.key(0), jax.random.key(5)
ALL = {**problems.PROBLEMS, "batch_normed": problems.batch_normed}


def gradients(params, batch, *given):
    """The gradients of pairs (estimator, state), compiled together; a state of None is drawn with OTHER."""

    @jax.jit
    def run(params, batch, states):
        found = []
        for (estimator, _), state in zip(given, states, strict=True):
            state = estimator.init(OTHER, params) if state is None else state
            found.append(estimator.estimate(KEY, state, params, batch)[0])
        return found

    return run(params, batch, [state for _, state in given])


@pytest.mark.parametrize("name", ALL)
def test_with_the_forward_weights_it_is_backprop(name, x64):
    problem = ALL[name]()
    estimator = nl.feedback_alignment(problem.objective)
    pairs = (nl.backprop(problem.objective), ()), (estimator, problem.params), (estimator, None)
    exact, aligned, drawn = gradients(problem.params, problem.batch, *pairs)
    chex.assert_trees_all_close(aligned, exact, rtol=1e-12, atol=1e-12)
    same = jax.tree.map(lambda a, b: np.allclose(a, b, rtol=1e-12, atol=1e-12), drawn, exact)
    if name in ("chain", "skip", "convolution", "batch_normed"):
        assert all(jax.tree.leaves(same["output"]))
    assert all(jax.tree.leaves(same)) == (name == "one_layer")  # which has no way back


def test_is_the_recursion_of_the_paper(x64):
    """δ³ = p − p̄, δ² = B³ δ³ ⊙ f'(ν²), δ¹ = B² δ² ⊙ f'(ν¹) (Lillicrap et al. 2016, methods)."""
    network = nl.mlp([3, 5, 4, 2], activation=nl.activations.tanh())
    estimator = nl.feedback_alignment(nl.supervised(network.apply, nl.losses.cross_entropy))
    x, labels = np.random.default_rng(0).normal(size=(6, 3)), np.arange(6) % 2

    @jax.jit
    def run(batch):
        params = network.init(KEY, jnp.float64)
        b = estimator.init(OTHER, params)
        return params, b, estimator.estimate(KEY, b, params, batch)[0]

    params, b, grads = jax.device_get(run((x, labels)))

    def affine(name, x):
        return x @ params[name]["weight"] + params[name]["bias"]

    first = np.tanh(affine("hidden1", x))
    second = np.tanh(affine("hidden2", first))
    odds = np.exp(affine("output", second))
    error = (odds / odds.sum(axis=1, keepdims=True) - np.eye(2)[labels]) / 6
    above = (error @ b["output"]["weight"].T) * (1 - second**2)
    below = (above @ b["hidden2"]["weight"].T) * (1 - first**2)
    by_hand = {
        name: {"weight": lower.T @ delta, "bias": np.sum(delta, axis=0)}
        for name, lower, delta in (("hidden1", x, below), ("hidden2", first, above), ("output", second, error))
    }
    chex.assert_trees_all_close(grads, by_hand, rtol=1e-12, atol=1e-14)


def test_what_a_linear_network_conserves(x64):
    """W₀W₀ᵀ − (BW + WᵀBᵀ) of feedback alignment, W₀W₀ᵀ − WᵀW of backprop, and neither the other's.

    One step moves what is conserved by η² alone, other quantities by η: a quarter or a half of it at half the step.
    """
    network = nl.mlp([3, 4, 2], activation=lambda nu: nu, bias=False)
    rng = np.random.default_rng(0)
    batch = rng.normal(size=(6, 3)), rng.normal(size=(6, 2))
    objective = nl.supervised(network.apply, nl.losses.half_squared_error)
    aligned = nl.feedback_alignment(objective)

    def seed_weights(params):
        return params["hidden1"]["weight"].T, params["output"]["weight"].T

    def of_backprop(params):
        return conservation.backprop(seed_weights(params))[0]

    @jax.jit
    def ratios(batch):
        """Of what one step moves, at some rate and at half of it."""
        params = network.init(KEY, jnp.float64)
        b = aligned.init(OTHER, params)
        fed_back = aligned.estimate(KEY, b, params, batch)[0]
        exact = nl.backprop(objective).estimate(KEY, (), params, batch)[0]

        def of_alignment(params):
            return conservation.feedback_alignment(*seed_weights(params), b["output"]["weight"])

        def moved(quantity, grads, eta):
            after = jax.tree.map(lambda w, g: w - eta * g, params, grads)
            return jnp.linalg.norm(quantity(after) - quantity(params))

        pairs = (of_alignment, fed_back), (of_backprop, exact), (of_alignment, exact), (of_backprop, fed_back)
        return [moved(*pair, 2e-5) / moved(*pair, 1e-5) for pair in pairs]

    np.testing.assert_allclose(ratios(batch), [4, 4, 2, 2], rtol=1e-3)


def test_forward_weights_align_with_the_feedback():
    """A student of a teacher, from small weights (Lillicrap et al. 2016): cosine to the gradient, over draws of B."""
    network = nl.mlp([10, 20, 5], activation=nl.activations.tanh())

    @jax.jit
    def drawn():
        inputs = jax.random.normal(jax.random.key(2), (100, 10))
        batch = inputs, network.apply(network.init(jax.random.key(3)), inputs)
        return jax.tree.map(lambda w: 0.1 * w, network.init(KEY)), batch

    params, batch = drawn()
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
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):

        @jax.jit
        def run(params, batch):
            state = learner.init(KEY, params)
            gap = jax.tree.map(jnp.subtract, state.params, state.estimator[0])
            end, _ = jax.lax.scan(lambda state, _: (learner.step(KEY, state, batch)[0], None), state, length=4)
            return gap, end.params, jax.tree.map(jnp.subtract, end.params, end.estimator[0])

        gap, params, after = run(problem.params, problem.batch)
    assert np.linalg.norm(params["output"]["weight"] - problem.params["output"]["weight"]) > 0.1
    shrunk = jax.tree.map(lambda g: (1 - 0.1 * 0.5) ** 4 * np.asarray(g), gap)
    chex.assert_trees_all_close(after, shrunk, rtol=1e-12)


def test_sign_symmetric_is_one_bit_of_each_weight(x64):
    problem = problems.convolution()
    scheme = nl.feedback.sign_symmetric()
    b = jax.jit(lambda params: scheme.weights((), params))(problem.params)
    np.testing.assert_allclose(b["features"]["weight"], np.sign(problem.params["features"]["weight"]) / 18**0.5)
    np.testing.assert_allclose(b["output"]["weight"], np.sign(problem.params["output"]["weight"]) / 12**0.5)
    pairs = (
        (nl.feedback_alignment(problem.objective, feedback=scheme), ()),
        (nl.feedback_alignment(problem.objective), b),
    )
    ours, given = gradients(problem.params, problem.batch, *pairs)
    chex.assert_trees_all_close(ours, given, rtol=1e-12)


def test_sign_concordant_has_the_signs_and_magnitudes_of_its_own():
    params = problems.chain().params
    scheme = nl.feedback.sign_concordant()

    @jax.jit
    def run(params):
        state = scheme.init(OTHER, params)
        turned = scheme.weights(state, jax.tree.map(lambda w: -3 * w, params))
        return turned, scheme.weights(state, params), nl.feedback.random().init(OTHER, params)

    b, straight, drawn = run(params)
    np.testing.assert_allclose(b["output"]["weight"], straight["output"]["weight"] * -1)
    np.testing.assert_array_equal(np.sign(b["output"]["weight"]), -np.sign(params["output"]["weight"]))
    np.testing.assert_allclose(np.abs(b["output"]["weight"]), np.abs(drawn["output"]["weight"]), rtol=1e-5)


def mirrored(problem, rate, num_steps, keys):
    """B after steps of η = λ = rate from the problem's own noise, one for each key."""
    optimizer = optax.chain(optax.add_decayed_weights(1.0), optax.sgd(rate))
    estimator = nl.feedback_alignment(problem.objective, feedback=nl.feedback.weight_mirror(optimizer))

    def run(key):
        def step(state, key):
            return estimator.estimate(key, state, problem.params, problem.batch)[1], None

        start = estimator.init(OTHER, problem.params)
        return jax.lax.scan(step, start, jax.random.split(key, num_steps))[0][0]

    return jax.jit(lambda keys: jax.lax.map(run, keys))(keys)


@pytest.mark.parametrize("name", ["convolution", "tied"])
def test_what_mirrors_see_is_the_weight_on_average(name, x64):
    """One step of η = λ = 1 leaves ⟨ξ yᵀ⟩ alone; of a weight that two layers share, the sum of what both see."""
    problem = ALL[name]()
    b = mirrored(problem, 1.0, 1, jax.random.split(KEY, 200))
    for layer, own in problem.params.items():
        for path, w in jax.tree_util.tree_leaves_with_path(own):
            if w.ndim > 1:
                seen = b[layer]
                for part in path:
                    seen = seen[part.key]
                error = np.std(seen, axis=0, ddof=1) / 200**0.5
                expected = np.asarray(w) * (2 if layer == "shared" else 1)
                assert np.max(np.abs(np.mean(seen, axis=0) - expected) / error) < 4.5
                assert np.max(np.abs(np.mean(seen, axis=0) - 1.5 * expected) / error) > 4.5


def test_weight_mirror_becomes_backprop(x64):
    """E‖B − W‖²/‖W‖² = (n + 1)/N · η/(2 − η), N examples of noise a step, n inputs: B lies as near as η is small."""
    problem = problems.chain()
    w = problem.params["output"]["weight"]
    output = {"weight": w, "bias": jnp.full(3, 5.0)}  # which mirrors must not see
    problem = problem._replace(params={**problem.params, "output": output})
    for rate, steps in ((0.5, 12), (0.04, 120)):
        b = mirrored(problem, rate, steps, jax.random.split(KEY, 50))
        off = np.sum((np.asarray(b["output"]["weight"]) - np.asarray(w)) ** 2, axis=(1, 2)) / np.sum(np.asarray(w) ** 2)
        law = (5 + 1) / 6 * rate / (2 - rate)
        assert abs(off.mean() - law) < 4 * off.std(ddof=1) / 50**0.5
    fed_back, exact = nl.feedback_alignment(problem.objective), nl.backprop(problem.objective)

    @jax.jit
    def angles(learned):
        drawn = fed_back.init(OTHER, problem.params)
        at = problem.params, problem.batch
        return [nl.diagnostics.alignment(fed_back, exact, KEY, b, *at)["hidden1"] for b in (learned, drawn)]

    after, before = angles(jax.tree.map(lambda b: np.asarray(b)[0], b))
    assert after < 15
    assert before > 60


def test_a_unit_without_an_axis_is_mirrored_on_the_scale_of_its_weight(x64):
    """ν [batch] is one unit in as many places as there are examples, not as many units in one."""

    def objective(params, batch, propagate=nl.propagation.feedforward):
        return propagate("only", lambda w, x: (x @ w)[:, 0], jnp.tanh, params, batch)

    w, batch = np.array([[0.5], [-2.0]]), np.ones((50, 2))
    b = mirrored(problems.Problem(objective, w, batch, None), 1.0, 1, jax.random.split(KEY, 200))
    error = np.std(b, axis=0, ddof=1) / 200**0.5
    assert np.max(np.abs(np.mean(b, axis=0) - w) / error) < 4


def test_weight_mirror_has_nothing_to_send_where_inputs_are_indices():
    def forward(params, x, propagate=nl.propagation.feedforward):
        low = propagate("low", lambda own, index: own[index], jnp.tanh, params["low"], x)
        return propagate("high", lambda own, x: x @ own, jnp.tanh, params["high"], low)

    params = {"low": np.ones((5, 4), np.float32), "high": np.ones((4, 3), np.float32)}
    batch = np.arange(5, dtype=np.int32), np.ones((5, 3), np.float32)
    scheme = nl.feedback.weight_mirror(optax.sgd(0.1))
    estimator = nl.feedback_alignment(nl.supervised(forward, nl.losses.half_squared_error), feedback=scheme)

    @jax.jit
    def run(params, batch):
        state = estimator.init(KEY, params)
        return state[0], estimator.estimate(KEY, state, params, batch)[1][0]

    same = jax.tree.map(lambda a, b: bool(np.all(np.asarray(a) == np.asarray(b))), *run(params, batch))
    assert same == {"low": True, "high": False}


def test_inputs_beside_indices_are_mirrored(x64):
    def objective(params, batch, propagate=nl.propagation.feedforward):
        chosen = lambda w, x, index: x @ w + index[:, None].astype(x.dtype)
        return jnp.sum(propagate("only", chosen, jnp.tanh, params, *batch), axis=1)

    w, batch = np.array([[0.5], [-2.0]]), (np.ones((50, 2)), np.arange(50))
    b = mirrored(problems.Problem(objective, w, batch, None), 1.0, 1, jax.random.split(KEY, 200))
    error = np.std(b, axis=0, ddof=1) / 200**0.5
    assert np.max(np.abs(np.mean(b, axis=0) - w) / error) < 4


@pytest.mark.parametrize(
    "feedback",
    [
        nl.feedback.random(jax.nn.initializers.constant(0.3)),
        nl.feedback.sign_symmetric(),
        nl.feedback.sign_concordant(),
        nl.feedback.kolen_pollack(optax.sgd(0.1)),
        nl.feedback.weight_mirror(optax.sgd(0.1)),
    ],
)
def test_keeps_the_precision(feedback):
    halved = lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16)
    params, (inputs, labels) = jax.tree.map(halved, problems.chain().params), problems.chain().batch
    estimator = nl.feedback_alignment(problems.chain().objective, feedback=feedback)
    state = jax.eval_shape(estimator.init, KEY, params)
    grads, after, _ = jax.eval_shape(estimator.estimate, KEY, state, params, (halved(inputs), labels))
    chex.assert_trees_all_equal_shapes_and_dtypes(grads, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)


def test_draws_have_the_scale_of_forward_weights_and_see_none():
    network, draw = nl.mlp([50, 40, 30], activation=jnp.tanh), nl.feedback.random().init

    @jax.jit
    def drawn():
        params = network.init(KEY)
        return draw(OTHER, params), draw(OTHER, jax.tree.map(lambda w: 3 * w + 1, params))

    b, other = drawn()
    for layer, fan_in in (("hidden1", 50), ("output", 40)):
        assert float(np.std(b[layer]["weight"])) == pytest.approx(fan_in**-0.5, rel=0.1)
    chex.assert_trees_all_equal(b, other)


@pytest.mark.parametrize("feedback", [nl.feedback.random(), nl.feedback.sign_symmetric()])
def test_credit_keeps_its_size_in_stacks_and_for_transposed_weights(feedback):
    """The layout of a weight does not change B's scale: stacked in the program or before, or [units, inputs]."""
    depth, units = 6, 64
    w = jax.random.normal(KEY, (depth, units, units)) / units**0.5

    def run(connection):
        def forward(params, x, propagate=feedforward):
            step = lambda h, w, propagate: (propagate("block", connection, jnp.tanh, w, h), None)
            return nl.scan("depth", step, x, jnp.stack(list(params)), propagate)[0]

        return nl.feedback_alignment(nl.supervised(forward, nl.losses.half_squared_error), feedback=feedback)

    layouts = (
        (lambda w, x: x @ w, w),
        (lambda w, x: x @ w.T, jnp.swapaxes(w, 1, 2)),
        (lambda w, x: x @ w, list(w)),
    )
    x, y = jax.random.normal(OTHER, (2, 50, units))

    @jax.jit
    def sizes():
        found = []
        for connection, params in layouts:
            estimator = run(connection)
            z = estimator.credit(KEY, estimator.init(OTHER, params), params, (x, y))["depth/block"].z
            found.append(jnp.linalg.norm(z, axis=(1, 2)))
        return jnp.stack(found)

    found = sizes()
    np.testing.assert_allclose(found, np.broadcast_to(found[:1], found.shape), rtol=0.25)  # B is drawn by the shape
    assert found[0, 0] > 0.2 * found[0, -1]  # f' takes the rest


def test_b_has_the_scale_of_each_layers_own_fan_in():
    """Of weights either way up, of images either way round, and of several heads."""
    channels_first = ("NCHW", "OIHW", "NCHW")
    conv = lambda w, x: jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=channels_first)
    usual = lambda w, x: jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    heads = lambda w, x: jnp.einsum("bti,ihd->bthd", x, w)
    layouts = {  # a connection, its weight and input, and fan in
        "plain": (lambda w, x: x @ w, (8, 32), (8,), 8),
        "transposed": (lambda w, x: x @ w.T, (32, 8), (8,), 8),
        "positions": (lambda w, x: jnp.einsum("oi,bip->bop", w, x), (32, 8), (8, 8), 8),
        "channels first": (conv, (32, 8, 3, 3), (8, 8, 8), 72),
        "narrow": (conv, (32, 8, 3, 3), (8, 3, 3), 72),
        "usual": (usual, (3, 3, 8, 32), (8, 8, 8), 72),
        "heads": (heads, (64, 8, 16), (5, 64), 64),
    }

    for name, (connection, shape, at, fan_in) in layouts.items():

        def objective(w, x, propagate=feedforward, connection=connection):
            return propagate("layer", connection, jnp.tanh, w, x).reshape(len(x), -1).sum(axis=1)

        source = nl.feedback.random()
        b = scaled(source, objective, source.init(OTHER, jnp.ones(shape)), jnp.ones(shape), jnp.ones((2, *at)))
        assert float(jnp.std(b)) == pytest.approx(fan_in**-0.5, rel=0.15), name


def test_to_count_a_fan_in_no_device_is_called():
    called = []

    def device(w, x):
        called.append(x)
        return np.zeros((*x.shape[:2], 3), np.float32)

    @jax.custom_vjp
    def connection(w, x):
        return jax.pure_callback(device, jax.ShapeDtypeStruct((*x.shape[:2], 3), jnp.float32), w, x)

    connection.defvjp(lambda w, x: (connection(w, x), (w, x)), lambda kept, delta: kept)
    site = Site("layer", connection, jnp.tanh, jnp.ones((4, 3)), (jnp.ones((2, 5, 4)),))
    assert fan_ins(site, (2, 5, 3)) == [0]
    assert not called
    assert fan_ins(site._replace(connection=lambda w, x: x @ w), (2, 5, 3)) == [4]


def test_a_connection_that_holds_its_weight_is_fed_back_like_one_that_is_given_it(x64):
    def spelled(weight_of):
        def forward(params, x, propagate=nl.propagation.feedforward):
            connection, own = weight_of(params)
            hidden = propagate("hidden", connection("hidden"), jnp.tanh, own["hidden"], x)
            return propagate("output", connection("output"), lambda nu: nu, own["output"], hidden)

        return nl.supervised(forward, nl.losses.half_squared_error)

    given = spelled(lambda params: (lambda name: lambda own, x: x @ own, params))
    held = spelled(lambda params: (lambda name: lambda own, x: x @ params[name], {"hidden": (), "output": ()}))
    rng = np.random.default_rng(0)
    params = {"hidden": rng.normal(size=(3, 4)), "output": rng.normal(size=(4, 2))}
    batch = rng.normal(size=(5, 3)), np.ones((5, 2))
    a, c = gradients(params, batch, *((nl.feedback_alignment(objective), None) for objective in (given, held)))
    chex.assert_trees_all_close(a, c, rtol=1e-12)


@pytest.mark.parametrize(
    "feedback",
    [nl.feedback.random(), nl.feedback.sign_concordant()]
    + [learned(optax.sgd(0.1)) for learned in (nl.feedback.kolen_pollack, nl.feedback.weight_mirror)],
)
def test_untyped_keys_are_refused(feedback):
    with pytest.raises(ValueError, match=r"key must be a typed key made by jax\.random\.key"):
        feedback.init(jnp.zeros(2, jnp.uint32), problems.chain().params)


def test_what_is_no_feedback_or_optimizer_is_refused():
    with pytest.raises(ValueError, match=r"feedback must be one of nl\.feedback, such as .* got <function random"):
        nl.feedback_alignment(problems.chain().objective, feedback=nl.feedback.random)
    for learned in (nl.feedback.kolen_pollack, nl.feedback.weight_mirror):
        with pytest.raises(ValueError, match=r"optimizer must be an optax optimizer .* got 0\.1"):
            learned(0.1)


def test_the_namespace_is_feedback_alone():
    """Helpers live elsewhere; imported modules, types and initializers are no part of it."""
    defined = {name for name, f in vars(nl.feedback).items() if getattr(f, "__module__", "") == nl.feedback.__name__}
    schemes = {"random", "sign_symmetric", "sign_concordant", "kolen_pollack", "weight_mirror"}
    assert {name for name in defined if not name.startswith("_")} == schemes | {"Feedback", "UpdateFn"}


def test_credit_passes_other_parts_of_a_partition_by_their_own_weights(x64):
    """A part has no B for what is not its own: with the output in another's hands credit is backprop's."""
    problem = problems.chain()
    estimator = nl.partition(problem.objective, {"output/*": nl.backprop, "*": nl.feedback_alignment})
    pairs = (estimator, None), (nl.backprop(problem.objective), ())
    chex.assert_trees_all_close(*gradients(problem.params, problem.batch, *pairs), rtol=1e-12, atol=1e-14)
