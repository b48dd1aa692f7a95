"""Networks taught by local rules: patches, teachers, schedules."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

import nl_jax as nl
from nl_jax import rules
from nl_jax.propagation import feedforward
from nl_jax.rules.local_learning import local_learning
from nl_jax.rules.rule import unsupervised
from tests import problems

KEY = jax.random.key(0)
c = nl.connections


def estimate(forward, rule, params, batch, **settings):
    """The estimate, numpy's, of one program."""
    estimator = local_learning(forward, rule, **settings)
    run = jax.jit(lambda *at: estimator.estimate(KEY, estimator.init(KEY, at[0]), *at))
    return jax.device_get(run(params, batch))


def init(network, dtype=float):
    return jax.device_get(jax.jit(network.init, static_argnums=1)(KEY, dtype))


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape)


def patches(x, kernel, stride, pads):
    """Every window of every image as a row, by loops."""
    (top, bottom), (left, right) = pads
    x = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    down, across = stride
    return np.stack([
        image[i : i + kernel[0], j : j + kernel[1]].ravel()
        for image in x
        for i in range(0, x.shape[1] - kernel[0] + 1, down)
        for j in range(0, x.shape[2] - kernel[1] + 1, across)
    ])  # fmt: skip


@pytest.mark.parametrize(("stride", "pads"), [((1, 1), ((1, 0), (0, 2))), ((2, 3), ((0, 0), (0, 0)))])
def test_a_convolution_learns_from_its_patches(stride, pads, x64):
    kernel = (3, 2)
    network = nl.network(
        nl.Layer("image", (6, 5, 2)),
        nl.Layer("features", None, c.conv(kernel, channels=4, stride=stride, padding=pads), jnp.tanh),
    )
    rng = np.random.default_rng(0)
    images, weight, bias = (rng.normal(size=shape) for shape in ((3, 6, 5, 2), (*kernel, 2, 4), 4))
    params = {"features": {"weight": weight, "bias": bias}}
    x, W = patches(images, kernel, stride, pads), weight.reshape(-1, 4)
    y = np.tanh(x @ W + bias)
    expected = x.T @ y / len(x) - W @ np.triu(y.T @ y / len(x))
    grads, _, _ = estimate(network.apply, rules.sanger(), params, images)
    np.testing.assert_allclose(grads["features"]["weight"].reshape(-1, 4), -expected, atol=1e-12)
    assert not grads["features"]["bias"].any()


def test_hebb_is_a_convolution_transposed(x64):
    """Hebb's rule once more, by the convolution's own transpose."""
    p = problems.convolution()
    conv = c.conv(3, channels=3).join((6, 6, 2), None).apply

    def layer(params, x, propagate=feedforward):
        return propagate("features", conv, jnp.tanh, params["features"], x)

    estimator = local_learning(layer, rules.hebb())

    @jax.jit
    def both(params, x):
        credit = jax.vjp(lambda own: conv(own, x), params["features"])[1](layer(params, x))[0]["weight"]
        credit = credit / (4 * 4 * 4)  # a mean over examples and positions
        return estimator.estimate(KEY, estimator.init(KEY, params), params, x)[0]["features"]["weight"], -credit

    np.testing.assert_allclose(*both({"features": p.params["features"]}, p.batch[0]), atol=1e-12)


EVERY = {
    "hebb": rules.hebb(), "oja": rules.oja(), "sanger": rules.sanger(), "subspace": rules.subspace(),
    "instar": rules.instar(), "soft_hebb": rules.soft_hebb(), "competitive": rules.competitive(), "bcm": rules.bcm(),
    "delta": rules.delta(),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ["oja", "soft_hebb", "bcm", "delta"])  # with a bias, a state, a teacher and without
