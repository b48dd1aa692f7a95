import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nl_jax as nl
from nl_jax.propagation import feedforward

KEY = jax.random.key(0)
NETWORK = nl.mlp([4, 3, 2], activation=nl.activations.relu(), output_activation=nl.activations.relu())


def _problem():
    params = jax.jit(NETWORK.init, static_argnums=1)(jax.random.key(1), jnp.asarray(0.0).dtype)
    inputs = np.random.default_rng(2).uniform(size=(4, 4)).astype(jnp.asarray(0.0).dtype)
    return jax.tree.map(lambda w: np.asarray(w) + 0.2, params), (inputs, np.array([True, False, True, False]))


def _by_hand(params, batch, threshold):
    """Hinton's sum of logistic losses, one layer after the other."""
    x, positive = batch
    total, sign = 0.0, np.where(positive, 1, -1)
    for layer in params.values():
        x = x / np.sqrt((x**2).mean(axis=1, keepdims=True))
        x = np.maximum(x @ layer["weight"] + np.asarray(layer["bias"])[None], 0)
        total = total + np.log1p(np.exp(-sign * ((x**2).mean(axis=1) - threshold)))
    return total


def test_value_by_hand(x64):
    params, batch = _problem()
    losses = jax.jit(nl.objectives.forward_forward(NETWORK.apply, threshold=0.7))(params, batch)
    np.testing.assert_allclose(losses, _by_hand(params, batch, 0.7), rtol=1e-12)


def _cross_derivatives(objective, params, batch):
    """How the gradient of each layer depends on the other one's weights."""
    gradient = lambda params: jax.grad(lambda p: jnp.mean(objective(p, batch)))(params)
    curvature = jax.jit(jax.jacrev(gradient))(params)
    return [curvature[a]["weight"][b]["weight"] for a, b in (("hidden1", "output"), ("output", "hidden1"))]


@pytest.mark.slow
def test_no_credit_crosses_layers(x64):
    """The lower layer's gradient does not know the weights above it; the twin's, which backpropagates, does."""
    params, batch = _problem()
    above, below = _cross_derivatives(nl.objectives.forward_forward(NETWORK.apply), params, batch)
    assert not np.any(above)
    assert not np.any(below)  # axons from below are constants to it, whatever weights they come from

    def backpropagated(params, batch, propagate=feedforward):
        axons = nl.propagation.record(NETWORK.apply)(params, batch[0])[1]
        excess = sum(jnp.mean(x**2, axis=1) - 1 for x in axons.values())
        return jax.nn.softplus(jnp.where(batch[1], -excess, excess))

    assert all(np.any(crossed) for crossed in _cross_derivatives(backpropagated, params, batch))


def test_each_layer_follows_its_own_term(x64):
    """The gradient of the sum is, layer by layer, that of the layer's own loss on inputs that are given."""
    params, batch = _problem()
    objective = nl.objectives.forward_forward(NETWORK.apply)

    @jax.jit
    def both(params, batch):
        x, expected = batch[0], {}
        for name, layer in params.items():
            x = x / jnp.sqrt(jnp.mean(x**2, axis=1, keepdims=True))
            run = lambda layer, x: jax.nn.relu(x @ layer["weight"] + layer["bias"][None])

            def own(layer, x=x, run=run):
                excess = jnp.mean(run(layer, x) ** 2, axis=1) - 1
                return jnp.mean(jnp.log1p(jnp.exp(jnp.where(batch[1], -excess, excess))))

            expected[name] = jax.grad(own)(layer)
            x = run(layer, x)
        return jax.grad(lambda p: jnp.mean(objective(p, batch)))(params), expected

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), *both(params, batch))


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.float16])
def test_squares_of_large_inputs_neither_wrap_nor_overflow(dtype):
    params, _ = _problem()
    images = np.array([[200, 100, 50, 10], [20, 10, 5, 1]], dtype) * (1 if dtype == jnp.uint8 else dtype(10))
    objective = nl.objectives.forward_forward(NETWORK.apply)
    predict = nl.objectives.predict(NETWORK.apply, 2)
    params = jax.tree.map(lambda w: w.astype(dtype) if dtype == jnp.float16 else w, params)
    single = jax.tree.map(lambda w: w.astype(np.float32), params)
    run = jax.jit(lambda p, x: (objective(p, (x, np.array([True, False]))), predict(p, x)))
    (losses, labels), (expected, right) = run(params, images), run(single, images.astype(np.float32))
    np.testing.assert_allclose(losses, expected, rtol=1e-2)
    np.testing.assert_array_equal(labels, right)


def test_goodness_does_not_read_the_length_from_below():
    params, (inputs, _) = _problem()
    goodness = jax.jit(nl.objectives.goodness(NETWORK.apply))
    first, second = goodness(params, inputs), goodness(params, 3 * inputs)
    assert list(first) == ["hidden1", "output"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), first, second)
    silent = goodness(params, np.zeros_like(inputs))
    assert all(np.isfinite(g).all() for g in silent.values())


