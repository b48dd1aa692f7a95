"""Noise in subspaces of weights: the span it finds, the sampler of its variance, its cosine, and what is left out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nl_jax as nl
from nl_jax._core.paths import path_name
from nl_jax._core.products import unfold
from nl_jax.estimators.noise.spaces import Noise
from nl_jax.estimators.noise.spaces.bases import orthonormal
from nl_jax.estimators.noise.spaces.input_span import inputs_of, sketches
from nl_jax.propagation import interpret
from nl_jax.theory import perturbation as theory
from tests import problems
from tests.deviation import largest_deviation
from tests.estimators.noise.test_unbiased import estimates, exact

pytestmark = pytest.mark.slow

KEY = jax.random.key(3)
B, M, UNITS = 3, 8, 2  # examples, inputs, units of the linear problem
X, V = (
    jnp.asarray(np.random.default_rng(1).normal(size=(B, M))),
    jnp.asarray(np.random.default_rng(2).normal(size=UNITS)),
)
LINEAR = {"W": jnp.zeros((M, UNITS)), "b": jnp.zeros(UNITS)}


def linear(params, batch, propagate=nl.propagation.feedforward):
    """Losses ⟨v, x_n W + b⟩: exact at any step, with gradients mean(x) vᵀ and v."""
    return propagate("output", lambda p, x: x @ p["W"] + p["b"][None], lambda nu: nu, params, batch) @ V.astype(
        batch.dtype
    )


def deviation(found: np.ndarray, sampler: float) -> float:
    """Of a mean from what a sampler says, in standard errors."""
    return abs(found.mean() - sampler) / (found.std(ddof=1) / len(found) ** 0.5)


def fixed(Q):
    """A basis that is given."""
    return nl.bases.Basis(lambda objective: None, lambda *_: nl.bases.Found({0: Q}, {0: 0}, None), evaluations=0)


def inputs_by_layer(problem, params, batch):
    """What every weight is multiplied with, from the layers as they are met: the mean of X Xᵀ is of this."""

    def layer(site, given):
        axons = site.axons()
        return axons, unfold(site.connection, site.params, *site.inputs)

    return interpret(problem.objective, layer)(params, batch)[1]


def of_convolution(found):
    return {(name, "weight"): found[name][0].T @ found[name][0] for name in ("features", "output")}


def of_recurrent(found):
    """[steps, rows, inputs], by name: recurrent, weight."""
    rows = [X.reshape(-1, X.shape[-1]) for X in found["time/hidden"]]
    return {("hidden", name): X.T @ X for name, X in zip(("recurrent", "weight"), rows, strict=True)}


def of_depth(found):
    low = found["blocks/low"][0]
    return {("blocks", "low", "weight"): jnp.einsum("lni,lnj->lij", low, low)}


@pytest.mark.parametrize(
    ("name", "grams"), [("convolution", of_convolution), ("recurrent", of_recurrent), ("depth", of_depth)]
)
def test_a_sketch_is_that_of_the_inputs(name, grams, x64):
    """XᵀX Ω, by the layers' own unfolded inputs: dense, of patches, summed over time, by block over depth."""
    problem = getattr(problems, name)()
    paths = [tuple(entry.key for entry in path) for path, _ in jax.tree_util.tree_leaves_with_path(problem.params)]
    leaves = jax.tree.leaves(problem.params)

    @jax.jit
    def run(params, batch):
        found = grams(inputs_by_layer(problem, params, batch))
        ranks = {paths.index(path): 2 for path in found}
        losses, sketched = sketches(problem.objective, params, batch, KEY, ranks)
        omegas = {place: jax.random.normal(jax.random.fold_in(KEY, place), _rows(leaves[place])) for place in ranks}
        return (losses, problem.objective(params, batch)), [
            (gram, sketched[place], omegas[place]) for place, gram in zip(ranks, found.values(), strict=True)
        ]

    losses, found = run(problem.params, problem.batch)
    np.testing.assert_allclose(*losses, rtol=1e-10)
    for gram, sketch, omega in jax.tree.map(np.asarray, found):
        rows = omega.reshape(*gram.shape[:-1], 2)
        np.testing.assert_allclose(sketch.reshape(rows.shape), gram @ rows, rtol=1e-9, atol=1e-12)
        assert np.abs(sketch.reshape(rows.shape) - rows).max() > 0.1  # Ω itself would not do


