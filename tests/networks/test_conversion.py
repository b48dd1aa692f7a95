import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nl_jax as nl
from nl_jax.networks.conversion import tanh_from_sigmoid

KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(7, 3))
c = nl.connections
sigmoid = nl.activations.sigmoid
biased = jax.nn.initializers.normal()


def _pair(network):
    """What network and converted network make of X, their parameters, and the converted network."""
    params = jax.jit(network.init, static_argnums=1)(KEY, jnp.float64)
    converted, tanh_params = tanh_from_sigmoid(network, params)
    given, found = jax.jit(lambda *at: (network.apply(at[0], X), converted.apply(at[1], X)))(params, tanh_params)
    return given, found, params, tanh_params, converted


def _functions(network):
    return [getattr(layer.activation, "function", layer.activation) for layer in network.layers]


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "output"), [(1, None), (2, sigmoid()), (5, None)], ids=["1", "2 sigmoid", "5"])
def test_a_network_of_sigmoids_is_one_of_tanh(depth, output, x64):
    """Seed 000, at any depth."""
    network = nl.mlp([3, *[4] * depth, 2], activation=sigmoid(), output_activation=output)
    given, found, params, tanh_params, converted = _pair(network)
    np.testing.assert_allclose(found, given, rtol=1e-12, atol=1e-12)
    assert jax.tree.map(jnp.shape, tanh_params) == jax.tree.map(jnp.shape, params)
    assert jax.nn.sigmoid not in _functions(converted)
    assert converted.shapes == network.shapes


def test_the_new_weights_are_the_seeds(x64):
    """y = w_0 + Σ w_i σ(x_i) = w_0' + Σ w_i' tanh(x_i/2), w_0' = w_0 + Σ w_i/2, w_i' = w_i/2."""
    network = nl.mlp([3, 4, 1], activation=sigmoid())
    params = network.init(KEY, jnp.float64)
    params["output"]["bias"] = jnp.asarray([0.3])
    converted, tanh_params = tanh_from_sigmoid(network, params)
    w = params["output"]["weight"][:, 0]
    np.testing.assert_allclose(tanh_params["output"]["weight"][:, 0], w / 2, rtol=1e-15)
    np.testing.assert_allclose(tanh_params["output"]["bias"], [0.3 + sum(w) / 2], rtol=1e-15)
    assert tanh_params["hidden1"] == params["hidden1"]  # reads the inputs, which are as ever
    hidden = X @ params["hidden1"]["weight"] + params["hidden1"]["bias"][None]
    np.testing.assert_allclose(converted.axons(tanh_params, jnp.asarray(X))["hidden1"], np.tanh(hidden / 2), rtol=1e-12)


@pytest.mark.slow
def test_a_hierarchy_is_converted_where_it_reads_sigmoids(x64):
    """Skip connections, one bias for several or one each, other units between, batch norm, a plain function."""
    network = nl.network(
        nl.Layer("input", 3),
        nl.Layer("low", 4, c.dense(bias_init=biased), sigmoid()),
        nl.Layer("other", 4, [c.dense("low", bias_init=biased), c.dense("input", bias=False)], nl.activations.tanh()),
        nl.batch_norm(
            nl.Layer("high", 5, [c.dense("low", bias=False), c.dense("other", bias_init=biased)], jax.nn.sigmoid)
        ),
        nl.Layer("best", None, c.winner_take_all("other")),
        nl.Layer("output", 5, [c.dense("low"), c.dense("high"), c.dense("best"), c.dense("input", bias=False)]),
    )
    given, found, params, tanh_params, converted = _pair(network)
    np.testing.assert_allclose(found, given, rtol=1e-12, atol=1e-12)
    assert jax.nn.sigmoid not in _functions(converted)
    assert tanh_params["output"]["best"] == params["output"]["best"]
    again, same = tanh_from_sigmoid(converted, tanh_params)
    assert _functions(again) == _functions(converted)
    jax.tree.map(np.testing.assert_array_equal, same, tanh_params)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            nl.Layer("o", 2, c.dense(bias=False)),
            r"'o' reads .* 'h' without a bias.* of 'o' one, dense\(bias=True\), or",
        ),
        (nl.Layer("o", None, c.winner_take_all()), "'o' reads the sigmoid layer 'h' by what is not dense: give 'h'"),
        (nl.Layer("o", 4, [c.winner_take_all("h"), c.dense("input")]), "'o' reads .* 'h' by what is not dense"),
    ],
)
def test_what_cannot_take_up_the_change_is_refused(layer, message):
    h = nl.Layer("h", 4, c.dense(), sigmoid())
    network = nl.network(nl.Layer("input", 3), h, layer)
    with pytest.raises(ValueError, match="layer " + message + r".*sigmoid_by_tanh\(\)"):
        tanh_from_sigmoid(network, network.init(KEY))


def test_the_remedy_helps():
    """Units that are sigmoids by way of tanh stay, and with them whatever reads them."""
    network = nl.mlp([3, 4, 2], activation=nl.activations.sigmoid_by_tanh(), bias=False)
    params = network.init(KEY)
    converted, same = tanh_from_sigmoid(network, params)
    assert _functions(converted) == _functions(network)
    jax.tree.map(np.testing.assert_array_equal, same, params)
