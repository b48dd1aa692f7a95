import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nl_jax as nl

KEY = jax.random.key(0)
c = nl.connections


def image_network(connection, shape=None, source=(6, 5, 2)):
    return nl.network(nl.Layer("image", source), nl.Layer("output", shape, connection))


@pytest.mark.slow
def test_mlp_is_the_seeds_recursion(x64):
    """x^l = f(W^l x^{l-1} + b^l), l = 1 … L."""
    network = nl.mlp([4, 5, 6, 3], activation=nl.activations.tanh())
    params = network.init(KEY, jnp.float64)
    x = jax.random.normal(KEY, (2, 4))
    expected = x
    for name in ("hidden1", "hidden2"):
        expected = np.tanh(expected @ params[name]["weight"] + params[name]["bias"][None, :])
    expected = expected @ params["output"]["weight"] + params["output"]["bias"][None, :]
    np.testing.assert_allclose(network.apply(params, x), expected, rtol=1e-12)
    assert network.shapes == {"input": (4,), "hidden1": (5,), "hidden2": (6,), "output": (3,)}
    axons = network.axons(params, x)
    assert list(axons) == list(network.shapes)
    np.testing.assert_array_equal(axons["input"], x)
    np.testing.assert_allclose(axons["output"], expected)


@pytest.mark.slow
def test_a_layer_adds_up_its_connections(x64):
    network = nl.network(
        nl.Layer("input", 3),
        nl.Layer("hidden", 4, c.dense(), nl.activations.tanh()),
        nl.Layer("output", 2, [c.dense("hidden"), c.dense("input", bias=False)]),
    )
    params = network.init(KEY, jnp.float64)
    assert set(params["output"]) == {"hidden", "input"}
    assert set(params["output"]["input"]) == {"weight"}
    x = jax.random.normal(KEY, (5, 3))
    hidden = network.axons(params, x)["hidden"]
    part = params["output"]
    expected = hidden @ part["hidden"]["weight"] + part["hidden"]["bias"][None, :] + x @ part["input"]["weight"]
    np.testing.assert_allclose(network.apply(params, x), expected, rtol=1e-12)


def test_lateral_units_inhibit_those_after_them(x64):
    connection = c.lateral_dense(lateral_init=jax.nn.initializers.normal(1.0), bias_init=jax.nn.initializers.ones)
    network = nl.network(nl.Layer("input", 3), nl.Layer("output", 4, connection))
    params = network.init(KEY, jnp.float64)
    x = jax.random.normal(KEY, (5, 3))
    W, C, b = (np.asarray(params["output"][name]) for name in ("weight", "lateral", "bias"))
    expected = np.asarray(x) @ W + b
    for j in range(4):
        for i in range(j):
            expected[:, j] -= expected[:, i] * C[i, j]
    np.testing.assert_allclose(network.apply(params, x), expected, rtol=1e-12)
    assert (
        not nl.network(nl.Layer("input", 3), nl.Layer("output", 4, c.lateral_dense()))
        .init(KEY)["output"]["lateral"]
        .any()
    )


@pytest.mark.slow
@settings(max_examples=6, deadline=None)
@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    padding=st.sampled_from(["VALID", "SAME", ((1, 0), (0, 2))]),
)
def test_conv_and_max_pool_agree_with_jax(kernel, stride, padding):
    x = np.random.default_rng(0).normal(size=(2, 6, 5, 2)).astype(np.float32)
    network = image_network(c.conv(kernel, channels=3, stride=stride, padding=padding))

    @jax.jit
    def both(x):
        params = network.init(KEY)
        weight, layout = params["output"]["weight"], ("NHWC", "HWIO", "NHWC")
        own = jax.lax.conv_general_dilated(x, weight, stride, padding, dimension_numbers=layout)
        return network.apply(params, x), own

    found, expected = both(x)
    assert network.shapes["output"] == expected.shape[1:]
    np.testing.assert_allclose(found, expected, atol=1e-5)

    if not isinstance(padding, str) and (kernel[0] <= 1 or kernel[1] <= 2):
        return  # windows of nothing but padding, which max_pool refuses
    pads = padding if isinstance(padding, str) else ((0, 0), *padding, (0, 0))
    pooling = image_network(c.max_pool(kernel, stride=stride, padding=padding))
    own = lambda x: jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, *kernel, 1), (1, *stride, 1), pads)
    found, pooled = jax.jit(lambda x: (pooling.apply({"output": {}}, x), own(x)))(x)
    assert pooling.shapes["output"] == pooled.shape[1:]
    np.testing.assert_array_equal(found, pooled)


