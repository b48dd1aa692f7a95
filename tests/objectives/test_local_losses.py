"""Local losses: values and gradients by hand, whose noise reaches which loss, and what that does to the variance."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nl_jax as nl
from nl_jax.theory import perturbation

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)
TANH = nl.activations.tanh()
MLP = nl.mlp([3, 6, 4], activation=TANH, output_activation=TANH)
CONV = nl.network(
    nl.Layer("image", (5, 5, 1)),
    nl.Layer("low", (4, 4, 4), nl.connections.conv(2), TANH),
    nl.Layer("pooled", None, nl.connections.max_pool(2)),
    nl.Layer("high", (2, 2, 6), nl.connections.conv(2, padding="SAME"), TANH),
)
WAYS = {
    "blockwise": (MLP, {}),
    "groupwise": (MLP, {"groups": 2}),
    "one loss": (MLP, {"blocks": ["output"]}),
    "image": (CONV, {}),
    "patchwise": (CONV, {"patches": True}),
    "patches and groups": (CONV, {"patches": True, "groups": 2}),
    "groups of an image": (CONV, {"groups": 2}),
}
FACTORIES = {
    "backprop": (nl.backprop, "groupwise"),
    "feedback_alignment": (nl.feedback_alignment, "patchwise"),
    "forward_gradient": (functools.partial(nl.forward_gradient, space=nl.spaces.nodes, num_samples=2), "patchwise"),
    "node_perturbation": (functools.partial(nl.node_perturbation, num_samples=2), "groupwise"),
    "weight_perturbation": (functools.partial(nl.weight_perturbation, num_samples=2), "patchwise"),
}
"""Estimators, and the blocks that each teaches in the test below."""


@functools.cache
def problem(way, x64=False):
    network, settings = WAYS[way]
    dtype = jnp.float64 if x64 else jnp.float32
    local = nl.local_losses(network, nl.losses.cross_entropy, 3, **settings)

    @jax.jit
    def drawn():
        inputs = jax.random.normal(jax.random.key(1), (4, *network.shapes[next(iter(network.shapes))]), dtype)
        return jax.tree.map(lambda w: w + 0.1, local.init(jax.random.key(2), dtype)), inputs

    params, inputs = jax.device_get(drawn())
    return local, params, (inputs, np.array([0, 1, 2, 1], np.int32))


def by_hand(way, params, batch):
    """The mean over examples, positions and groups of each block's losses, gradients stopped by hand."""
    network, settings = WAYS[way]
    groups, patches, total = settings.get("groups", 1), settings.get("patches", False), 0.0
    axons = batch[0]
    ends = settings.get("blocks", [name for name in params if not name.endswith(".head")])
    for layer in network.layers[1:]:
        name = layer.name
        if name == "pooled":
            axons = axons.reshape(4, 2, 2, 2, 2, -1).max(axis=(2, 4))
            continue
        weight, bias = params[name]["weight"], params[name]["bias"]
        if weight.ndim == 2:
            axons = jnp.tanh(axons @ weight + bias[None])
        else:
            padded = axons if name == "low" else jnp.pad(axons, ((0, 0), (0, 1), (0, 1), (0, 0)))
            side = padded.shape[1] - 1
            nu = sum(padded[:, i : i + side, j : j + side] @ weight[i, j] for i in range(2) for j in range(2))
            axons = jnp.tanh(nu + bias[None, None, None])
        if name not in ends:
            continue
        head, features, size = params[f"{name}.head"], axons.reshape(4, -1, axons.shape[-1]), axons.shape[-1] // groups
        features = features if patches else features.mean(axis=1, keepdims=True)
        W, b = (head[part].reshape(groups, -1, 3) for part in ("weight", "bias"))
        logits = jnp.einsum("npgs,gsk->npgk", features.reshape(4, -1, groups, size), W) + b[None, :, 0][:, None]
        true = jnp.stack([logits[n, :, :, label] for n, label in enumerate((0, 1, 2, 1))])
        total += jnp.mean(jax.nn.logsumexp(logits, axis=-1) - true)
        axons = jax.lax.stop_gradient(axons)
    return total


