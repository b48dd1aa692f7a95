"""Noise of large parameters, drawn block by block: the same direction wherever it is needed, stored nowhere."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nl_jax as nl
from nl_jax.estimators.noise.directions import blocks, layout
from nl_jax.estimators.noise.directions.sampler import drawing
from nl_jax.estimators.noise.engine.sampled_gradient import Directions, SampledGradient
from nl_jax.estimators.noise.spaces import Noise
from tests.estimators.noise.test_directions import SAMPLERS
from tests.formed import formed

KEY = jax.random.key(3)
each_law = pytest.mark.parametrize("name", SAMPLERS)


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of a few components, so that small networks are drawn as large ones are."""
    monkeypatch.setattr(layout, "LARGE", 5)
    monkeypatch.setattr(layout, "BLOCK", 8)


def hierarchy(params, batch, propagate=nl.propagation.feedforward):
    """All a large parameter is used for: products, a transposed one, a stack in a loop, a convolution, tables."""
    x, ids = batch
    hidden = propagate("in", lambda w, x: x @ w, jnp.tanh, params["in"], x) + params["table"][ids]
    hidden = hidden + jnp.sum(params["tied"].T[jnp.stack([ids, -ids - 1], axis=1)], axis=1)  # looked up by unit, too

    def step(hidden, weight, propagate):
        return propagate("block", lambda w, x: x @ w.astype(x.dtype), jnp.tanh, weight, hidden), None

    hidden, _ = nl.scan("depth", step, hidden, params["stack"], propagate)
    image = hidden.reshape(-1, 2, 2, 1)
    convolve = lambda x, w: jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    seen = propagate("conv", lambda w, x: nl.products.product(convolve, x, w), jnp.tanh, params["conv"], image)
    back = propagate(
        "back",
        lambda w, x: x @ w.T + jnp.expand_dims(params["bias"], 0),
        jnp.tanh,
        params["back"],
        seen.reshape(len(x), -1),
    )
    return jnp.sum(back**2, axis=1) + jnp.sum(jnp.sin(hidden @ params["tied"]), axis=1)


def _problem():
    shapes = {
        "in": (3, 4),
        "table": (7, 4),
        "tied": (4, 7),
        "stack": (3, 4, 4),
        "conv": (2, 2, 1, 3),
        "back": (5, 12),
        "bias": (5,),
    }
    keys = jax.random.split(KEY, len(shapes) + 1)
    params = {
        name: 0.5 * jax.random.normal(k, shape) for (name, shape), k in zip(shapes.items(), keys[1:], strict=True)
    }
    return params, (jax.random.normal(keys[0], (6, 3)), jnp.array([0, 3, 6, 1, 1, 2]))


@each_law
def test_what_is_displaced_in_blocks_is_the_formed_direction(name, small_blocks, x64):
    """Losses on both sides, rates of change and the sum of directions, in all uses of a weight."""
    params, batch = _problem()
    params, batch = jax.tree.map(lambda x: x.astype(float) if x.dtype == jnp.float32 else x, (params, batch))

    @jax.jit
    def both():
        view = nl.spaces.weights(hierarchy)(params, batch, Noise(SAMPLERS[name], KEY, 3))
        direction = view.draw(jnp.int32(2))
        arrays = jax.tree.map(lambda w, xi: xi.reshape(6, *w.shape), params, formed(direction, 6))
        moved = lambda sigma, n: hierarchy(jax.tree.map(lambda w, xi: w + sigma * xi[n], params, arrays), batch)[n]
        each = lambda sigma: jnp.stack([moved(sigma, n) for n in range(6)])
        change = jnp.zeros((3, 6)).at[2].set(jnp.arange(6.0))
        total = jax.tree.map(lambda xi: jnp.tensordot(jnp.arange(6.0), xi, axes=1) / 18, arrays)
        found = view.both_sides(direction, 0.1), view.displaced(direction, 0.2), view.tangent()[1](direction)
        expected = (each(0.1), each(-0.1)), each(0.2), jax.jvp(each, (0.0,), (1.0,))[1]
        return (found, SampledGradient(KEY, change, view.directions).formed(params)), (expected, total), direction

    found, expected, direction = both()
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12), found, expected)
    if name in ("gaussian", "flipout"):  # what a layer multiplies by, in loops too, is not formed
        assert all(
            isinstance(getattr(direction[of], "noise", direction[of]), blocks.Blocks)
            for of in ("stack", "table", "tied")
        )