def test_several_connections_are_one_from_all_sources_side_by_side(name, x64):
    """in → a → b with in → b, beside a layer on [a, in]."""
    rule = EVERY[name]
    x, teacher = normal(7, 4), normal(7, 3)
    net = nl.network(
        nl.Layer("in", 4), nl.Layer("a", 5, c.dense(), nl.activations.tanh()),
        nl.Layer("b", 3, [c.dense("a"), c.dense("in")], nl.activations.tanh()),
    )  # fmt: skip
    estimator = local_learning(net.apply, {"b": rule})

    @jax.jit
    def both(x, teacher):
        params = net.init(KEY, float)
        grads, state, _ = estimator.estimate(KEY, estimator.init(KEY, params), params, (x, {"b": teacher}))
        own = params["b"]
        joined = {
            "weight": jnp.concatenate([own["a"]["weight"], own["in"]["weight"]]),
            "bias": own["a"]["bias"] + own["in"]["bias"],
        }
        axons = net.axons(params, x)
        pre = jnp.concatenate([axons["a"], x], axis=1)
        return grads, state, *rule.change(rule.init(joined), joined, pre, axons["b"], teacher)

    grads, state, change, after = jax.device_get(both(x, teacher))
    rows = np.concatenate([grads["b"]["a"]["weight"], grads["b"]["in"]["weight"]])
    np.testing.assert_allclose(rows, -change["weight"], rtol=1e-12)
    for source in ("a", "in"):
        np.testing.assert_allclose(grads["b"][source]["bias"], -change.get("bias", np.zeros(3)), rtol=1e-12)
    np.testing.assert_array_equal(jax.tree.leaves(state["b"]), jax.tree.leaves(after))
    np.testing.assert_array_equal(grads["a"]["weight"], 0)


@pytest.mark.slow
def test_two_convolutions_into_one_layer(x64):
    images = normal(3, 6, 6, 2)
    net = nl.network(
        nl.Layer("in", (6, 6, 2)), nl.Layer("a", None, c.conv(3, channels=4), nl.activations.tanh()),
        nl.Layer("b", None, [c.conv(3, "a", channels=2), c.conv(5, "in", channels=2)]),
    )  # fmt: skip
    params = init(net)
    grads, _, _ = estimate(net.apply, {"b": rules.hebb()}, params, images)
    axons = jax.device_get(jax.jit(net.axons)(params, images))
    answers = axons["b"].reshape(-1, 2)
    for source, kernel in (("a", 3), ("in", 5)):
        rows = patches(axons[source], (kernel, kernel), (1, 1), ((0, 0), (0, 0)))
        expected = -(rows.T @ answers).reshape(grads["b"][source]["weight"].shape) / len(rows)
        np.testing.assert_allclose(grads["b"][source]["weight"], expected, rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bcm"])
def test_steps_of_a_loop_are_more_examples(name, x64):
    """A recurrent layer, whose rule sees inputs and its own units' past side by side, at all steps."""
    rule = EVERY[name]
    net = nl.recurrent(nl.cells.rnn(3), 2, 2)
    params, xs = init(net), normal(4, 5, 2)
    grads, state, _ = estimate(net.apply, {"hidden": rule}, params, xs)
    own, h, pre, post = params["hidden"], np.zeros((4, 3)), [], []
    for x in np.swapaxes(xs, 0, 1):
        pre.append(np.concatenate([h, x], axis=1))
        h = np.tanh(x @ own["weight"] + h @ own["recurrent"] + own["bias"])
        post.append(h)
    flat = {"weight": np.concatenate([own["recurrent"], own["weight"]]), "bias": own["bias"]}
    by_rule = jax.jit(lambda *at: rule.change(rule.init(at[0]), *at, None))
    change, after = jax.device_get(by_rule(flat, np.concatenate(pre), np.concatenate(post)))
    np.testing.assert_allclose(grads["hidden"]["recurrent"], -change["weight"][:3], rtol=1e-12)
    np.testing.assert_allclose(grads["hidden"]["weight"], -change["weight"][3:], rtol=1e-12)
    np.testing.assert_allclose(jax.tree.leaves(state["hidden"]), jax.tree.leaves(after), rtol=1e-12)


def _deep(params, x, propagate=feedforward):
    def step(x, own, propagate):
        return propagate("block", lambda own, x: x @ own["weight"], jnp.tanh, own, x), None

    return nl.scan("depth", step, x, params["block"], propagate)[0]


def test_steps_over_depth_are_layers_of_their_own(x64):
    params = {"block": {"weight": normal(4, 3, 3)}}
    x = normal(6, 3)
    grads = estimate(_deep, rules.oja(), params, x)[0]["block"]["weight"]
    by_rule = jax.jit(lambda weight, x, y: rules.oja().change((), {"weight": weight}, x, y, None)[0]["weight"])
    for weight, found in zip(params["block"]["weight"], grads, strict=True):
        y = np.tanh(x @ weight)
        np.testing.assert_allclose(found, -by_rule(weight, x, y))
        x = y


def test_the_delta_rule_is_backprop_of_one_layer(x64):
    p = problems.one_layer()
    sigmoid = nl.activations.sigmoid().derivative
    ours = local_learning(p.forward, rules.delta(derivative=sigmoid), objective=p.objective)

    @jax.jit
    def both(*at):
        exact, _, there = nl.backprop(p.objective).estimate(KEY, (), *at)
        return ours.estimate(KEY, ours.init(KEY, at[0]), *at), exact, there.loss

    (grads, _, info), exact, loss = both(p.params, p.batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), grads, exact)
    np.testing.assert_allclose(info.loss, loss, rtol=1e-12)
    assert int(info.evaluations) == 3