def test_layers_without_parameters_have_no_goodness_of_their_own():
    c = nl.connections
    network = nl.network(
        nl.Layer("image", (4, 4, 1)),
        nl.Layer("features", (2, 2, 2), c.conv(3), nl.activations.relu()),
        nl.Layer("vector", None, c.flatten()),
        nl.Layer("top", 3, c.dense(), nl.activations.relu()),
    )
    params = jax.eval_shape(network.init, KEY)
    found = jax.eval_shape(nl.objectives.goodness(network.apply), params, jnp.ones((5, 4, 4, 1)))
    assert {name: g.shape for name, g in found.items()} == {"features": (5,), "top": (5,)}


def test_contrast_is_of_right_and_wrong_labels():
    inputs, labels = np.full((300, 5), 7.0, np.float32), np.arange(300, dtype=np.int32) % 3
    both, positive = jax.device_get(jax.jit(nl.objectives.contrast(3))(KEY, (inputs, labels)))
    right, wrong = both[:300, :3].argmax(axis=1), both[300:, :3].argmax(axis=1)
    np.testing.assert_array_equal(positive, np.arange(600) < 300)
    np.testing.assert_array_equal(right, labels)
    shift = np.bincount((wrong - labels) % 3, minlength=3)
    assert shift[0] == 0
    assert abs(shift[1] - 150) < 5 * 75**0.5
    assert (both[:, 3:] == 7).all()
    assert (both[:, :3].sum(axis=1) == 1).all()


def test_a_label_out_of_range_is_nan():
    """A one-hot vector of zeros would be no label, and the remainder another one."""
    inputs, labels = np.ones((3, 5), np.uint8), np.array([5, -1, 2])
    unknown = [[True] * 3 + [False] * 2] * 2 + [[False] * 5]
    np.testing.assert_array_equal(np.isnan(nl.objectives.overlay(inputs, labels, 3)), unknown)
    both, _ = nl.objectives.contrast(3)(KEY, (inputs, labels))
    np.testing.assert_array_equal(np.isnan(both), unknown * 2)


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8])
def test_contrast_of_narrow_labels_does_not_overflow(dtype):
    num_classes = 200 if dtype == jnp.uint8 else 101
    batch = np.zeros((300, num_classes), np.float32), np.full(300, num_classes - 1, dtype)
    both, _ = jax.device_get(jax.jit(nl.objectives.contrast(num_classes))(KEY, batch))
    assert (both.sum(axis=1) == 1).all()
    assert not both[300:, -1].any()
    assert both[300:].any(axis=0)[: num_classes - 1].mean() > 0.7


def test_prediction_is_the_label_of_greatest_goodness():
    """A layer that responds to the label, and the more the nearer the third feature is to it."""

    def forward(params, x, propagate=feedforward):
        respond = lambda params, x: (x[:, :2] * jnp.stack([x[:, 2], 1 - x[:, 2]], axis=1)) @ params
        return propagate("layer", respond, lambda nu: nu, params, x)

    inputs = np.array([[0.5, 0.5, 0.9], [0.5, 0.5, 0.1]], np.float32)
    assert jax.jit(nl.objectives.predict(forward, 2))(np.ones((2, 1), np.float32), inputs).tolist() == [0, 1]


def test_what_it_is_given_is_checked():
    params, (inputs, positive) = _problem()
    objective = nl.objectives.forward_forward(NETWORK.apply)
    with pytest.raises(ValueError, match=r"positive must be one truth value per example, bool of shape \(4,\)"):
        objective(params, (inputs, positive.astype(jnp.float32)))
    with pytest.raises(ValueError, match=r"batch must be a pair \(inputs, positive\)"):
        objective(params, inputs)
    with pytest.raises(ValueError, match="threshold must be a finite Python number above 0"):
        nl.objectives.forward_forward(NETWORK.apply, threshold=0)
    with pytest.raises(ValueError, match="takes no argument `propagate`"):
        nl.objectives.forward_forward(lambda params, x: x)
    with pytest.raises(ValueError, match="5 features at least; got"):
        nl.objectives.overlay(inputs, jnp.zeros(4, int), 5)
    with pytest.raises(ValueError, match="num_classes must be at least 2"):
        nl.objectives.contrast(1)


@pytest.mark.slow
@pytest.mark.usefixtures("lenient")
def test_digits_are_learned_layer_by_layer(digits):
    network = nl.mlp([64, 40, 40], activation=nl.activations.relu(), output_activation=nl.activations.relu())
    estimator = nl.backprop(nl.objectives.forward_forward(network.apply))
    learner = nl.learner(nl.augment_batches(estimator, nl.objectives.contrast(10)), optax.adam(1e-2))
    state = learner.init(KEY, network.init(jax.random.key(1)))
    state, _ = nl.fit(learner, KEY, state, digits, num_steps=200, batch_size=50, progress=False)
    assert (nl.objectives.predict(network.apply, 10)(state.params, digits[0]) == digits[1]).mean() > 0.8