@each_law
def test_moments_in_blocks(name, small_blocks):
    """Zero mean and unit covariance over many directions, beside a twin whose blocks repeat one another."""
    template = {"a": jnp.zeros((3,)), "b": jnp.zeros((2, 7))}
    draw = drawing(SAMPLERS[name])

    def vectors(key):
        arrays = formed(draw(key, jnp.int32(0), template), 1)
        return jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(arrays)])

    flat = np.asarray(jax.jit(jax.vmap(vectors))(jax.random.split(KEY, 20_000)), np.float64)

    def deviation(flat):
        outer = flat[:, :, None] * flat[:, None, :]
        error = np.maximum(outer.std(axis=0), 1e-3) / len(flat) ** 0.5
        return np.max(np.abs(outer.mean(axis=0) - np.eye(17)) / (error + 1e-6))

    assert deviation(flat) < 5
    twin = flat.copy()
    twin[:, 3:9] = twin[:, 9:15]
    assert deviation(twin) > 5


def test_a_sphere_in_blocks_has_the_spheres_length(small_blocks, x64):
    template = {"a": jnp.zeros((3,)), "b": jnp.zeros((4, 7))}
    xi = jax.jit(jax.vmap(lambda i: d_sphere(KEY, i, template)))(jnp.arange(50))
    squares = sum(jnp.sum(leaf.reshape(50, -1) ** 2, axis=1) for leaf in jax.tree.leaves(xi))
    np.testing.assert_allclose(squares, 31, rtol=1e-10)
    assert np.std(np.sum(np.asarray(xi["a"]) ** 2, axis=1)) > 0.5  # lengths of the parts vary


d_sphere = nl.directions.sphere()


def test_orthogonal_directions_in_blocks_are_orthogonal(small_blocks, x64):
    """Columns are given out in words: two rows differ in half of 32 · blocks of them, of which P are used."""
    template = {"b": jnp.zeros((32, 4))}  # blocks of one unit, a word each
    rows = jax.jit(jax.vmap(lambda i: nl.directions.orthogonal()(KEY, i, template)["b"].reshape(-1)))(jnp.arange(128))
    np.testing.assert_allclose(rows @ rows.T, 128 * np.eye(128), atol=1e-9)


def test_coordinates_in_blocks_are_each_chosen_once(small_blocks):
    template = {"a": jnp.zeros((3,)), "b": jnp.zeros((2, 7))}
    sampler = nl.directions.coordinate()
    xi = jax.jit(jax.vmap(lambda i: sampler(KEY, i, template)))(jnp.arange(17))
    flat = np.concatenate([np.asarray(leaf).reshape(17, -1) for leaf in (xi["a"], xi["b"])], axis=1)
    np.testing.assert_allclose(np.abs(flat).sum(axis=0), 17**0.5, rtol=1e-6)
    np.testing.assert_allclose(np.abs(flat).sum(axis=1), 17**0.5, rtol=1e-6)


def test_a_block_depends_on_its_place_alone(small_blocks, monkeypatch):
    """How many blocks are handled at once changes nothing of the noise."""
    template = {"b": jnp.zeros((3, 2, 26))}
    direction = drawing(nl.directions.gaussian())(KEY, jnp.int32(0), template)["b"]
    assert (direction.layout.width, direction.layout.blocks, direction.layout.rest) == (
        2,
        13,
        0,
    ) or direction.layout.rest
    once = direction.formed()
    monkeypatch.setattr(layout.Layout, "together", property(lambda layout: 1))
    np.testing.assert_array_equal(once, direction.formed())
    assert len(np.unique(np.asarray(once))) == once.size


@pytest.mark.parametrize("shape", [(2**20,), (300, 257), (5, 40, 900), (100_000, 3)])
def test_blocks_cover_a_parameter(shape):
    made = layout.Layout.of(shape)
    assert made.width * made.whole + made.rest == made.units
    assert made.inputs * made.width <= 2**16 or made.width == 1
    assert made.slices * made.inputs * made.units == np.prod(shape)
    assert made.whole % made.together == 0