@pytest.mark.slow
def test_max_pool_credits_the_first_winner_alone():
    """Seed 003 eq. 11: weight 1 on the largest, 0 elsewhere; of equals, the first."""
    network = image_network(c.max_pool(2), source=(2, 2, 1))
    credit = jax.grad(lambda x: jnp.sum(network.apply({"output": {}}, x)))
    for values, winner in [([1, 3, 2, 0], 1), ([5, 5, 5, 5], 0), ([1, 4, 4, 2], 1), ([0, 0, 0, 7], 3)]:
        x = jnp.array(values, jnp.float32).reshape(1, 2, 2, 1)
        expected = np.zeros(4)
        expected[winner] = 1
        np.testing.assert_array_equal(np.ravel(credit(x)), expected)


def test_max_pool_does_not_lose_a_nan():
    network = image_network(c.max_pool(2), source=(2, 2, 1))
    for place in range(4):
        x = jnp.zeros(4).at[place].set(jnp.nan).reshape(1, 2, 2, 1)
        assert np.isnan(network.apply({"output": {}}, x)).all()


def _one_hot_matrix(x, groups):
    """M of seed 003 eq. 11 for one example: 1 from the first largest input of each group to its own unit."""
    M = np.zeros((len(x), len(x)))
    for members in np.split(np.arange(len(x)), groups):
        winner = members[np.argmax(x[members])]
        M[winner, winner] = 1
    return M


@pytest.mark.parametrize(("group", "groups"), [(None, 1), (6, 1), (3, 2), (np.int64(2), 3), (1, 6)])
def test_winner_take_all_is_a_product_with_a_one_hot_matrix(group, groups):
    """ν = x M, and credit flows as through M: to the winners alone, of equals to the first."""
    network = nl.network(nl.Layer("input", 6), nl.Layer("output", None, c.winner_take_all(group=group)))
    x = np.array([[1, 3, 2, -4, -2, -3], [5, 5, 5, 5, 5, 5], [-1, -1, 0, 2, 7, 7], [0, -2, 0, -9, -3, -3]])
    credit = np.arange(24.0).reshape(4, 6) + 1
    nu, pull = jax.vjp(lambda x: network.apply({"output": {}}, x), jnp.asarray(x, jnp.float32))
    M = [_one_hot_matrix(row, groups) for row in x]
    np.testing.assert_array_equal(nu, np.einsum("bi,bij->bj", x, M))
    np.testing.assert_array_equal(pull(jnp.asarray(credit, jnp.float32))[0], np.einsum("bij,bj->bi", M, credit))


def test_winner_take_all_competes_along_the_last_axis():
    network = image_network(c.winner_take_all(), source=(2, 2, 3))
    x = jax.random.normal(KEY, (4, 2, 2, 3))
    np.testing.assert_array_equal(network.apply({"output": {}}, x), np.where(x == x.max(-1, keepdims=True), x, 0))


def test_winner_take_all_does_not_lose_a_nan():
    network = nl.network(nl.Layer("input", 4), nl.Layer("output", 4, c.winner_take_all(group=2)))
    for place in range(4):
        spoilt = np.isnan(network.apply({"output": {}}, jnp.arange(4.0).at[place].set(jnp.nan)[None]))
        np.testing.assert_array_equal(spoilt[0], np.arange(4) == place)


def test_flatten_and_reshape_are_inverse():
    network = nl.network(
        nl.Layer("image", (2, 3, 2)), nl.Layer("flat", None, c.flatten()), nl.Layer("again", (2, 3, 2), c.reshape())
    )
    x = jax.random.normal(KEY, (4, 2, 3, 2))
    np.testing.assert_array_equal(network.apply(network.init(KEY), x), x)
    assert network.shapes["flat"] == (12,)