@pytest.mark.parametrize("way", WAYS)
def test_value_and_gradient_by_hand(way, x64):
    """Of the sum, of the blocks one by one, and by the recursion of layers."""
    local, params, batch = problem(way, x64=True)
    estimators = nl.backprop(local.objective), nl.by_block(local, nl.backprop)

    @jax.jit
    def run(params, batch):
        with jax.numpy_rank_promotion("allow"):
            found = jax.value_and_grad(functools.partial(by_hand, way))(params, batch)
        estimates = [e.estimate(KEY, e.init(KEY, params), params, batch) for e in estimators]
        return found, [(grads, info) for grads, _, info in estimates], local.objective(params, batch)

    (value, expected), estimates, losses = run(params, batch)
    for (grads, info), evaluations in zip(estimates, (3, 4), strict=True):
        np.testing.assert_allclose(info.loss, value, rtol=1e-12)
        assert info.evaluations == evaluations
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-14), grads, expected)
    assert losses.shape == (4,)
    np.testing.assert_allclose(np.mean(losses), value, rtol=1e-12)


def test_without_stopping_gradients_they_are_others(x64):
    """The twin that lets credit cross: the lower block's gradient is another, the upper one's is not."""
    local, params, batch = problem("blockwise", x64=True)

    def crossing(params):
        low = jnp.tanh(batch[0] @ params["hidden1"]["weight"] + params["hidden1"]["bias"][None])
        high = jnp.tanh(low @ params["output"]["weight"] + params["output"]["bias"][None])
        logits = [x @ params[f"{n}.head"]["weight"] + params[f"{n}.head"]["bias"][None] for n, x in
                  (("hidden1", low), ("output", high))]  # fmt: skip
        return sum(jnp.mean(nl.losses.cross_entropy(each, batch[1])) for each in logits)

    stopped = lambda params: jnp.mean(local.objective(params, batch))
    both = jax.jit(lambda params: [jax.value_and_grad(loss)(params) for loss in (stopped, crossing)])
    (value, grads), (same, other) = both(params)
    np.testing.assert_allclose(same, value, rtol=1e-12)
    np.testing.assert_allclose(grads["output"]["weight"], other["output"]["weight"], rtol=1e-9)
    assert np.abs(grads["hidden1"]["weight"] - other["hidden1"]["weight"]).max() > 1e-3


@pytest.mark.parametrize("way", ["groupwise", "patches and groups"])
def test_a_unit_moves_its_own_loss_alone(way):
    """Noise of finite size in the pre-activation of one row moves the loss of that row; the sum's objective moves both.

    Every row of a block's layers is one example's group at one position.
    """
    local, params, batch = problem(way)
    inject, record = nl.propagation.inject, nl.propagation.record

    @jax.jit
    def run(params, batch):
        received, rows = local.received(params, batch), {}
        for name, part in local.parts(params).items():
            clean = part.objective(part.params, received[name])
            shape = jax.eval_shape(record(part.objective), part.params, received[name])[1][name].shape
            noise = {name: jnp.zeros(shape).at[3].set(0.5)}
            rows[name] = clean, inject(part.objective)(part.params, received[name], noise)
        first, *_ = local.parts(params)
        noise = {first: jnp.full((4, *WAYS[way][0].shapes[first]), 0.5)}
        together = inject(local.objective)(params, batch, noise) - local.objective(params, batch)
        own = local.parts(params)[first]
        at = own.params, received[first]
        noise = {first: jnp.full(jax.eval_shape(record(own.objective), *at)[1][first].shape, 0.5)}
        return rows, together, inject(own.objective)(*at, noise) - own.objective(*at)

    rows, together, alone = jax.device_get(run(params, batch))
    for name, (clean, moved) in rows.items():
        assert clean.shape == (4 * local.losses_per_example[name],)
        assert np.flatnonzero(moved != clean).tolist() == [3]
    assert np.abs(together - alone.reshape(4, -1).mean(axis=1)).max() > 1e-3  # higher blocks' losses moved as well


def test_the_tangent_of_lower_noise_stops_at_the_border():
    """Differentiated, the objective's other losses do not move: what `forward_gradient` may rely on."""
    local, params, batch = problem("blockwise")
    noise = {"hidden1": np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)}

    @jax.jit
    def both(params, batch):
        def along(objective, *at):
            still = jax.tree.map(jnp.zeros_like, noise)
            return jax.jvp(lambda gamma: nl.propagation.inject(objective)(*at, gamma), (still,), (noise,))[1]

        part, received = local.parts(params)["hidden1"], local.received(params, batch)["hidden1"]
        return along(local.objective, params, batch), along(part.objective, part.params, received)

    np.testing.assert_allclose(*both(params, batch), rtol=1e-5)