# 8.4 million parameters. The forward pass has temporaries of 0.016 of their bytes.
WIDE = nl.mlp([1024, 2048, 2048, 1024], activation=nl.activations.tanh())


def _temporaries(step, *arguments):
    compiled = jax.jit(step, donate_argnums=0).lower(*arguments).compile()
    parameters = sum(leaf.size for leaf in jax.tree.leaves(arguments[0].params)) * 4
    return compiled.memory_analysis().temp_size_in_bytes / parameters


def _learned(make, samples, **settings):
    objective = nl.supervised(WIDE.apply, nl.losses.cross_entropy)
    params = jax.eval_shape(WIDE.init, KEY)
    learner = make(nl.weight_perturbation(objective, num_samples=samples, **settings))
    state = jax.eval_shape(learner.init, KEY, params)
    batch = jax.ShapeDtypeStruct((32, 1024), jnp.float32), jax.ShapeDtypeStruct((32,), jnp.int32)
    return _temporaries(lambda state, key, batch: learner.step(key, state, batch), state, KEY, batch)


@each_law
def test_weight_perturbation_holds_one_gradient(name):
    """At most 1.15 parameters of temporaries, one of them the gradient, whatever the optimizer and K."""
    assert _learned(lambda estimator: nl.learner(estimator, optax.sgd(0.1)), 8, directions=SAMPLERS[name]) < 1.15


@pytest.mark.parametrize("samples", [1, 100])
def test_memory_does_not_grow_with_the_samples(samples, lenient):
    both_sides = nl.baselines.antithetic()
    assert _learned(lambda estimator: nl.learner(estimator, optax.adam(0.1)), samples, baseline=both_sides) < 1.15
    kept = lambda key, index, template: formed_law(key, index, template)
    if samples > 1:  # a sampler that gives arrays is held
        assert _learned(lambda e: nl.learner(e, optax.sgd(0.1)), samples, directions=kept) > 2


@pytest.mark.parametrize("name", ["rademacher", "rank_one"])
@pytest.mark.parametrize("units_looked_up", [False, True], ids=["rows", "units"])
def test_a_table_that_is_looked_up_and_multiplied_by_is_not_held(name, units_looked_up):
    """An embedding tied to the output, 64 MB: temporaries are a small part of it, on both sides at once."""
    shape = (512, 32768) if units_looked_up else (32768, 512)

    def objective(table, ids):
        by_token, by_feature = (table.T, table) if units_looked_up else (table, table.T)
        return jnp.mean((jnp.tanh(by_token[ids]) @ by_feature)[..., 0], axis=1)

    estimator = nl.weight_perturbation(objective, baseline=nl.baselines.antithetic(), directions=SAMPLERS[name])
    learner, table = nl.seeded(estimator, 0.1), jax.ShapeDtypeStruct(shape, jnp.float32)
    state = jax.eval_shape(learner.init, KEY, table)
    step = lambda state, key, ids: learner.step(key, state, ids)
    compiled = jax.jit(step, donate_argnums=0).lower(state, KEY, jax.ShapeDtypeStruct((2, 1), jnp.int32)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.15 * 4 * table.size


def formed_law(key, index, template):
    return jax.tree.map(
        lambda leaf: jax.random.normal(jax.random.fold_in(key, index), leaf.shape, leaf.dtype), template
    )


def test_directions_are_those_of_the_estimate():
    """What a training log draws is what the estimate was made of."""
    params = {"a": jnp.zeros((3, 5)), "b": jnp.zeros(4)}
    sampler = nl.directions.rank_one()
    directions = Directions.of(sampler, params, [False, True])
    assert directions == Directions.of(sampler, jax.tree.map(jnp.ones_like, params), [False, True])
    drawn = directions.draw(KEY, jnp.int32(1))
    expected = sampler(KEY, jnp.int32(1), {"a": jnp.zeros(15), "b": jnp.zeros(4)})
    np.testing.assert_array_equal(drawn["a"], expected["a"].reshape(3, 5))
    np.testing.assert_array_equal(drawn["b"], expected["b"])