def _rows(weight):
    return (*weight.shape[:-1], 2)


SPANNED = {
    "chain": {"hidden1/weight": (6, 0), "output/weight": (6, 0)},
    "convolution": {"features/weight": (64, 0), "output/weight": (4, 0)},
    "tied": {"mix/weight": (6, 0)},  # the shared weight is transposed as well
    "closed_over": {"hidden": (6, 0), "output": (6, 0)},
    "recurrent": {  # five examples in every step
        "hidden/recurrent": (5 * problems.STEPS, 0),
        "hidden/weight": (5 * problems.STEPS, 0),
        "output/weight": (5, 0),
    },
    "depth": {
        "blocks/high/weight": (5, 1),
        "blocks/low/weight": (5, 1),
        "input/weight": (5, 0),
        "output/weight": (5, 0),
    },
}


@pytest.mark.parametrize("name", SPANNED)
def test_which_weights_have_their_gradient_in_the_span(name):
    problem = getattr(problems, name)()
    paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(problem.params)]
    found = inputs_of(problem.objective, problem.params, problem.batch)
    assert {paths[place]: (own.rows, own.stacked) for place, own in found.items()} == SPANNED[name]


def test_what_else_uses_a_weight_takes_it_out():
    """Used outside the layers, looked up, or squared beside them: the gradient is not in the inputs' span alone."""

    def objective(params, batch, propagate=nl.propagation.feedforward):
        x, ids = batch
        hidden = propagate("hidden", lambda w, x: x @ w, jnp.tanh, params["both"], x)
        hidden = hidden + propagate("own", lambda w, x: x @ w, jnp.tanh, params["own"], x) + x @ params["both"]
        hidden = hidden + propagate("table", lambda w, x: x @ w + w[ids], jnp.tanh, params["table"], x)
        hidden = hidden + propagate("decayed", lambda w, x: x @ w, jnp.tanh, params["decayed"], x)
        return jnp.sum(hidden, axis=1) + jnp.sum(params["decayed"] ** 2)

    params = {name: np.ones((3, 4), np.float32) for name in ("both", "decayed", "own", "table")}
    batch = np.ones((6, 3), np.float32), np.arange(6) % 3
    assert inputs_of(objective, params, batch).keys() == {2}


@pytest.mark.parametrize("K", [1])
def test_variance_law_of_a_covering_rank(K, x64):
    """Unbiased, with (P' + 1)/K of P' = rank · units + biases, and not (P + 1)/K: 6 + 2 numbers here, not 16 + 2."""
    estimator = nl.subspace_perturbation(linear, num_samples=K)
    g = exact(linear, LINEAR, X)
    samples = estimates(estimator, LINEAR, X, jax.random.split(KEY, 20_000))
    assert largest_deviation(samples, g) < 5
    squares = ((samples - g) ** 2).sum(axis=1) / (g**2).sum()
    sampler = lambda P: theory.projected(theory.independent(P, kurtosis=3), K, captured=1.0)
    assert deviation(squares, sampler(B * UNITS + UNITS)) < 5
    assert deviation(squares, sampler(M * UNITS + UNITS)) > 5