@pytest.mark.parametrize("name", FACTORIES)
def test_any_estimator_teaches_blocks(name):
    """Each parameter gets an estimate of its shape, none of them 0."""
    factory, way = FACTORIES[name]
    local, params, batch = problem(way)
    estimator = nl.by_block(local, factory)

    @jax.jit
    def run(params, batch):
        state = estimator.init(jax.random.key(3), params)
        return state, *estimator.estimate(KEY, state, params, batch), jnp.mean(local.objective(params, batch))

    state, grads, after, info, loss = run(params, batch)
    jax.tree.map(lambda g, w: (g.shape, g.dtype) == (w.shape, w.dtype) or pytest.fail("shapes"), grads, params)
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert all(np.isfinite(g).all() and g.any() for g in jax.tree.leaves(grads))
    np.testing.assert_allclose(info.loss, loss, rtol=1e-5)


def _deviation(mean, error, expected):
    off = jax.tree.map(lambda m, e, x: np.max(np.abs(m - x) / (e + 1e-9)), mean, error, expected)
    return max(map(float, jax.tree.leaves(off)))


def _sampled(estimator, params, batch, count):
    """Estimates side by side, [count, …]."""

    @jax.jit
    def draw(params, batch):
        state = estimator.init(KEY, params)
        one = lambda key: estimator.estimate(key, state, params, batch)[0]
        return jax.lax.map(one, jax.random.split(jax.random.key(5), count))

    return jax.device_get(draw(params, batch))


@pytest.mark.parametrize("factory", [
    functools.partial(nl.forward_gradient, space=nl.spaces.nodes), nl.node_perturbation,
], ids=["forward gradient", "node perturbation"])  # fmt: skip
def test_the_mean_is_the_local_gradient(factory, x64):
    """And node perturbation of the sum, the twin, is not: it hears the higher block's loss."""
    local, params, batch = problem("groupwise", x64=True)
    exact = jax.device_get(jax.jit(jax.grad(lambda p: jnp.mean(local.objective(p, batch))))(params))

    def off(estimator):
        drawn = _sampled(estimator, params, batch, 4000)
        mean = jax.tree.map(lambda g: g.mean(axis=0), drawn)
        error = jax.tree.map(lambda g: g.std(axis=0) / len(g) ** 0.5, drawn)
        return _deviation(mean, error, exact)

    assert off(nl.by_block(local, factory)) < 4.5
    if factory is nl.node_perturbation:
        assert off(factory(local.objective)) > 6


def law(local, params, batch):
    """s of the forward gradient in a chain of dense layers: of each group and block apart, then together."""
    moments, squares = [], []
    received, inputs = local.received(params, batch), batch[0]
    groups = next(iter(local.losses_per_example.values()))
    axons = nl.propagation.record(MLP.apply)(params, inputs)[1]
    for name, part in local.parts(params).items():
        layers = [layer for layer in part.params if not layer.endswith(".head")]
        credit = nl.backprop(part.objective).credit(KEY, (), part.params, received[name])
        below = {"hidden1": inputs, "output": axons["hidden1"]}
        ones = lambda x: jnp.concatenate([x, jnp.ones_like(x[:, :1])], axis=1)
        for g in range(groups):
            mine = {layer: (ones(below[layer]), credit[layer].delta.reshape(4, groups, -1)[:, g]) for layer in layers}
            feature = axons[name].reshape(4, groups, -1)[:, g]
            mine["head"] = ones(feature), credit[f"{name}.head"].delta.reshape(4, groups, -1)[:, g]
            moments.append(perturbation.nodes(mine, kurtosis=3))
            squares.append(sum(jnp.sum((x.T @ delta / 4) ** 2) for x, delta in mine.values()) / groups**2)
    return perturbation.together(moments, squares)