def test_targets_are_the_last_layer_s_or_those_of_the_layers_they_name():
    p = problems.chain()
    inputs = p.batch[0]
    low, high = np.ones((6, 5), np.float32), np.ones((6, 3), np.float32)
    last, _, _ = estimate(p.forward, {"output": rules.delta()}, p.params, (inputs, high))
    both, _, _ = estimate(p.forward, rules.delta(), p.params, (inputs, {"hidden1": low, "output": high}))
    np.testing.assert_array_equal(last["output"]["weight"], both["output"]["weight"])
    assert not last["hidden1"]["weight"].any()
    assert both["hidden1"]["weight"].any()


def test_batches_with_and_without_labels_are_one_to_rules_without_teacher():
    p = problems.chain()
    with_labels, _, _ = estimate(p.forward, rules.oja(), p.params, p.batch)
    without, _, _ = estimate(p.forward, rules.oja(), p.params, p.batch[0])
    jax.tree.map(np.testing.assert_array_equal, with_labels, without)


def test_layers_without_parameters_are_passed_over():
    p = problems.convolution()
    grads, _, _ = estimate(p.forward, rules.oja(), p.params, p.batch)
    assert grads["features"]["weight"].any()
    assert grads["output"]["weight"].any()


def fitted(learner, params, data, **settings):
    state, history = nl.fit(learner, KEY, learner.init(KEY, params), data, progress=False, **settings)
    return state.params, history


@functools.cache
def images():
    return np.asarray(load_digits().images[:100, ..., None] / 16, np.float32)


DEEP = nl.network(
    nl.Layer("image", (8, 8, 1)),
    nl.Layer("low", None, c.conv(3, channels=6, bias=False), nl.activations.relu()),
    nl.Layer("pooled", None, c.max_pool(2)),
    nl.Layer("vector", None, c.flatten()),
    nl.Layer("middle", 8, c.dense(bias=False), nl.activations.relu()),
    nl.Layer("high", 4, c.dense(bias=False)),
)
DEEP_RULES = {"low": rules.soft_hebb(), "middle": rules.soft_hebb(), "high": rules.oja()}
RATES = {"low": 0.3, "middle": 0.01, "high": 0.003}  # inputs grow from layer to layer


def _unrest(params, layer):
    """How far a layer is from where its rule rests, given the layers below."""
    estimator = local_learning(DEEP.apply, {layer: DEEP_RULES[layer]})
    return optax.tree.norm(estimator.estimate(KEY, estimator.init(KEY, params), params, images())[0])


@jax.jit
def unrest(params, start):
    """Of each layer, as it is and as it was at the start."""
    return {name: (_unrest(params, name), _unrest({**params, name: start[name]}, name)) for name in DEEP_RULES}


@pytest.mark.slow
def test_a_deep_stack_learns_at_once_or_layer_by_layer():
    """Either way each layer comes to rest on what those below it send."""
    start = jax.jit(DEEP.init)(KEY)
    optimizer = optax.multi_transform(
        {name: optax.sgd(rate) for name, rate in RATES.items()},
        lambda params: {name: name if name in RATES else "low" for name in params},
    )
    at_once, history = fitted(
        nl.learner(local_learning(DEEP.apply, DEEP_RULES), optimizer), start, images(), num_steps=600
    )
    assert history.loss[-1] < 1e-3 * history.loss[0]
    in_turn = start
    for name, rule in DEEP_RULES.items():
        learner = nl.learner(local_learning(DEEP.apply, {name: rule}), optax.sgd(RATES[name]))
        before = in_turn
        in_turn, _ = fitted(learner, before, images(), num_steps=600)
        others = [other for other in DEEP_RULES if other != name]
        jax.tree.map(np.testing.assert_array_equal, [in_turn[o] for o in others], [before[o] for o in others])
    for params in (at_once, in_turn):
        for name, (now, before) in unrest(params, start).items():
            assert now < 0.01 * before, name


