"""Lazy weights for weights, and how an objective's use of its parameters is found out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nl_jax as nl
from nl_jax._core.paths import path_name
from nl_jax._core.products import OtherUse, Shifted, product, unfold, use
from tests import problems

KEYS = jax.random.split(jax.random.key(0), 3)
X = jax.random.normal(KEYS[0], (5, 3))
W, SHIFT = (jax.random.normal(key, (3, 4)) for key in KEYS[1:])


def named(problem, flags):
    paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(problem.params)]
    return {path for path, flag in zip(paths, flags, strict=True) if flag}


def test_a_shifted_weight_multiplies_as_its_sum():
    stand_in = Shifted(W, SHIFT, 0.5)
    total = W + 0.5 * SHIFT
    np.testing.assert_allclose(X @ stand_in, X @ total, rtol=1e-5)
    np.testing.assert_allclose(np.asarray(X) @ stand_in, X @ total, rtol=1e-5)
    np.testing.assert_allclose((X @ W) @ stand_in.T, (X @ W) @ total.T, rtol=1e-5)
    np.testing.assert_allclose(product(jnp.matmul, X, stand_in), X @ total, rtol=1e-5)
    ids = jnp.array([[2, 0], [1, 1]])
    np.testing.assert_allclose(stand_in[ids], total[ids], rtol=1e-5)
    np.testing.assert_allclose(stand_in.T[ids], total.T[ids], rtol=1e-5)
    assert (X.astype(jnp.bfloat16) @ stand_in.astype(jnp.bfloat16)).dtype == jnp.bfloat16
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

    params = {"a": jnp.ones((5, 5)), "b": jnp.ones((5, 5))}
    found = use(objective, params, jnp.ones((5, 5)))
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

    use(objective, [jnp.eye(3)] * layers, X)
    assert len(runs) == traces


@pytest.mark.usefixtures("lenient")
def test_any_function_will_do():
    """A jitted forward function hides its products: no weight is found, and nothing breaks."""
    network = nl.mlp([3, 4, 2], activation=nl.activations.tanh())
    forward = jax.jit(lambda params, x: network.apply(params, x))
    objective = nl.supervised(forward, nl.losses.cross_entropy)
    params, batch = network.init(jax.random.key(0)), (X, jnp.zeros(5, int))
    assert not any(use(objective, params, batch).multiplied)
    estimator = nl.weight_perturbation(objective, directions=nl.directions.rank_one(), num_samples=4)
    grads = estimator.estimate(jax.random.key(1), (), params, batch)[0]
    assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, params)


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
    W, x = jax.random.normal(KEYS[1], weight), jax.random.normal(KEYS[0], x)
    nu = connection({"weight": W}, x) - connection({"weight": jnp.zeros_like(W)}, x)
    (unfolded,) = unfold(connection, {"weight": W}, x)
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
        unfold(connection, {"weight": jnp.eye(3)}, X)
