"""Lazy weights for weights, and how an objective's use of its parameters is found out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nl_jax as nl
from nl_jax._core.paths import path_name
from nl_jax._core.products import OtherUse, Shifted, product, unfold, use
from tests import problems

RNG = np.random.default_rng(0)
X, W, SHIFT = (jnp.asarray(RNG.normal(size=shape), jnp.float32) for shape in ((5, 3), (3, 4), (3, 4)))


def named(problem, flags):
    paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(problem.params)]
    return {path for path, flag in zip(paths, flags, strict=True) if flag}


def test_a_shifted_weight_multiplies_as_its_sum():
    ids = np.array([[2, 0], [1, 1]])

    @jax.jit
    def uses(x, w, shift):
        stand_in = Shifted(w, shift, 0.5)
        of_x = x @ stand_in, np.asarray(X) @ stand_in, product(jnp.matmul, x, stand_in)
        return of_x, (x @ w) @ stand_in.T, stand_in[ids], stand_in.T[ids]

    of_x, transposed, rows, units = uses(X, W, SHIFT)
    total = np.asarray(W) + 0.5 * np.asarray(SHIFT)
    for found in of_x:
        np.testing.assert_allclose(found, np.asarray(X) @ total, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(transposed, np.asarray(X) @ W @ total.T, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(rows, total[ids], rtol=1e-5)
    np.testing.assert_allclose(units, total.T[ids], rtol=1e-5)
    stand_in = Shifted(W, SHIFT, 0.5)
    half = jax.eval_shape(lambda x: x.astype(jnp.bfloat16) @ stand_in.astype(jnp.bfloat16), X)
    assert half.dtype == jnp.bfloat16
    assert (stand_in.shape, stand_in.ndim, stand_in.size, stand_in.dtype) == ((3, 4), 2, 12, jnp.float32)


@pytest.mark.parametrize(
    "other_use",
    [
        lambda w: w**2,
        lambda w: w + 1.0,
        lambda w: 2.0 * w,
        lambda w: w[0],
        lambda w: w[:, X],
        lambda w: -w,
        lambda w: w @ X.T,
        list,
    ],
    ids=["power", "sum", "product", "item", "columns", "negation", "left factor", "iteration"],
)
def test_a_stand_in_answers_products_alone(other_use):
    with pytest.raises(OtherUse):
        other_use(Shifted(W, SHIFT, 0.5))


def test_a_stand_in_is_no_tree_and_no_array():
    """Neither a sum over all leaves nor a function of arrays may take it for its parts."""
    assert jax.tree.leaves({"w": Shifted(W, SHIFT, 0.5)})[0].__class__ is Shifted
    with pytest.raises(TypeError):
        jnp.sum(Shifted(W, SHIFT, 0.5))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("problem", "multiplied", "reads_data", "values"),
    [
        (problems.chain, {"hidden1/weight", "output/weight"}, {"hidden1/weight"}, 8),
        (problems.convolution, {"features/weight", "output/weight"}, {"features/weight"}, 51),
        (problems.tied, {"shared/weight", "mix/weight"}, set(), 3 + 3 + 4),
        (problems.closed_over, {"hidden", "output"}, {"hidden"}, 8),
        (
            problems.skip,
            {"low/weight", "high/weight", "output/high/weight", "output/low/weight", "output/input/weight"},
            {"low/weight", "output/input/weight"},
            5 + 4 + 9,
        ),
    ],
    ids=["chain", "convolution", "tied", "closed_over", "skip"],
)
def test_how_parameters_are_used(problem, multiplied, reads_data, values):
    problem = problem()
    found = use(problem.objective, problem.params, problem.batch)
    assert named(problem, found.multiplied) == multiplied
    assert named(problem, found.reads_data) == reads_data
    assert found.values == values


def test_a_product_that_is_not_over_the_batch_is_none():
    """W₁ W₂ multiplies a weight by a weight: neither is one of inputs, whatever their sizes."""

    def objective(params, batch):
        return jnp.sum(batch @ (params["a"] @ params["b"]), axis=1)

    ones = np.ones((5, 5), np.float32)
    found = use(objective, {"a": ones, "b": ones}, ones)
    assert (found.multiplied, found.values) == ([False, False], 0)


@pytest.mark.parametrize(("layers", "traces"), [(10, 13), (40, 2)])
def test_many_weights_are_not_tried_one_by_one(layers, traces):
    """Each attempt is a trace of the objective: where all together fail, many weights are taken for none."""
    runs = []

    def objective(params, batch):
        runs.append(0)
        for weight in params:
            batch = jnp.einsum("bi,ij->bj", batch, weight)
        return jnp.sum(batch, axis=1)

    use(objective, [np.eye(3, dtype=np.float32)] * layers, X)
    assert len(runs) == traces


@pytest.mark.usefixtures("lenient")
def test_any_function_will_do():
    """A jitted forward function hides its products: no weight is found, and nothing breaks."""
    network = nl.mlp([3, 4, 2], activation=nl.activations.tanh())
    forward = jax.jit(lambda params, x: network.apply(params, x))
    objective = nl.supervised(forward, nl.losses.cross_entropy)
    params, batch = jax.eval_shape(network.init, jax.random.key(0)), (X, np.zeros(5, np.int32))
    assert not any(use(objective, params, batch).multiplied)
    estimator = nl.weight_perturbation(objective, directions=nl.directions.rank_one(), num_samples=4)
    assert jax.eval_shape(estimator.estimate, jax.random.key(1), (), params, batch)[0] == params


CONV = nl.connections.conv((2, 3), channels=2, stride=2, padding="SAME", bias=False).join((5, 4, 3), None).apply


def locally_connected(params, x):
    """Every position has a weight of its own, [positions, inputs, units]."""
    return product(lambda x, w: jnp.einsum("bpi,pio->bpo", x, w), x, params["weight"])


@pytest.mark.parametrize(
    ("connection", "weight", "x"),
    [
        (lambda params, x: x @ params["weight"] + 1, (3, 2), (4, 3)),
        (lambda params, x: x @ params["weight"].astype(jnp.float32), (3, 2), (4, 5, 3)),
        (CONV, (2, 3, 3, 2), (4, 5, 4, 3)),
        (locally_connected, (5, 3, 2), (4, 5, 3)),
    ],
    ids=["matrix", "positions", "convolution", "locally connected"],
)
def test_an_unfolded_connection_is_a_product_of_matrices(connection, weight, x):
    W, x = (RNG.normal(size=shape).astype(np.float32) for shape in (weight, x))

    @jax.jit
    def run(W, x):
        nu = connection({"weight": W}, x) - connection({"weight": jnp.zeros_like(W)}, x)
        return nu, unfold(connection, {"weight": W}, x)

    nu, (unfolded,) = jax.tree.map(np.asarray, run(W, x))
    np.testing.assert_allclose(unfolded @ W.reshape(-1, 2), nu.reshape(-1, 2), rtol=1e-4, atol=1e-5)
    # Inputs are passed on as they are: where there are several of one, as a selection of them.
    assert set(np.ravel(unfolded).tolist()) <= {0.0, *np.ravel(x).tolist()}


@pytest.mark.parametrize(
    ("connection", "message"),
    [
        (lambda params, x: x @ params["weight"].T, "transposed"),
        (lambda params, x: x @ params["weight"] @ params["weight"], "2 products"),
        (lambda params, x: x, "0 products"),
    ],
)
def test_only_a_single_product_is_unfolded(connection, message):
    with pytest.raises(OtherUse, match=message):
        jax.eval_shape(lambda w, x: unfold(connection, {"weight": w}, x), np.eye(3, dtype=np.float32), X)