def test_soft_competition_makes_distinct_features_of_norm_one():
    x = images().reshape(-1, 64)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    network = nl.mlp([64, 5], activation=jnp.tanh, bias=False)

    def overlaps(temperature):
        learner = nl.learner(local_learning(network.apply, rules.soft_hebb(temperature=temperature)), optax.sgd(0.5))
        params, _ = fitted(learner, {"output": {"weight": x[:5].T}}, x, num_steps=600)
        W = np.asarray(params["output"]["weight"])
        return W.T @ W

    hard, soft = overlaps(0.02), overlaps(1.0)
    np.testing.assert_allclose(np.diag(hard), 1, atol=1e-3)
    assert np.max(hard - np.eye(5)) < 0.93
    np.testing.assert_allclose(soft, 1, atol=1e-3)  # whom nobody keeps out, all learn the mean


def test_competitive_learning_finds_the_centres_of_clusters():
    centres = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0][:3]
    x = np.asarray(np.repeat(centres, 8, axis=0) + 0.05 * np.random.default_rng(1).normal(size=(24, 6)), np.float32)
    network = nl.mlp([6, 3], activation=jnp.tanh, bias=False)
    learner = nl.learner(local_learning(network.apply, rules.competitive()), optax.sgd(0.5))
    start = {"output": {"weight": x[[0, 8, 16]].T}}
    params, _ = fitted(learner, start, x, num_steps=200)
    np.testing.assert_allclose(np.transpose(params["output"]["weight"]), x.reshape(3, 8, 6).mean(axis=1), atol=1e-5)


def test_bcm_units_become_selective():
    """On two patterns a unit comes to answer one by 1/p = 2, θ, and the other by 0; both answers alike do not last."""
    network = nl.mlp([2, 2], activation=nl.activations.identity(), bias=False)
    patterns = np.array([[1.0, 0.2], [0.2, 1.0]], np.float32)
    learner = nl.learner(local_learning(network.apply, rules.bcm(rate=0.5)), optax.sgd(0.05))
    start = {"output": {"weight": np.array([[0.6, 0.5], [0.5, 0.6]], np.float32)}}
    params, _ = fitted(learner, start, patterns, num_steps=2000)
    np.testing.assert_allclose(patterns @ params["output"]["weight"], 2 * np.eye(2), atol=1e-4)


@pytest.mark.slow
def test_the_perceptron_makes_no_more_mistakes_than_novikoff_allows():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3)).astype(np.float32)
    w = np.array([2.0, -1.0, 2.0], np.float32) / 3
    x = x[np.abs(x @ w) > 0.2]
    t = np.sign(x @ w)[:, None]
    network = nl.mlp([3, 1], activation=jnp.tanh, output_activation=nl.activations.sign(), bias=False)
    learner = nl.learner(local_learning(network.apply, rules.perceptron()), optax.sgd(1.0))
    start = {"output": {"weight": np.zeros((3, 1), np.float32)}}
    params, history = fitted(learner, start, (x, t), num_steps=20 * len(x), batch_size=1)
    bound = (np.linalg.norm(x, axis=1).max() / np.abs(x @ w).min()) ** 2
    assert 5 < np.count_nonzero(history.loss) <= bound
    np.testing.assert_array_equal(np.sign(x @ params["output"]["weight"]), t)


def test_changes_have_their_parameters_dtype(lenient):
    p = problems.chain()
    half = jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, jnp.bfloat16), p.params)
    grads = jax.eval_shape(
        local_learning(p.forward, {"output": rules.sanger()}).estimate, KEY, {"output": ()}, half, p.batch
    )[0]
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype(jnp.bfloat16)}