def test_law_of_a_rank_below_the_batchs(x64):
    """Of a fixed subspace the mean is the projected gradient; bias and variance follow from what it holds of g."""
    Q = jax.jit(lambda columns: nl.bases.orthonormal(columns, 0))(np.asarray(X)[:2].T)
    g = jax.tree.map(np.asarray, jax.jit(jax.grad(lambda p: jnp.mean(linear(p, X))))(LINEAR))
    held = {"W": np.asarray(Q) @ (np.asarray(Q).T @ g["W"]), "b": g["b"]}
    flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
    captured = float((flat(held) ** 2).sum() / (flat(g) ** 2).sum())
    assert 0.3 < captured < 0.97
    estimator = nl.subspace_perturbation(linear, basis=fixed(Q), num_samples=2)
    samples = estimates(estimator, LINEAR, X, jax.random.split(KEY, 20_000))
    assert largest_deviation(samples, flat(held)) < 5
    assert largest_deviation(samples, flat(g)) > 5
    squares = ((samples - flat(g)) ** 2).sum(axis=1) / (flat(g) ** 2).sum()
    s = theory.independent(2 * UNITS + UNITS, kurtosis=3)
    assert deviation(squares, theory.projected(s, 2, captured=captured)) < 5
    assert deviation(squares, theory.projected(s, 2, captured=1.0)) > 5


@pytest.mark.parametrize("K", [4])
def test_variance_law_of_a_random_subspace(K, x64):
    """φ + (P + 1 + φ)/K: unbiased, worse than isotropic noise, and never better than φ."""
    estimator = nl.subspace_perturbation(linear, basis=nl.bases.random(2), num_samples=K)
    g = exact(linear, LINEAR, X)
    samples = estimates(estimator, LINEAR, X, jax.random.split(KEY, 20_000))
    assert largest_deviation(samples, g) < 5
    squares = ((samples - g) ** 2).sum(axis=1) / (g**2).sum()
    share = float((g[: M * UNITS] ** 2).sum() / (g**2).sum())
    P = M * UNITS + UNITS
    assert deviation(squares, theory.random_subspace(P, K, {(M, 2): share})) < 5
    assert deviation(squares, theory.random_subspace(P, K, {(M, M): share})) > 5  # isotropic


def test_cosine_is_three_times_that_of_isotropic_noise():
    """Of equal evaluations, 256 inputs and 8 examples; cos² of one sample is 1/P' where isotropic noise has 1/P."""
    network = nl.mlp([256, 10], activation=nl.activations.tanh())
    objective = nl.supervised(network.apply, nl.losses.cross_entropy)
    params = jax.jit(network.init)(jax.random.key(1))
    batch = np.random.default_rng(2).normal(size=(8, 256)).astype(np.float32), np.arange(8, dtype=np.int32) % 10

    @functools.partial(jax.jit, static_argnums=0)
    def cosines(estimator):
        g = jax.grad(lambda params: jnp.mean(objective(params, batch)))(params)
        one = lambda n: estimator.estimate(jax.random.fold_in(KEY, n), (), params, batch)[0]
        return jax.lax.map(lambda n: nl.diagnostics.cosine(one(n), g), np.arange(800))

    guided = np.asarray(cosines(nl.subspace_perturbation(objective, num_samples=1)))  # 3 evaluations
    isotropic = np.asarray(cosines(nl.weight_perturbation(objective, num_samples=2)))  # 3 as well
    ratio = guided.mean() / isotropic.mean()
    error = ratio * np.hypot(*(own.std(ddof=1) / own.mean() / len(own) ** 0.5 for own in (guided, isotropic)))
    assert ratio - 3 * error > 3
    assert deviation(guided**2, theory.squared_cosine(8 * 10 + 10)) < 5
    assert deviation(guided**2, theory.squared_cosine(256 * 10 + 10)) > 5


@pytest.mark.parametrize(
    ("name", "basis"),
    [(name, nl.bases.inputs(2)) for name in ("convolution", "depth")] + [("tied", nl.bases.random(2))],
    ids=["convolution-inputs", "depth-inputs", "tied-random"],
)
def test_displaced_losses_are_those_of_the_formed_weights(name, basis, x64):
    """W + Q C, multiplied term by term: patches, transposed weights, stacked ones in a loop."""
    problem = getattr(problems, name)()
    at = problem.params, problem.batch

    @jax.jit
    def both():
        view = nl.spaces.subspace(problem.objective, basis)(*at, Noise(nl.directions.gaussian(), KEY))
        direction = view.draw(jnp.int32(0))
        lifted = view.gradient(direction)
        # Other parameters' coordinates are themselves, those of weights begin at 0.
        moved = jax.tree.map(lambda w, xi: w + 0.3 * xi, problem.params, lifted)
        formed = problem.objective(moved, problem.batch)
        return view.displaced(direction, 0.3), formed, view.clean(), problem.objective(*at)

    displaced, formed, clean, losses = both()
    np.testing.assert_allclose(displaced, formed, rtol=1e-9)
    np.testing.assert_allclose(clean, losses, rtol=1e-10)
    assert np.abs(displaced - clean).max() > 1e-2