def test_variance_falls_with_the_units_that_feed_a_loss(x64):
    """The law is the measured variance; judged by the sum of the same losses, the twin, it is larger."""
    factory = functools.partial(nl.forward_gradient, space=nl.spaces.nodes)
    found = {}
    for way in ("one loss", "blockwise", "groupwise"):
        local, params, batch = problem(way, x64=True)

        @jax.jit
        def by_law(params, batch, local=local):
            exact = jax.grad(lambda p: jnp.mean(local.objective(p, batch)))(params)
            return exact, law(local, params, batch)

        exact, expected = jax.device_get(by_law(params, batch))
        square = sum(np.sum(g**2) for g in jax.tree.leaves(exact))

        def measured(estimator, params=params, batch=batch, exact=exact, square=square):
            drawn = _sampled(estimator, params, batch, 3000)
            off = sum(np.sum((d - g[None]) ** 2, axis=tuple(range(1, d.ndim))) for d, g in
                      zip(jax.tree.leaves(drawn), jax.tree.leaves(exact), strict=True))  # fmt: skip
            return off / square

        ratios = measured(nl.by_block(local, factory))
        error = ratios.std() / len(ratios) ** 0.5
        assert abs(ratios.mean() - (expected - 1)) / error < 4
        found[way] = float(ratios.mean()), float(error)
        if way != "one loss":
            twin = measured(factory(local.objective))
            assert (twin.mean() - ratios.mean()) / error > 6
    (most, _), (some, low), (least, lower) = found.values()
    assert most > some + 6 * low > least + 6 * lower


def test_predictions_are_heads_averaged_over_positions_and_groups():
    local, params, (inputs, _) = problem("patches and groups")

    @jax.jit
    def run(params, inputs):
        axons = nl.propagation.record(CONV.apply)(params, inputs)[1]["high"]
        return axons, local.apply(params, inputs)

    axons, found = jax.device_get(run(params, inputs))
    W, b = (np.asarray(params["high.head"][part]) for part in ("weight", "bias"))
    expected = sum(axons[..., 3 * g : 3 * g + 3].mean(axis=(1, 2)) @ W[g] + b[g] for g in range(2))
    np.testing.assert_allclose(found, expected / 2, rtol=1e-5)
    names = []
    jax.eval_shape(lambda *at: names.extend(local.outputs(*at)), params, inputs)
    assert names == ["low", "high"]
    assert local.losses_per_example == {"low": 32, "high": 8}


def test_what_does_not_fit_is_said():
    cut, dense = functools.partial(nl.local_losses, MLP, nl.losses.cross_entropy, 3), nl.connections.dense()
    cases = {
        "network must be made by nl.network": lambda: nl.local_losses(MLP.apply, nl.losses.cross_entropy, 3),
        "num_outputs must be a whole number": lambda: nl.local_losses(MLP, nl.losses.cross_entropy, 0),
        "blocks must end at layers with parameters, hidden1, output; got 'input'":
            lambda: cut(blocks=["input", "output"]),
        "the last must end at 'output'": lambda: cut(blocks=["hidden1"]),
        "blocks must be in the order of the layers": lambda: cut(blocks=["output", "hidden1"]),
        "groups must divide the 6 channels of layer 'hidden1', got 4": lambda: cut(groups=4),
        "patches=True needs a block that ends at an image": lambda: cut(patches=True),
        "the block of 'output' has hidden1, output": lambda: cut(blocks=["output"], groups=2),
        "losses must be made by nl.local_losses": lambda: nl.by_block(MLP, nl.backprop),
        "factory must take one argument, got 3: hand in nl.backprop": lambda: nl.by_block(problem("image")[0], 3),
        "state must be the 2 states that init made": lambda: nl.by_block(
            problem("image")[0], nl.backprop).estimate(KEY, (), *problem("image")[1:]),
        "is named like the head of 'a'": lambda: nl.local_losses(
            nl.network(nl.Layer("input", 2), nl.Layer("a", 2, dense), nl.Layer("a.head", 2, dense)),
            nl.losses.cross_entropy, 2),
    }  # fmt: skip
    for message, make in cases.items():
        with pytest.raises(ValueError, match=message):
            make()
    local, params, batch = problem("image")
    with pytest.raises(ValueError, match="batch must be a pair"):
        local.objective(params, batch[0])


@pytest.mark.usefixtures("lenient")
def test_digits_are_learned_group_by_group(digits):
    import optax

    relu = nl.activations.relu()
    local = nl.local_losses(nl.mlp([64, 32, 32], activation=relu, output_activation=relu), nl.losses.cross_entropy, 10,
                            groups=4)  # fmt: skip
    factory = functools.partial(nl.forward_gradient, space=nl.spaces.nodes, num_samples=4)
    learner = nl.learner(nl.by_block(local, factory), optax.adam(1e-2))
    state = jax.jit(lambda: learner.init(KEY, local.init(jax.random.key(1))))()
    state, _ = nl.fit(learner, KEY, state, digits, num_steps=300, batch_size=50, progress=False)
    answers = np.asarray(jax.jit(local.apply)(state.params, digits[0])).argmax(axis=1)
    assert (answers == np.asarray(digits[1])).mean() > 0.85