def test_states_keep_their_dtype(lenient):
    p = problems.chain()
    half = jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, jnp.bfloat16), p.params)
    estimator = local_learning(p.forward, {"output": rules.bcm()})
    state = jax.eval_shape(estimator.init, KEY, half)
    assert state["output"].dtype == jnp.bfloat16
    _, after, _ = jax.eval_shape(estimator.estimate, KEY, state, half, p.batch)
    assert after["output"].dtype == jnp.bfloat16


def test_float16_holds_its_sums(lenient):
    """Neither ‖Δ‖² nor the sums over examples overflow; a run would be said to diverge."""
    network = nl.mlp([3, 8, 2], activation=nl.activations.identity())
    params, x = init(network, jnp.float16), np.full((16, 3), 30, np.float16)
    grads, _, info = estimate(network.apply, rules.hebb(), params, x)
    square = sum(np.sum(np.square(g, dtype=np.float32)) for g in jax.tree.leaves(grads))
    assert square > 65504
    np.testing.assert_allclose(info.loss, square, rtol=1e-3)


def test_an_objective_is_per_example():
    p = problems.chain()
    with pytest.raises(ValueError, match="one loss per example"):
        estimate(p.forward, rules.oja(), p.params, p.batch, objective=lambda params, batch: jnp.ones(()))


def by_hand(params, batch, propagate=feedforward):
    """A forward function and its loss in one."""
    x, labels = batch
    return nl.losses.cross_entropy(problems.chain().forward(params, x, propagate), labels)


@pytest.mark.parametrize("objective", [problems.chain().objective, by_hand], ids=["supervised", "by hand"])
def test_an_objective_in_the_place_of_the_forward_function_is_named(objective):
    p = problems.chain()
    message = rf"{objective.__name__}' is an objective: .* each of the 6 examples.*network\.apply"
    with pytest.raises(ValueError, match=message) as raised:
        estimate(objective, rules.oja(), p.params, p.batch)
    assert raised.value.__cause__ is not None  # what it raised on the inputs


@pytest.mark.parametrize("whole", [lambda x: x.sum(axis=1), lambda x: x], ids=["one output", "several"])
def test_an_error_of_the_forward_function_is_its_own(whole):
    """No objective: it fails on the batch as well, or takes it and returns no losses."""
    p = problems.chain()

    def failing(params, x, propagate=feedforward):
        if isinstance(x, tuple):
            return whole(p.forward(params, x[0], propagate)).astype(jnp.int32)
        raise KeyError("its own")

    with pytest.raises(KeyError, match="its own"):
        estimate(failing, rules.oja(), p.params, p.batch)


def test_a_forward_function_with_one_output_per_example_is_none():
    """Its outputs have the shape of losses."""
    p = problems.chain()
    one = lambda params, x, propagate=feedforward: p.forward(params, x, propagate)[:, 0]
    ours, expected = (estimate(f, {"output": rules.oja()}, p.params, p.batch)[0] for f in (one, p.forward))
    np.testing.assert_array_equal(ours["output"]["weight"], expected["output"]["weight"])


def test_a_rule_that_diverges_is_told():
    network = nl.mlp([3, 2], activation=jnp.tanh)
    learner = nl.learner(local_learning(network.apply, rules.hebb()), optax.sgd(10.0))
    with pytest.raises(nl.Diverged):
        fitted(learner, network.init(KEY), jnp.ones((4, 3)), num_steps=100)


def layerless(params, x):
    return x


def transposed(params, x, propagate=feedforward):
    return propagate("hidden", lambda own, x: x @ own["weight"].T, jnp.tanh, params["hidden"], x)


def dotted(params, x, propagate=feedforward):
    return propagate("hidden", lambda own, x: jnp.dot(x, own["weight"]), jnp.tanh, params["hidden"], x)


def summed(params, x, propagate=feedforward):
    return propagate("hidden", lambda own, x: x * own["weight"].sum(), jnp.tanh, params["hidden"], x)


def twice(params, x, propagate=feedforward):
    return propagate("hidden", lambda own, x: x @ own["weight"] @ own["weight"], jnp.tanh, params["hidden"], x)


def pooling(params, x, propagate=feedforward):
    return propagate(
        "hidden", lambda own, x: x @ own["weight"], lambda nu: nu.max(axis=1, keepdims=True), params["hidden"], x
    )


def changing(part, shape):
    return {"output": unsupervised(lambda params, x, y: {part: jnp.ones(shape)})}