@pytest.mark.slow
def test_initialisers_and_dtype():
    network = nl.mlp([300, 200, 2], activation=nl.activations.relu(), weight_init=jax.nn.initializers.he_normal())
    init = jax.jit(network.init, static_argnums=1)
    params = init(KEY, jnp.bfloat16)
    assert params["hidden1"]["weight"].dtype == jnp.bfloat16
    spread = np.std(np.asarray(params["hidden1"]["weight"], np.float32))
    np.testing.assert_allclose(spread, (2 / 300) ** 0.5, rtol=0.02)
    np.testing.assert_array_equal(params["hidden1"]["bias"], 0)
    one, other = (init(jax.random.key(number), jnp.float32)["hidden1"]["weight"] for number in (1, 2))
    assert not np.allclose(one, other)


INPUT = nl.Layer("input", 3)
BAD = {
    "no layers": ([], "a network needs at least two layers"),
    "input with connections": ([nl.Layer("a", 3, c.dense()), INPUT], "the first being the input"),
    "duplicate": ([INPUT, nl.Layer("input", 2, c.dense())], "two layers are named 'input'"),
    "upward": (
        [INPUT, nl.Layer("low", 2, c.dense("high")), nl.Layer("high", 2, c.dense())],
        "layer 'low' receives from 'high', which is not a layer below it",
    ),
    "itself": ([INPUT, nl.Layer("low", 2, c.dense("low"))], "layer 'low' receives from 'low'"),
    "none": ([INPUT, nl.Layer("o", 2)], "layer 'o' receives no connection"),
    "not a connection": ([INPUT, nl.Layer("o", 2, [jnp.tanh])], "layer 'o': .* is not a connection"),
    "dense of image": (
        [nl.Layer("image", (2, 2, 1)), nl.Layer("o", 2, c.dense())],
        r"layer 'o', connection from 'image': dense reads a vector.*\(2, 2, 1\): put a flatten layer between",
    ),
    "dense without units": ([INPUT, nl.Layer("o", None, c.dense())], r"layer 'o'.*dense needs a layer of shape"),
    "conv of vector": ([INPUT, nl.Layer("o", None, c.conv(2, channels=1))], "layer 'o'.*conv reads an image"),
    "conv shape": (
        [nl.Layer("image", (4, 4, 1)), nl.Layer("o", (4, 4, 2), c.conv(3))],
        r"layer 'o' has shape \(4, 4, 2\), but its connection from 'image' gives \(2, 2, 2\)",
    ),
    "conv channels": ([nl.Layer("image", (4, 4, 1)), nl.Layer("o", None, c.conv(3))], "layer 'o'.*conv needs channels"),
    "window too large": (
        [nl.Layer("image", (2, 2, 1)), nl.Layer("o", None, c.max_pool(3))],
        r"layer 'o'.*a window of \(3, 3\) does not fit",
    ),
    "groups": (
        [INPUT, nl.Layer("o", 3, c.winner_take_all(group=2))],
        "layer 'o', connection from 'input': winner_take_all cannot part 3 units into groups of 2",
    ),
    "winners of another shape": ([INPUT, nl.Layer("o", 2, c.winner_take_all())], r"layer 'o' has shape \(2,\), but"),
    "reshape": ([INPUT, nl.Layer("o", (2, 2), c.reshape())], r"layer 'o'.*reshape cannot fit .*\(3,\) into \(2, 2\)"),
    "sum of two shapes": (
        [nl.Layer("a", (4, 4, 1)), nl.Layer("b", None, c.max_pool(2)),
         nl.Layer("o", None, [c.conv(1, "a", channels=1), c.conv(1, "b", channels=1)])],
        r"layer 'o' has shape \(4, 4, 1\), but its connection from 'b' gives \(2, 2, 1\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_network_that_does_not_fit_says_which_layer(name):
    layers, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        nl.network(*layers)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nl.Layer("", 3), "a layer's name must be a non-empty string"),
        (lambda: nl.Layer("a", 3, activation=jnp.tanh), "layer 'a' receives no connection, so that its activation"),
        (lambda: image_network(c.max_pool(2, padding=((2, 0), (0, 0)))), "layer 'output'.*nothing but padding"),
        (
            lambda: nl.Layer("a", 3, c.dense(), nl.activations.tanh),
            r"layer 'a': activation must take one argument.*tanh\(\)",
        ),
        (lambda: nl.network([INPUT]), r"network takes layers one by one, network\(\*layers\); got list"),
        (lambda: nl.Layer("a", 0), "layer 'a': shape must be of whole numbers of at least 1, got 0"),
        (lambda: nl.Layer("a", (2, 1.5)), "layer 'a': shape must be"),
        (lambda: c.conv(0), "kernel must be .* got 0"),
        (lambda: c.conv(2, stride=(1, 2, 3)), r"stride must be .* got \(1, 2, 3\)"),
        (lambda: c.conv(2, padding="same"), "padding must be 'VALID', 'SAME' or .* got 'same'"),
        (lambda: c.conv(2, channels=0), "channels must be a whole number"),
        (lambda: c.max_pool(2, padding=((0, -1), (0, 0))), "padding must be"),
        (lambda: c.winner_take_all(group=0), "group must be a whole number"),
        (lambda: nl.mlp([3], activation=jnp.tanh), r"sizes must list at least .* got \[3\]"),
    ],
)
def test_bad_settings_are_errors_at_once(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_biases_are_added():
    image = jax.random.normal(KEY, (2, 6, 5, 2))
    cases = [
        (image_network(c.conv(2, channels=3)), image),
        (nl.mlp([4, 3], activation=jnp.tanh), jnp.ones((2, 4))),
    ]
    for network, x in cases:
        params = network.init(KEY)
        shifted = {"output": {**params["output"], "bias": jnp.array([0.0, 1.0, 2.0])}}
        change = network.apply(shifted, x) - network.apply(params, x)
        np.testing.assert_allclose(change, np.broadcast_to([0.0, 1.0, 2.0], change.shape), atol=1e-6)


def test_sizes_may_be_numpy_numbers():
    network = nl.mlp([4, np.int64(3)], activation=jnp.tanh)
    assert network.shapes["output"] == (3,)
    assert image_network(c.max_pool(np.int32(2))).shapes["output"] == (3, 2, 2)


def test_parameters_of_wrong_shapes_name_the_layer():
    network = nl.mlp([4, 5, 3], activation=nl.activations.tanh())
    params = network.init(KEY)
    for shape in ((5, 1), (5, 7), (3, 5)):
        wrong = {**params, "output": {**params["output"], "weight": jnp.ones(shape)}}
        with pytest.raises(ValueError, match=r"layer 'output' has parameters of shapes .*'weight': \(5, 3\).* got"):
            network.apply(wrong, jnp.ones((2, 4)))


def test_bad_calls_name_the_layer():
    network = nl.mlp([4, 2, 3], activation=nl.activations.tanh())
    params = network.init(KEY)
    with pytest.raises(ValueError, match=r"input layer 'input' takes inputs of shape \[batch, 4\], got \[4\]"):
        network.apply(params, jnp.ones(4))
    with pytest.raises(ValueError, match=r"input layer 'input'.* got \[2, 5\]"):
        network.apply(params, jnp.ones((2, 5)))
    with pytest.raises(
        ValueError, match=r"got a tuple \(\(2, 4\), \(2,\)\): make an objective of it, by nl\.supervised"
    ):
        nl.backprop(network.apply).estimate(KEY, (), params, (jnp.ones((2, 4)), jnp.zeros(2)))
    with pytest.raises(ValueError, match="params have no entry for layer 'hidden1'"):
        network.apply({"output": params["output"]}, jnp.ones((2, 4)))


def test_init_refuses_a_raw_key():
    tanh = nl.activations.tanh()
    residual, recurrent = nl.residual(2, 2, 1, layers=3, activation=tanh), nl.recurrent(nl.cells.gru(3), 2, 1)
    for network in (nl.mlp([2, 1], activation=tanh), residual, recurrent):
        with pytest.raises(ValueError, match=r"key must be a typed key made by jax\.random\.key"):
            network.init(jnp.zeros(2, jnp.uint32))
