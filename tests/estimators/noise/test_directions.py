"""Every sampler of directions: its moments, its variance, what it costs, and where it is exact."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nl_jax as nl
from nl_jax.estimators.noise.directions import Structured
from nl_jax.estimators.noise.directions.bits import words
from nl_jax.estimators.noise.engine.sampled_gradient import SampledGradient
from nl_jax.estimators.noise.spaces import Noise
from nl_jax.theory import perturbation as theory
from tests import problems
from tests.estimators.noise.test_unbiased import estimates, exact, largest_deviation
from tests.formed import formed

pytestmark = pytest.mark.slow

KEY = jax.random.key(1)
d = nl.directions
SAMPLERS = {
    "gaussian": d.gaussian(),
    "rademacher": d.rademacher(),
    "sparse": d.sparse(0.25),
    "sphere": d.sphere(),
    "coordinate": d.coordinate(),
    "orthogonal": d.orthogonal(),
    "rank_one": d.rank_one(),
    "low_rank": d.low_rank(3),
    "flipout": d.flipout(),
}
STRUCTURED = ("rank_one", "low_rank", "flipout")
each_law = pytest.mark.parametrize("name", SAMPLERS)
FLOATS = (jnp.float32, jnp.float64, jnp.bfloat16)


def shaped(*shape, dtype=None):
    """The shape of an array in the default precision, where no array is needed."""
    return jax.ShapeDtypeStruct(shape, dtype or jnp.result_type(float))


def of_one(direction, examples=1):
    """A direction as arrays, for the last of some examples."""
    return jax.tree.map(lambda xi: xi[-1], formed(direction, examples))


def vectors(sampler, template, count, key=KEY) -> np.ndarray:
    """Independent draws as vectors in float64, [count, P]."""
    draw = lambda number: of_one(sampler(jax.random.fold_in(key, number), 0, template), 2)
    draws = jax.jit(jax.vmap(draw))(np.arange(count, dtype=np.uint32))
    leaves = [np.asarray(x, np.float64).reshape(count, -1) for x in jax.tree.leaves(draws)]
    return np.concatenate(leaves, axis=1)


@each_law
def test_directions_have_the_parameters_shapes_and_dtypes(name, x64):
    template = [{"vector": shaped(3, dtype=dtype), "weight": shaped(2, 3, dtype=dtype)} for dtype in FLOATS]
    assert jax.eval_shape(lambda: of_one(SAMPLERS[name](KEY, 0, template))) == template


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, FLOATS[i % 3]) for i, name in enumerate(SAMPLERS)), ("gaussian", jnp.bfloat16), ("flipout", jnp.float32)],
)
def test_unit_covariance(name, dtype, x64):
    template = {"a": shaped(3, dtype=dtype), "b": {"c": shaped(2, 3, dtype=dtype)}}
    flat = vectors(SAMPLERS[name], template, 20_000)

    def deviation(flat):
        outer = flat[:, :, None] * flat[:, None, :]
        rounding = float(jnp.finfo(dtype).eps)  # of factors such as √P; squared signs do not vary at all
        error = np.maximum(outer.std(axis=0), 1e-3) / len(flat) ** 0.5 + rounding * np.abs(outer).mean(axis=0)
        means = np.abs(flat.mean(axis=0)) / (flat.std(axis=0) / len(flat) ** 0.5)
        return max(np.max(np.abs(outer.mean(axis=0) - np.eye(9)) / error), np.max(means))

    assert deviation(flat) < 5
    assert deviation(1.1 * flat) > 5


N, M, UNITS = 3, 4, 5  # examples, inputs, units of the linear problem
P = M * UNITS + UNITS
X, V, C = (np.random.default_rng(1).normal(size=(3, N, UNITS))[i][:, :size] for i, size in enumerate((M, UNITS, UNITS)))


PARAMS, BATCH = {"W": np.zeros((M, UNITS)), "b": np.zeros(UNITS)}, (X, V, C)
GRADIENT = np.concatenate([(X.T @ V).ravel(), C.sum(axis=0)]) / N


def linear(params, batch):
    """Losses ⟨v_n, x_n W⟩ + ⟨c_n, b⟩: exact at any step, with gradients x_n v_nᵀ and c_n of example n."""
    x, v, c = batch
    return jnp.sum(v * (x @ params["W"]), axis=1) + c @ params["b"]


def variance_law(name: str, K: int) -> float:
    """E‖ĝ − g‖²/‖g‖² by theory."""
    weights, others = (jnp.asarray(g).reshape(N, -1) for g in (np.einsum("ni,no->nio", X, V), C))
    part, rest = (jnp.sum(jnp.mean(g, axis=0) ** 2) for g in (weights, others))
    second_moment = {
        "gaussian": theory.independent(P, kurtosis=3),
        "sparse": theory.independent(P, kurtosis=1 / 0.25),
        "low_rank": theory.low_rank(P, 3, weights=float(part / (part + rest))),
        "flipout": float(theory.flipout(weights, others)),
    }.get(name, P)
    return theory.relative_variance(second_moment, K, order={"orthogonal": 32, "coordinate": P}.get(name))


@pytest.fixture(scope="module")
def keys():
    with jax.enable_x64(True):
        return jax.random.split(jax.random.key(2), 5_000)


@pytest.mark.parametrize(("name", "K"), [*((name, 4) for name in SAMPLERS), ("gaussian", 1)])
def test_variance_law(name, K, keys, x64):
    estimator = nl.weight_perturbation(linear, num_samples=K, directions=SAMPLERS[name])
    samples, g = estimates(estimator, PARAMS, BATCH, keys), GRADIENT
    assert largest_deviation(samples, g) < 5
    squares = ((samples - g) ** 2).sum(axis=1) / (g**2).sum()
    error = squares.std(ddof=1) / len(squares) ** 0.5 + 1e-9  # of one sample of fixed length, nothing varies
    assert abs(squares.mean() - variance_law(name, K)) < 5 * error
    assert abs(squares.mean() - variance_law(name, K + 1)) > 5 * error


def _relative_error(make, problem, g, samples, name):
    settings = {"num_samples": samples, "chunk": samples, "directions": SAMPLERS[name]}
    estimator = make(problem.objective, baseline=nl.baselines.antithetic(), **settings)
    grads = jax.jit(estimator.estimate)(KEY, (), problem.params, problem.batch)[0]
    return np.linalg.norm(np.concatenate([np.ravel(x) for x in jax.tree.leaves(grads)]) - g) / np.linalg.norm(g)


@pytest.mark.parametrize(("name", "order"), [("orthogonal", 32), ("coordinate", P)])
def test_exact_at_full_order(name, order, x64):
    """At K = n the gradient itself, at 2 n again, and at n − 1 not yet."""
    problem = problems.Problem(linear, PARAMS, BATCH, None)
    off = {
        K: _relative_error(nl.weight_perturbation, problem, GRADIENT, K, name) for K in (order, 2 * order, order - 1)
    }
    assert off[order] < 1e-6
    assert off[2 * order] < 1e-6
    assert off[order - 1] > 1e-2


def test_exact_at_full_order_in_the_nodes_of_one_example(x64):
    problem = problems.chain()
    g = exact(problem.objective, problem.params, problem.batch)
    assert _relative_error(nl.node_perturbation, problem, g, 8, "orthogonal") < 1e-6
    assert _relative_error(nl.node_perturbation, problem, g, 7, "orthogonal") > 1e-2


def _rows(count, components):
    draw = lambda k: SAMPLERS["orthogonal"](KEY, k, shaped(components))
    return np.asarray(jax.jit(jax.vmap(draw))(np.arange(count, dtype=np.uint32)))


def test_orthogonal_rows_are_orthogonal_and_change_with_the_key(x64):
    template = shaped(50)
    rows = _rows(64, 64)
    np.testing.assert_array_equal(rows @ rows.T, 64 * np.eye(64))
    first, second = (vectors(SAMPLERS["orthogonal"], template, 2, jax.random.key(k)) for k in (0, 1))
    assert not np.allclose(first, second)


def test_beyond_the_order_another_matrix_follows():
    """Rows 8 … 15 of order 8 are no rows of the first matrix, nor their negatives."""
    blocks = _rows(16, 8).reshape(2, 8, 8)
    np.testing.assert_array_equal(blocks[1] @ blocks[1].T, 8 * np.eye(8))
    assert np.max(np.abs(blocks[0] @ blocks[1].T)) < 8


def test_the_sphere_has_one_radius(x64):
    lengths = np.linalg.norm(vectors(SAMPLERS["sphere"], shaped(50), 20), axis=1)
    np.testing.assert_allclose(lengths, 50**0.5, rtol=1e-12)


def _degree(polynomial: int) -> int:
    return polynomial.bit_length() - 1


def _remainder(a: int, b: int) -> int:
    while a and _degree(a) >= _degree(b):
        a ^= b << (_degree(a) - _degree(b))
    return a


def _product(a: int, b: int, modulus: int) -> int:
    total = 0
    for power in range(b.bit_length()):
        total ^= (a << power) * (b >> power & 1)
    return _remainder(total, modulus)


def test_the_polynomials_are_irreducible():
    """Rabin's test: x^(2^n) = x modulo the polynomial, and x^(2^(n/q)) − x has no factor in common with it."""
    terms = sys.modules["nl_jax.estimators.noise.directions.orthogonal"]._LOWER_TERMS
    assert len(terms) == 31

    def frobenius(times, polynomial):
        value = 0b10
        for _ in range(times):
            value = _product(value, value, polynomial)
        return value

    for degree, lower in enumerate(terms, start=1):
        polynomial = 1 << degree | lower
        assert frobenius(degree, polynomial) == _remainder(0b10, polynomial)
        for prime in (q for q in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31) if degree % q == 0 and degree > 1):
            a, b = polynomial, frobenius(degree // prime, polynomial) ^ 0b10
            while b:
                a, b = b, _remainder(a, b)
            assert a == 1, degree


def _displaced(problem, sampler, sigma):
    """Losses along a direction, and the direction itself."""
    view = nl.spaces.weights(problem.objective)(problem.params, problem.batch, Noise(sampler, KEY))
    direction = view.draw(jnp.int32(0))
    return view, direction, view.displaced(direction, sigma)


@pytest.mark.parametrize(
    ("name", "problem"),  # rank_one is low_rank(1)
    [("rank_one", name) for name in ("one_layer", "closed_over")]
    + [("low_rank", name) for name in ("skip", "convolution")]
    + [("flipout", name) for name in ("chain", "skip", "convolution", "tied")],
)
def test_structured_equals_formed(name, problem, x64):
    """Losses, rates of change and credit are those of the arrays a direction stands for, example by example."""
    problem = problems.PROBLEMS[problem]()
    examples = len(jax.tree.leaves(problem.batch)[0])
    change = np.random.default_rng(1).normal(size=(1, examples))

    def loss(sigma, xi, n):
        moved = jax.tree.map(lambda w, xi: w + sigma * xi, problem.params, xi)
        return problem.objective(moved, problem.batch)[n]

    @jax.jit
    def both():
        view, direction, losses = _displaced(problem, SAMPLERS[name], 0.3)
        of_each, n = formed(direction, examples), jnp.arange(examples)
        one_by_one = jax.vmap(loss, in_axes=(None, 0, 0))(0.3, of_each, n)
        rates = jax.vmap(jax.grad(loss), in_axes=(None, 0, 0))(0.0, of_each, n)
        found = losses, view.tangent()[1](direction)
        return (
            found,
            (one_by_one, rates),
            SampledGradient(KEY, jnp.asarray(change), view.directions).formed(problem.params),
            of_each,
        )

    (losses, along), (one_by_one, rates), credit, of_each = both()
    np.testing.assert_allclose(losses, one_by_one, rtol=1e-10)
    np.testing.assert_allclose(along, rates, rtol=1e-8, atol=1e-12)
    for got, xi in zip(jax.tree.leaves(credit), jax.tree.leaves(of_each), strict=True):
        np.testing.assert_allclose(got, np.tensordot(change[0], xi, axes=1) / examples, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", STRUCTURED)
def test_what_is_no_weight_gets_dense_noise(name):
    """Biases and scales, a weight that is squared, a table whose looked-up rows are reversed; not one looked up."""

    def objective(params, batch):
        x, ids = batch
        hidden = jnp.tanh(x @ params["weight"] + params["bias"]) * params["scale"]
        return jnp.sum(hidden @ params["squared"] ** 2 + params["table"][ids] + params["mirrored"][::-1][ids], axis=1)

    params = {"weight": shaped(3, 4), "bias": shaped(1, 4), "scale": shaped(1, 1)}
    params |= {"squared": shaped(4, 2), "table": shaped(7, 2), "mirrored": shaped(7, 2)}
    batch = shaped(6, 3), shaped(6, dtype=int)
    draw = lambda p, b: nl.spaces.weights(objective)(p, b, Noise(SAMPLERS[name], KEY)).draw(jnp.int32(0))
    direction = jax.eval_shape(draw, params, batch)
    assert {leaf for leaf, xi in direction.items() if isinstance(xi, Structured)} == {"weight", "table"}
    assert direction["mirrored"].shape == (7, 2)
    estimator = nl.weight_perturbation(objective, directions=SAMPLERS[name])
    assert jax.eval_shape(estimator.estimate, KEY, (), params, batch)[0] == params


def test_nodes_are_no_weights():
    """A structured sampler has nothing to hold on to in node space: independent signs, of images too."""
    problem = problems.convolution()
    view = nl.spaces.nodes(problem.objective)
    direction = jax.jit(lambda: view(problem.params, problem.batch, Noise(d.rank_one(), KEY)).draw(0))()
    for xi in direction.values():
        assert set(np.unique(xi)) == {-1.0, 1.0}


@pytest.mark.parametrize("name", ["rademacher", "low_rank", "flipout"])  # arrays, structures, own signs
def test_chunk_invariance(name, x64):
    problem = problems.chain()

    @functools.partial(jax.jit, static_argnums=0)
    def grads(chunk):
        estimator = nl.weight_perturbation(problem.objective, num_samples=7, directions=SAMPLERS[name], chunk=chunk)
        return estimator.estimate(KEY, (), problem.params, problem.batch)[0]

    for a, b in zip(jax.tree.leaves(grads(1)), jax.tree.leaves(grads(3)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-8)


CLEAN, TANGENT = nl.baselines.clean(), nl.baselines.tangent()


@pytest.mark.parametrize(
    ("name", "baseline", "dtype"),
    [(name, CLEAN, jnp.bfloat16) for name in ("gaussian", "coordinate", "orthogonal", "low_rank", "flipout")]
    + [("sphere", CLEAN, jnp.float32), ("rademacher", CLEAN, jnp.float32), ("sparse", CLEAN, jnp.float64)]
    + [("rank_one", TANGENT, jnp.float32), ("flipout", TANGENT, jnp.bfloat16)],
    ids=lambda value: {id(CLEAN): "clean", id(TANGENT): "tangent"}.get(id(value)),
)
def test_every_dtype_learns(name, baseline, dtype, x64):
    """With default steps, in parameters' own dtype, the estimate points where the gradient does."""
    problem = problems.convolution()
    params, inputs = jax.tree.map(lambda w: np.asarray(w).astype(dtype), (problem.params, problem.batch[0]))
    batch = inputs, problem.batch[1]
    estimator = nl.weight_perturbation(
        problem.objective, num_samples=256, directions=SAMPLERS[name], baseline=baseline, chunk=64
    )
    grads = jax.jit(estimator.estimate)(KEY, (), params, batch)[0]
    assert jax.tree.map(lambda g: g.dtype, grads) == jax.tree.map(lambda w: w.dtype, params)
    g = exact(problem.objective, problem.params, problem.batch)
    wide = np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(grads)])
    assert wide @ g / (np.linalg.norm(wide) * np.linalg.norm(g)) > 0.4  # 1/√(1 + P/K) is 0.85; in coordinates, less


def test_rank_one_never_forms_a_weight():
    """Its samples share the products with W: a fraction of the multiplications, no array of all weights."""
    network = nl.mlp([96, 64, 64, 10], activation=nl.activations.tanh())
    objective = nl.supervised(network.apply, nl.losses.cross_entropy)
    params, batch = jax.eval_shape(network.init, KEY), (shaped(16, 96), shaped(16, dtype=jnp.int32))

    def compiled(sampler):
        estimator = nl.weight_perturbation(objective, num_samples=32, chunk=32, directions=sampler)
        return jax.jit(lambda p, b: estimator.estimate(KEY, (), p, b)[0]).lower(params, batch).compile()

    structured, dense = compiled(d.rank_one()), compiled(d.rademacher())
    assert structured.cost_analysis()["flops"] < 0.6 * dense.cost_analysis()["flops"]
    assert "f32[32,96,64]" in dense.as_text()
    assert "f32[32,96,64]" not in structured.as_text()


def test_memory_is_the_forward_pass_and_two_and_a_half_copies():
    network = nl.mlp([256, 256, 256, 10], activation=nl.activations.tanh())
    objective = nl.supervised(network.apply, nl.losses.cross_entropy)
    params, batch = jax.eval_shape(network.init, KEY), (shaped(32, 256), shaped(32, dtype=jnp.int32))
    estimator = nl.weight_perturbation(objective, num_samples=32, chunk=1, directions=d.rademacher())

    def temporary_bytes(function):
        return jax.jit(function).lower(params, batch).compile().memory_analysis().temp_size_in_bytes

    copies = sum(4 * leaf.size for leaf in jax.tree.leaves(params))
    forward = temporary_bytes(lambda p, b: jnp.mean(objective(p, b)))
    assert temporary_bytes(lambda p, b: estimator.estimate(KEY, (), p, b)[0]) <= forward + 2.5 * copies


@pytest.mark.parametrize(
    ("name", "problem"),  # only arrays share products of the data
    [
        ("rademacher", "chain"),
        ("rademacher", "skip"),
        ("rademacher", "tied"),
        ("rank_one", "skip"),
        ("flipout", "tied"),
    ],
)
def test_both_sides_are_two_steps(name, problem, x64):
    """Products of the data are shared between a step forth and a step back; the losses are the same."""

    @jax.jit
    def sides():
        view, direction, above = _displaced(problems.PROBLEMS[problem](), SAMPLERS[name], 0.3)
        return view.both_sides(direction, 0.3), (above, view.displaced(direction, -0.3))

    np.testing.assert_allclose(*sides(), rtol=1e-12)


def test_both_sides_share_the_products_of_the_data():
    network = nl.mlp([256, 16, 4], activation=nl.activations.tanh())
    objective = nl.supervised(network.apply, nl.losses.cross_entropy)
    params, batch = jax.eval_shape(network.init, KEY), (shaped(64, 256), shaped(64, dtype=jnp.int32))
    view = nl.spaces.weights(objective)
    directions = jax.tree.map(lambda w: shaped(8, *w.shape), params)

    def flops(sides):
        samples = jax.jit(lambda p, b, xis: jax.vmap(lambda xi: sides(view(p, b, Noise(d.rademacher(), KEY)), xi))(xis))
        return samples.lower(params, batch, directions).compile().cost_analysis()["flops"]

    # Nine products with the data, x W and each x ξ; apart, sixteen.
    shared = flops(lambda view, xi: view.both_sides(xi, 0.1))
    apart = flops(lambda view, xi: (view.displaced(xi, 0.1), view.displaced(xi, -0.1)))
    assert shared < 0.65 * apart


BAD = [
    (lambda: d.sparse(0), "density must be a finite Python number above 0, got 0"),
    (lambda: d.sparse(1.5), "density must be at most 1, the chance of a component to be displaced; got 1.5"),
    (lambda: d.low_rank(0), "rank must be a whole number of at least 1, got 0"),
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=["no density", "density above 1", "no rank"])
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def _slopes(objective, params, batch, sampler):
    """⟨mean ĝ, g⟩/‖g‖², with its standard error."""
    estimator = nl.forward_gradient(objective, directions=sampler, num_samples=64, chunk=64)
    samples, g = estimates(estimator, params, batch, jax.random.split(KEY, 200)), exact(objective, params, batch)
    slopes = samples @ g / (g @ g)
    return slopes.mean(), slopes.std(ddof=1) / len(slopes) ** 0.5


def per_token(params, batch):
    return jnp.sum(jnp.tanh(batch @ params["w"]) ** 2, axis=-1).reshape(-1)


def whole_batch(params, batch):
    return jnp.mean(jnp.tanh(batch @ params["w"]) ** 2)[None]


def flattened(params, batch):
    tokens = jnp.tanh(batch.reshape(-1, batch.shape[-1]) @ params["w"])
    return jnp.sum(tokens.reshape(batch.shape[0], -1) ** 2, axis=1)


def four_copies(params, batch):
    """Interacting examples, and a batch size written down."""
    return jnp.full(4, jnp.mean(jnp.tanh(batch @ params["w"]) ** 2))


@pytest.mark.parametrize(
    ("name", "objective"),
    [("flipout", objective) for objective in (per_token, whole_batch, flattened, four_copies)]
    + [("rank_one", objective) for objective in (per_token, four_copies)],
)
def test_rows_that_are_no_examples(objective, name, x64):
    """Where a product's rows are not the losses' examples, flipout has nothing to flip: shared noise, and no bias."""
    rng = np.random.default_rng(5)
    params, batch = {"w": rng.normal(size=(3, 2))}, rng.normal(size=(4, 5, 3))
    slope, error = _slopes(objective, params, batch, SAMPLERS[name])
    assert abs(slope - 1) < 5 * error
    assert abs(1.5 * slope - 1) > 5 * error


def test_a_table_that_is_no_batch(x64):
    """A leaf of the batch that is shared by all examples: its products are no examples' either."""

    def objective(params, batch):
        x, table = batch
        return jnp.sum((x @ params["w"]) @ (table @ params["q"]).T, axis=1)

    rng = np.random.default_rng(5)
    params = {"w": rng.normal(size=(3, 2)), "q": rng.normal(size=(4, 2))}
    batch = rng.normal(size=(6, 3)), rng.normal(size=(9, 4))
    slope, error = _slopes(objective, params, batch, SAMPLERS["flipout"])
    assert abs(slope - 1) < 5 * error


@pytest.mark.parametrize("generator", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_signs_of_any_generator_are_independent(generator):
    keys = jax.random.split(jax.random.key(0, impl=generator), 2000)
    draw = lambda key: SAMPLERS["rademacher"](key, 0, shaped(128))
    draws = np.asarray(jax.jit(jax.vmap(draw))(keys), float)
    assert np.max(np.abs(draws.T @ draws / 2000 - np.eye(128))) < 5.5 / 2000**0.5


def test_how_many_words_are_drawn_does_not_change_them():
    """Rows of 17 to 30 words are drawn as 32, which XLA's CPU code does faster."""
    drawn = {count: np.asarray(words(KEY, count)) for count in (16, 17, 24, 30, 31, 64)}
    for count, some in drawn.items():
        np.testing.assert_array_equal(some, drawn[64][:count])


def test_objectives_that_dislike_stand_ins_still_work():
    """What an objective asserts of parameters and batch, or calls out for, costs the structure and nothing else."""

    def simulated(params, batch):
        assert batch.shape == (6, 4)
        assert isinstance(params["w"], jax.Array)
        y = jnp.tanh(batch @ params["w"])
        return jax.pure_callback(lambda y: np.asarray(y).sum(axis=1), jax.ShapeDtypeStruct((6,), jnp.float32), y)

    params, batch = {"w": jnp.ones((4, 3))}, jnp.ones((6, 4))
    for sampler in (SAMPLERS["rademacher"], SAMPLERS["rank_one"]):
        estimator = nl.weight_perturbation(simulated, directions=sampler, baseline=nl.baselines.antithetic(), chunk=1)
        assert np.isfinite(jax.jit(estimator.estimate)(KEY, (), params, batch)[0]["w"]).all()