def test_orthogonalising_the_estimate_is_orthogonalising_its_coordinates(x64):
    """What makes optax's Muon the step of ZO-Muon: msign(Q C) = Q msign(C) for orthonormal columns Q."""
    rng = np.random.default_rng(1)
    C = rng.normal(size=(3, 7))
    muon = optax.contrib.scale_by_muon(beta=0.0, nesterov=False)

    @jax.jit
    def steps(columns):
        Q = nl.bases.orthonormal(columns, 0)
        step = lambda G: muon.update(G, muon.init(G))[0]
        return step(Q @ C), Q @ step(jnp.asarray(C)), Q @ C / jnp.linalg.norm(C)

    with jax.numpy_dtype_promotion("standard"):  # optax's count of steps is an integer
        found, expected, normalised = steps(rng.normal(size=(20, 3)))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)
    assert np.abs(found - normalised).max() > 0.05


def test_a_forward_gradient_is_the_limit_of_small_steps():
    """The same directions; of losses that are linear in the weights every step is small."""
    at = KEY, (), LINEAR, X
    space = functools.partial(nl.spaces.subspace, basis=nl.bases.inputs())
    limit = nl.forward_gradient(linear, space=space, num_samples=2)
    quotient = nl.subspace_perturbation(linear, sigma=0.1, num_samples=2)
    forward, measured = jax.jit(lambda *at: [own.estimate(*at)[0] for own in (limit, quotient)])(*at)
    for a, b in zip(jax.tree.leaves(forward), jax.tree.leaves(measured), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


def test_layers_of_different_dtypes(x64):
    """Bases and estimates in each weight's own; they point where the gradient does."""
    problem = problems.chain()
    dtypes = {"hidden1": jnp.float32, "output": jnp.float64}
    to = lambda dtype: lambda w: np.asarray(w).astype(dtype)
    params = {name: jax.tree.map(to(dtypes[name]), own) for name, own in problem.params.items()}

    def objective(params, batch, propagate=nl.propagation.feedforward):
        affine = lambda p, x: x.astype(p["weight"].dtype) @ p["weight"] + p["bias"][None]
        hidden = propagate("hidden", affine, jnp.tanh, params["hidden1"], batch[0])
        return nl.losses.cross_entropy(propagate("output", affine, lambda nu: nu, params["output"], hidden), batch[1])

    estimator = nl.subspace_perturbation(objective, num_samples=512, baseline=nl.baselines.antithetic())
    grads = jax.jit(estimator.estimate)(KEY, (), params, problem.batch)[0]
    assert jax.tree.map(lambda g: g.dtype, grads) == jax.tree.map(lambda w: w.dtype, params)
    g = exact(objective, params, problem.batch)
    found = np.concatenate([np.asarray(leaf, float).ravel() for leaf in jax.tree.leaves(grads)])
    assert found @ g / (np.linalg.norm(found) * np.linalg.norm(g)) > 0.9  # 1/√(1 + P'/K) is 0.95


def test_bases_have_orthonormal_columns():
    columns = np.random.default_rng(3).normal(size=(4, 5, 2, 3)).astype(np.float32)

    @jax.jit
    def run(columns):
        of_zeros = nl.bases.orthonormal(jnp.zeros((5, 1)), 0)
        return nl.bases.orthonormal(columns, 1), nl.bases.orthonormal(columns[..., :1], 1), of_zeros

    found, one, of_zeros = map(np.asarray, run(columns))
    found = found.reshape(4, 10, 3)
    np.testing.assert_allclose(found.mT @ found, np.tile(np.eye(3), (4, 1, 1)), atol=1e-6)
    np.testing.assert_allclose(np.sum(one**2, axis=(1, 2, 3)), 1, rtol=1e-6)
    assert not np.any(of_zeros)


def test_a_loop_without_steps_leaves_its_weights_alone():
    def forward(w, x, propagate):
        step = lambda h, x, propagate: (propagate("cell", lambda w, x, h: x @ w + h, jnp.tanh, w, x, h), None)
        return nl.scan("time", step, jnp.ones((len(x), 3)), jnp.swapaxes(x, 0, 1), propagate)[0]

    objective = lambda w, x, propagate=nl.propagation.feedforward: jnp.sum(forward(w, x, propagate) ** 2, axis=1)
    grads, _, info = nl.subspace_perturbation(objective).estimate(KEY, (), jnp.ones((2, 3)), jnp.ones((4, 0, 2)))
    assert not np.any(grads)
    assert info.loss == 3


def test_settings_that_will_not_do():
    with pytest.raises(ValueError, match="rank must be a whole number of at least 1, got 0"):
        nl.bases.inputs(0)
    with pytest.raises(ValueError, match=r"rank must be a whole number of at least 1, got 1\.5"):
        nl.bases.random(1.5)
    with pytest.raises(ValueError, match=r"basis must be one of nl\.bases, made by a call .* got <function inputs"):
        nl.subspace_perturbation(linear, basis=nl.bases.inputs)
    with pytest.raises(ValueError, match="the basis of a weight's inputs needs to reach the layers of the network"):
        nl.subspace_perturbation(lambda params, batch: batch @ params)
    seeded = nl.seeded(nl.subspace_perturbation(linear), 0.1)
    with pytest.raises(ValueError, match="in a subspace of the batch's inputs, cannot be stored as rates"):
        jax.eval_shape(seeded.step, KEY, seeded.init(KEY, LINEAR), X)
    with pytest.raises(ValueError, match="this estimator does not compute credit per layer"):
        nl.subspace_perturbation(linear).credit(KEY, (), LINEAR, X)


def test_columns_are_orthonormal_and_span_the_same(x64):
    """A dependent column adds nothing; a twin that projects once only is not orthogonal where columns are nearly so."""
    columns = np.random.default_rng(3).normal(size=(3, 30, 6))
    almost = columns.copy()
    almost[..., 1] = columns[..., 0] + 1e-9 * columns[..., 1]
    dependent = almost.copy()
    dependent[..., 3] = columns[..., 0] - 2 * columns[..., 2]
    found = np.asarray(jax.jit(functools.partial(orthonormal, stacked=1))(dependent))
    kept = np.array([1, 1, 1, 0, 1, 1.0])
    np.testing.assert_allclose(found.mT @ found, np.broadcast_to(np.diag(kept), (3, 6, 6)), atol=1e-12)
    np.testing.assert_allclose(found @ (found.mT @ dependent), dependent, atol=1e-12)

    first = almost[..., 0] / np.linalg.norm(almost[..., 0], axis=-1, keepdims=True)
    once = almost[..., 1] - first * np.sum(first * almost[..., 1], axis=-1, keepdims=True)
    once = once / np.linalg.norm(once, axis=-1, keepdims=True)
    assert np.abs(np.sum(first * once, axis=-1)).max() > 1e-9


def test_no_call_of_lapack():
    """On a CPU, they stood still in a long loop of estimates; a factorisation by qr would have one."""
    problem = problems.chain()
    estimate = nl.subspace_perturbation(problem.objective, num_samples=2).estimate
    text = jax.jit(estimate).lower(KEY, (), problem.params, problem.batch).as_text()
    assert "lapack" not in text.lower()
    assert "lapack" in jax.jit(jnp.linalg.qr).lower(jnp.eye(3)).as_text().lower()
