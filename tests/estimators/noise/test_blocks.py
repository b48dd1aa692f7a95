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

pytestmark = pytest.mark.slow

KEY = jax.random.key(3)


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
    rng = np.random.default_rng(3)
    params = {name: 0.5 * rng.normal(size=shape) for name, shape in shapes.items()}
    return params, (rng.normal(size=(6, 3)), np.array([0, 3, 6, 1, 1, 2]))


# One law of each kind that draws blocks: rademacher and sparse share their code with gaussian, rank_one with low_rank.
IN_BLOCKS = ("gaussian", "sphere", "coordinate", "orthogonal", "low_rank", "flipout")
# A use of a weight sees of the law a block's number (rademacher) and its start (coordinate); low_rank and flipout are
# used in their own ways. K: the coordinates of all parameters, so that each of them has a coordinate displaced.
IN_ALL_USES = {"rademacher": 3, "coordinate": 193, "low_rank": 3, "flipout": 3}
CHANGE = np.arange(6.0)


@jax.jit
def _by_formed(params, batch, arrays):
    """Losses at steps of ±0.1 and 0.2, rates of change and the mean direction, from arrays [examples, …]."""

    def loss(sigma, xi, n):
        return hierarchy(jax.tree.map(lambda w, xi: w + sigma * xi, params, xi), batch)[n]

    def each(sigma):
        return jax.vmap(loss, in_axes=(None, 0, 0))(sigma, arrays, jnp.arange(6))

    losses = jax.vmap(each)(jnp.array([0.1, -0.1, 0.2]))
    rates = jax.jvp(each, (0.0,), (1.0,))[1]
    return (losses, rates), jax.tree.map(lambda xi: jnp.tensordot(CHANGE, xi, axes=1) / 6, arrays)


@pytest.mark.parametrize(("name", "K"), IN_ALL_USES.items())
def test_what_is_displaced_in_blocks_is_the_formed_direction(name, K, small_blocks, x64):
    """Losses on both sides, rates of change and the sum of directions, in all uses of a weight."""
    params, batch = _problem()
    seen = {}

    @jax.jit
    def in_blocks(params, batch, index):
        view = nl.spaces.weights(hierarchy)(params, batch, Noise(SAMPLERS[name], KEY, K))
        direction = view.draw(index)
        seen.update(direction)
        change = jnp.zeros((K, 6)).at[index].set(K * CHANGE)
        losses = jnp.stack([*view.both_sides(direction, 0.1), view.displaced(direction, 0.2)])
        found = losses, view.tangent()[1](direction)
        arrays = jax.tree.map(lambda w, xi: xi.reshape(6, *w.shape), params, formed(direction, 6))
        return (found, SampledGradient(KEY, change, view.directions).formed(params)), arrays

    for index in range(2, K, 4):
        found, arrays = in_blocks(params, batch, np.int32(index))
        expected = _by_formed(params, batch, arrays)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12), found, expected)
    if name in ("rademacher", "flipout"):  # what a layer multiplies by, in loops too, is not formed
        assert all(isinstance(getattr(seen[of], "noise", seen[of]), blocks.Blocks) for of in ("stack", "table", "tied"))


@pytest.mark.parametrize("name", IN_BLOCKS)
def test_moments_in_blocks(name, small_blocks):
    """Zero mean and unit covariance over many directions, beside a twin whose blocks repeat one another."""
    template = {"a": jax.ShapeDtypeStruct((3,), np.float32), "b": jax.ShapeDtypeStruct((2, 7), np.float32)}
    draw = drawing(SAMPLERS[name])

    @jax.jit
    @jax.vmap
    def vectors(number):
        arrays = formed(draw(jax.random.fold_in(KEY, number), jnp.int32(0), template), 1)
        return jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(arrays)])

    flat = np.asarray(vectors(np.arange(20_000)), np.float64)

    def deviation(flat):
        outer = flat[:, :, None] * flat[:, None, :]
        error = np.maximum(outer.std(axis=0), 1e-3) / len(flat) ** 0.5
        return np.max(np.abs(outer.mean(axis=0) - np.eye(17)) / (error + 1e-6))

    assert deviation(flat) < 5
    twin = flat.copy()
    twin[:, 3:9] = twin[:, 9:15]
    assert deviation(twin) > 5


def test_a_sphere_in_blocks_has_the_spheres_length(small_blocks, x64):
    template = {"a": jax.ShapeDtypeStruct((3,), float), "b": jax.ShapeDtypeStruct((4, 7), float)}
    xi = jax.jit(jax.vmap(lambda i: nl.directions.sphere()(KEY, i, template)))(np.arange(50))
    squares = sum(np.sum(np.asarray(leaf).reshape(50, -1) ** 2, axis=1) for leaf in jax.tree.leaves(xi))
    np.testing.assert_allclose(squares, 31, rtol=1e-10)
    assert np.std(np.sum(np.asarray(xi["a"]) ** 2, axis=1)) > 0.5  # lengths of the parts vary