SQUARE = {"hidden": {"weight": jnp.eye(3)}}
ONES = jnp.ones((2, 3))
chain = problems.chain
BAD = {
    "no layers": (layerless, rules.oja(), SQUARE, ONES, "takes no argument `propagate`"),
    "a factory": (transposed, rules.oja, SQUARE, ONES, r"such as nl\.rules\.oja\(\).*got <function oja"),
    "factories": (transposed, {"hidden": rules.oja}, SQUARE, ONES, "got <function oja"),
    "no dict": (transposed, rules.oja(), jnp.eye(3), ONES, "params must be a dict .* of nl.network, got a ArrayImpl"),
    "no parameters": (
        problems.convolution,
        {"pooled": rules.oja()},
        None,
        None,
        "layer 'pooled' has parameters none",
    ),
    "no such layer": (chain, {"ghost": rules.oja()}, None, None, "no entry for layer 'ghost'; they have hidden1"),
    "never run": (
        transposed,
        {"ghost": rules.oja()},
        {**SQUARE, "ghost": SQUARE["hidden"]},
        ONES,
        "no layer is named 'ghost'; the layers are hidden",
    ),
    "a transpose": (transposed, rules.oja(), SQUARE, ONES, "layer 'hidden' does not multiply.*transposed"),
    "another function": (dotted, rules.oja(), SQUARE, ONES, "layer 'hidden' does not multiply"),
    "two products": (twice, rules.oja(), SQUARE, ONES, "layer 'hidden' does not multiply.*in 2 products"),
    "fewer axons": (pooling, rules.oja(), SQUARE, ONES, r"layer 'hidden' has axons of shape \(2, 1\)"),
    "nothing lateral": (chain, rules.apex(), None, None, r"join its layer by nl\.connections\.lateral_dense"),
    "an attribute": (summed, rules.oja(), SQUARE, ONES, "layer 'hidden' does not multiply"),
    "a change transposed": (
        chain,
        changing("weight", (3, 5)),
        None,
        None,
        r"layer 'output' changes 'weight' by an array of shape \(3, 5\); it must be of shape \(5, 3\)",
    ),
    "a row for a bias": (chain, changing("bias", (1, 3)), None, None, r"'bias' by .* \(1, 3\); it must be .* \(3,\)"),
    "no such part": (chain, changing("wieght", (5, 3)), None, None, "layer 'output' changes 'wieght'; .* bias, weight"),
    "no targets": (chain, {"output": rules.delta()}, None, jnp.ones((6, 4)), "layer 'output' learns from.*got none"),
    "labels": (chain, {"output": rules.delta()}, None, None, r"layer 'output' learns from.*shape \(6,\).*one-hot"),
    "weights of several widths": (
        transposed,
        {"both": rules.oja()},
        {"both": {"a": jnp.ones((2, 3)), "b": jnp.ones((2, 4))}},
        ONES,
        r"layer 'both' has weights that differ in their last axis.*a \(2, 3\), ",
    ),
    "a state over depth": (
        _deep,
        rules.bcm(),
        {"block": {"weight": jnp.ones((4, 3, 3))}},
        ONES,
        "'block' is stacked over depth",
    ),
    "other parameters": (
        lambda params, x, propagate=feedforward: propagate(
            "hidden", lambda own, x: x @ own["weight"], jnp.tanh, {"weight": params["hidden"]["weight"][:, :2]}, x
        ),
        rules.oja(),
        SQUARE,
        ONES,
        "'hidden' gets parameters whose shapes differ",
    ),
    "a batch of three": (transposed, rules.oja(), SQUARE, (ONES, ONES, ONES), "batch must be .* a pair .* got 3 parts"),
    "no examples": (chain, {"output": rules.oja()}, None, jnp.ones((0, 4)), "batch must have at least one example"),
    "a hidden teacher": (chain, {"hidden1": rules.delta()}, None, None, "layer 'hidden1' learns from.*got none"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_named(name):
    forward, rule, params, batch, message = BAD[name]
    if params is None:
        p = forward()
        forward, params, batch = p.forward, p.params, p.batch if batch is None else batch

    def traced():
        estimator = local_learning(forward, rule)
        return jax.eval_shape(estimator.estimate, KEY, estimator.init(KEY, params), params, batch)

    with pytest.raises(ValueError, match=message):
        traced()
