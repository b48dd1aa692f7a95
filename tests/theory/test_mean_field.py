"""Mean squares of axons and credit against those of wide networks, layer by layer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nl_jax as nl
from nl_jax.theory import mean_field

pytestmark = pytest.mark.slow

DEPTH, WIDTH, NETWORKS = 5, 100, 60


def bent(nu):
    """Not odd, and of another slope on each side."""
    return jnp.where(nu > 0, 1.2 * jnp.tanh(nu), 0.3 * nu) + 0.1


@functools.cache
def measured(activation, gain):
    """Mean squares of each network's layers, of what they receive and of their credit, [networks, DEPTH]."""
    network = nl.mlp([WIDTH] * (DEPTH + 1), activation=activation, bias=False)
    objective = nl.supervised(network.apply, lambda outputs, targets: jnp.sum(outputs * targets, axis=1))

    @jax.jit
    @jax.vmap
    def squares(key):
        keys = jax.random.split(key, DEPTH + 2)
        names = [name for name in network.shapes if name != "input"]
        params = {
            name: {"weight": jnp.sqrt(gain / WIDTH) * jax.random.normal(k, (WIDTH, WIDTH))}
            for name, k in zip(names, keys[2:], strict=True)
        }
        batch = tuple(jax.random.normal(k, (1, WIDTH)) for k in keys[:2])
        _, axons = nl.propagation.record(network.apply)(params, batch[0])
        credit = jax.grad(lambda offsets: jnp.sum(nl.propagation.inject(objective)(params, batch, offsets)))(
            jax.tree.map(jnp.zeros_like, axons)
        )
        below = [batch[0], *axons.values()][:-1]
        return jnp.stack([jnp.mean(x**2) for x in below]), jnp.stack([jnp.mean(credit[n] ** 2) for n in axons])

    return [np.asarray(of, np.float64) for of in squares(jax.random.split(jax.random.key(0), NETWORKS))]


def deviation(samples, predicted):
    return np.max(np.abs(samples.mean(axis=0) - predicted) / (samples.std(axis=0, ddof=1) / len(samples) ** 0.5))


@pytest.mark.parametrize(("activation", "gain"), [(jnp.tanh, 1.5), (bent, 1.0)])  # relu's closed forms are below
def test_layers_of_wide_networks(activation, gain):
    """Within 4 standard errors over networks; another gain must fail, and the layers in another order."""
    found = mean_field.mean_squares(activation, DEPTH, gain=gain)
    other = mean_field.mean_squares(activation, DEPTH, gain=1.2 * gain)
    for samples, right, wrong in zip(measured(activation, gain), found, other, strict=True):
        assert deviation(samples, right) < 4
        assert deviation(samples, wrong) > 5
        assert deviation(samples[:, ::-1], right) > 5


def test_norms_are_kept_at_the_right_gain(x64):
    for activation, gain in ((lambda nu: nu, 1.0), (jax.nn.relu, 2.0)):
        found = mean_field.mean_squares(activation, 9, gain=gain, start=3.0)
        np.testing.assert_allclose(found.inputs, 3, rtol=1e-12)
        np.testing.assert_allclose(found.credit, 1, rtol=1e-12)
        np.testing.assert_allclose(found.imbalance, np.ones(9), rtol=1e-12)


def test_imbalance_of_halved_norms_is_exponential(x64):
    """Rectified linear units with g = 1: q = 2^{−k}, and ⟨q⟩⟨1/q⟩ = (2 − 2^{1−L})(2^L − 1)/L²."""
    L = np.arange(1, 21)
    imbalance = mean_field.mean_squares(jax.nn.relu, 20, gain=1.0).imbalance
    np.testing.assert_allclose(imbalance, (2 - 2.0 ** (1 - L)) * (2.0**L - 1) / L**2, rtol=1e-9)


def test_a_shallower_network_is_the_first_layers_of_a_deeper_one(x64):
    deep, shallow = (mean_field.mean_squares(jnp.tanh, depth, gain=1.3) for depth in (7, 4))
    np.testing.assert_allclose(deep.inputs[:4], shallow.inputs, rtol=1e-12)
    np.testing.assert_allclose(deep.imbalance[:4], shallow.imbalance, rtol=1e-12)
    q, d = map(np.asarray, shallow)
    np.testing.assert_allclose(shallow.imbalance[-1], q.mean() * d.mean() / (q * d).mean(), rtol=1e-12)
    assert shallow.imbalance[-1] > 1.01


def test_bad_numbers_are_told():
    for settings, message in (
        ({"depth": 0}, "depth must be a finite number of at least 1, got 0"),
        ({"gain": 0.0}, "gain must be a finite number above 0, got 0.0"),
        ({"start": np.inf}, "start must be a finite number above 0, got inf"),
    ):
        with pytest.raises(ValueError, match=message):
            mean_field.mean_squares(jnp.tanh, **({"depth": 3, "gain": 1.0} | settings))