def test_orthogonal_directions_in_blocks_are_orthogonal(small_blocks, x64):
    """Columns are given out in words: two rows differ in half of 32 · blocks of them, of which P are used."""
    template = {"b": jax.ShapeDtypeStruct((32, 4), float)}  # blocks of one unit, a word each
    rows = jax.jit(jax.vmap(lambda i: nl.directions.orthogonal()(KEY, i, template)["b"].reshape(-1)))(np.arange(128))
    rows = np.asarray(rows)
    np.testing.assert_allclose(rows @ rows.T, 128 * np.eye(128), atol=1e-9)


def test_coordinates_in_blocks_are_each_chosen_once(small_blocks):
    template = {"a": jax.ShapeDtypeStruct((3,), np.float32), "b": jax.ShapeDtypeStruct((2, 7), np.float32)}
    sampler = nl.directions.coordinate()
    xi = jax.jit(jax.vmap(lambda i: sampler(KEY, i, template)))(np.arange(17, dtype=np.int32))
    flat = np.concatenate([np.asarray(leaf).reshape(17, -1) for leaf in (xi["a"], xi["b"])], axis=1)
    np.testing.assert_allclose(np.abs(flat).sum(axis=0), 17**0.5, rtol=1e-6)
    np.testing.assert_allclose(np.abs(flat).sum(axis=1), 17**0.5, rtol=1e-6)


def test_a_block_depends_on_its_place_alone(small_blocks, monkeypatch):
    """How many blocks are handled at once changes nothing of the noise."""
    template = {"b": jax.ShapeDtypeStruct((3, 2, 26), np.float32)}
    draw = lambda: drawing(nl.directions.gaussian())(KEY, jnp.int32(0), template)["b"]
    direction = jax.eval_shape(draw)
    assert (direction.layout.width, direction.layout.blocks, direction.layout.rest) == (
        2,
        13,
        0,
    ) or direction.layout.rest
    once = jax.jit(lambda: draw().formed())()
    monkeypatch.setattr(layout.Layout, "together", property(lambda layout: 1))
    np.testing.assert_array_equal(once, jax.jit(lambda: draw().formed())())
    assert len(np.unique(np.asarray(once))) == once.size


@pytest.mark.parametrize("shape", [(2**20,), (300, 257), (5, 40, 900), (100_000, 3)])
def test_blocks_cover_a_parameter(shape):
    made = layout.Layout.of(shape)
    assert made.width * made.whole + made.rest == made.units
    assert made.inputs * made.width <= 2**16 or made.width == 1
    assert made.slices * made.inputs * made.units == np.prod(shape)
    assert made.whole % made.together == 0


# 4.2 million parameters in one layer, 16.8 million in two. The forward pass has temporaries of 0.01 of their bytes.
DEEP, WIDE = (nl.mlp(sizes, activation=nl.activations.tanh()) for sizes in ([2048, 4096, 2048], [2048, 2048]))


def _temporaries(step, *arguments):
    compiled = jax.jit(step, donate_argnums=0).lower(*arguments).compile()
    parameters = sum(leaf.size for leaf in jax.tree.leaves(arguments[0].params)) * 4
    return compiled.memory_analysis().temp_size_in_bytes / parameters


def _learned(network, make, samples, **settings):
    objective = nl.supervised(network.apply, nl.losses.cross_entropy)
    params = jax.eval_shape(network.init, KEY)
    learner = make(nl.weight_perturbation(objective, num_samples=samples, **settings))
    state = jax.eval_shape(learner.init, KEY, params)
    batch = jax.ShapeDtypeStruct((8, 2048), jnp.float32), jax.ShapeDtypeStruct((8,), jnp.int32)
    return _temporaries(lambda state, key, batch: learner.step(key, state, batch), state, KEY, batch)


@pytest.mark.parametrize("name", ["gaussian", "coordinate", "orthogonal", "low_rank", "flipout"])
def test_weight_perturbation_holds_one_gradient(name):
    """At most 1.15 parameters of temporaries, one of them the gradient, whatever the optimizer and K."""
    assert _learned(WIDE, lambda estimator: nl.learner(estimator, optax.sgd(0.1)), 8, directions=SAMPLERS[name]) < 1.15


@pytest.mark.parametrize("samples", [1, 100])
def test_memory_does_not_grow_with_the_samples(samples, lenient):
    both_sides = nl.baselines.antithetic()
    assert _learned(DEEP, lambda estimator: nl.learner(estimator, optax.adam(0.1)), samples, baseline=both_sides) < 1.15
    if samples > 1:  # a sampler that gives arrays is held
        assert _learned(WIDE, lambda e: nl.learner(e, optax.sgd(0.1)), samples, directions=formed_law) > 2


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
    params = {"a": np.zeros((3, 5), np.float32), "b": np.zeros(4, np.float32)}
    sampler = nl.directions.rank_one()
    directions = Directions.of(sampler, params, [False, True])
    assert directions == Directions.of(sampler, jax.tree.map(np.ones_like, params), [False, True])
    flat = {"a": jax.ShapeDtypeStruct((15,), np.float32), "b": jax.ShapeDtypeStruct((4,), np.float32)}
    both = jax.jit(lambda: (directions.draw(KEY, jnp.int32(1)), sampler(KEY, jnp.int32(1), flat)))
    drawn, expected = both()
    np.testing.assert_array_equal(drawn["a"], expected["a"].reshape(3, 5))
    np.testing.assert_array_equal(drawn["b"], expected["b"])
