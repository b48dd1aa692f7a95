"""The perturbation engine: formulas to the letter, costs, and settings."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nl_jax as nl
from nl_jax.estimators.noise.engine.chunks import Footprint, default_chunk, stacked, sum_over_samples
from nl_jax.estimators.noise.engine.shares import alone
from nl_jax.estimators.noise.engine.step_size import balanced, step_size
from nl_jax.evaluation.conformance.subject import flat
from tests import problems

KEY = jax.random.key(1)
signs, normal = nl.directions.rademacher(), nl.directions.gaussian()


@pytest.mark.slow
def test_weight_update_of_seed_000_to_the_letter(x64):
    """ΔW = −η Ẽ Ω with Ω ~ N(0, σ²): the gradient without baseline is Ẽ Ω/σ²."""
    problem, sigma = problems.chain(), 0.3
    estimator = nl.weight_perturbation(problem.objective, sigma=sigma, baseline=nl.baselines.none())

    @jax.jit
    def both(params, batch):
        omega = jax.tree.map(lambda xi: sigma * xi, normal(KEY, 0, params))
        error = jnp.mean(problem.objective(jax.tree.map(jnp.add, params, omega), batch))
        return estimator.estimate(KEY, (), params, batch), omega, error

    (grads, _, info), omega, error = both(problem.params, problem.batch)
    for got, noise in zip(jax.tree.leaves(grads), jax.tree.leaves(omega), strict=True):
        np.testing.assert_allclose(got, error * noise / sigma**2, rtol=1e-12)
    np.testing.assert_allclose(info.loss, error)


@pytest.mark.slow
def test_node_update_of_seed_000_to_the_letter(x64):
    """∂E/∂W = (Ẽ − E) γ x / σ² for each example, averaged over the batch."""
    problem, sigma = problems.chain(), 0.3
    x, _ = problem.batch
    estimator = nl.node_perturbation(problem.objective, sigma=sigma)

    @jax.jit
    def both(params, batch):
        template = {"hidden1": jnp.zeros(5), "output": jnp.zeros(3)}
        draws = jax.vmap(lambda n: normal(jax.random.fold_in(KEY, n), 0, template))(jnp.arange(6))
        gamma = jax.tree.map(lambda xi: sigma * xi, draws)
        perturbed = nl.propagation.inject(problem.objective)(params, batch, gamma)
        return estimator.estimate(KEY, (), params, batch)[0], gamma, perturbed - problem.objective(params, batch)

    grads, gamma, change = jax.tree.map(np.asarray, both(problem.params, problem.batch))
    delta = change[:, None] * gamma["hidden1"] / sigma**2
    np.testing.assert_allclose(grads["hidden1"]["weight"], x.T @ delta / 6, rtol=1e-10)
    np.testing.assert_allclose(grads["hidden1"]["bias"], delta.mean(axis=0), rtol=1e-10)


def test_only_layers_that_learn_are_disturbed():
    """Noise on pooling or flattening would be noise alone: four layers, two of them displaced."""
    problem = problems.convolution()
    view = nl.spaces.nodes(problem.objective)
    direction = jax.eval_shape(lambda: view(problem.params, problem.batch, nl.spaces.Noise(signs, KEY)).draw(0))
    assert {name: xi.shape for name, xi in direction.items()} == {"features": (4, 4, 4, 3), "output": (4, 3)}


@pytest.mark.slow
def test_parameters_between_layers_learn_too(x64):
    """A gain between two layers and a scale after the last one are part of no layer, and still right."""
    problem = problems.tied()
    estimator = nl.node_perturbation(problem.objective, sigma=1e-5, num_samples=20_000, directions=signs, chunk=1000)
    grads = jax.jit(estimator.estimate)(KEY, (), problem.params, problem.batch)[0]
    exact = jax.jit(nl.backprop(problem.objective).estimate)(KEY, (), problem.params, problem.batch)[0]
    np.testing.assert_allclose(grads["gain"], exact["gain"], atol=0.01)
    np.testing.assert_allclose(grads["scale"], exact["scale"], rtol=1e-8)
    np.testing.assert_allclose(grads["shared"]["weight"], exact["shared"]["weight"], atol=0.1)
    assert abs(exact["gain"]) > 0.08


@pytest.mark.slow
@pytest.mark.parametrize("make", [nl.weight_perturbation, nl.node_perturbation, nl.forward_gradient])
def test_memory_does_not_grow_with_samples(make):
    """But for a few numbers each, in weights: its number, its rate of change, its loss."""
    problem = problems.chain()

    def temporary_bytes(num_samples):
        estimate = jax.jit(make(problem.objective, num_samples=num_samples, chunk=4).estimate)
        compiled = estimate.lower(KEY, (), problem.params, problem.batch).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    numbers = 0 if make is nl.node_perturbation else 16 * (4096 - 16)
    assert temporary_bytes(16) <= temporary_bytes(4096) <= temporary_bytes(16) + numbers


@pytest.mark.slow
def test_evaluations_are_what_is_evaluated():
    """The counted passes are the passes made: every run of the objective calls back."""
    calls = []

    def objective(params, batch, propagate=nl.propagation.feedforward):
        def affine(p, x):
            jax.debug.callback(lambda: calls.append(1))
            return x @ p

        return propagate("output", affine, lambda nu: nu, params, batch)[:, 0]

    params, batch = jnp.ones((3, 1)), jnp.ones((2, 3))
    for make, baseline, local_gradients in [
        (nl.weight_perturbation, nl.baselines.none(), 0),
        (nl.weight_perturbation, nl.baselines.clean(), 0),
        (nl.weight_perturbation, nl.baselines.antithetic(), 0),
        (nl.node_perturbation, nl.baselines.none(), 1),
        (nl.node_perturbation, nl.baselines.clean(), 1),
        (nl.node_perturbation, nl.baselines.antithetic(), 1),
    ]:
        calls.clear()
        estimator = make(objective, num_samples=5, baseline=baseline, chunk=1)
        _, _, info = jax.block_until_ready(jax.jit(estimator.estimate)(KEY, (), params, batch))
        jax.effects_barrier()
        assert len(calls) == int(info.evaluations) - local_gradients


NETWORK = nl.mlp([64, 64, 64, 64], activation=nl.activations.tanh())
SQUARE = nl.supervised(NETWORK.apply, nl.losses.cross_entropy)


def _mean_loss(params, batch):
    return jnp.mean(SQUARE(params, batch))


def _square_problem():
    params = jax.tree.map(lambda w: np.zeros(w.shape, w.dtype), jax.eval_shape(NETWORK.init, KEY))
    return params, (np.ones((256, 64), np.float32), np.zeros(256, np.int32))


@functools.cache
def _compiled(function):
    return jax.jit(function).lower(*_square_problem()).compile()


@pytest.mark.parametrize(
    "make",
    [
        nl.backprop,
        nl.lagrangian_backprop,
        lambda objective: nl.weight_perturbation(objective, num_samples=6, chunk=6, directions=signs),
        lambda objective: nl.node_perturbation(objective, num_samples=6, chunk=6, directions=signs),
        lambda objective: nl.forward_gradient(objective, num_samples=6, chunk=6, directions=signs),
        lambda objective: nl.forward_gradient(
            objective, space=nl.spaces.nodes, num_samples=6, chunk=6, directions=signs
        ),
    ],
    ids=["backprop", "lagrangian", "weights", "nodes", "tangents in weights", "tangents in nodes"],
)
def test_evaluations_are_what_is_multiplied(make):
    """Derivative work is counted by its multiply-adds: the compiled FLOPs agree, save for noise and activations."""
    estimator = make(SQUARE)

    def estimate(params, batch):
        grads, _, info = estimator.estimate(KEY, (), params, batch)
        return grads, info.loss, info.evaluations

    estimate, mean = (_compiled(function) for function in (estimate, _mean_loss))
    spent = estimate.cost_analysis()["flops"] / mean.cost_analysis()["flops"]
    assert 0.75 < spent / int(estimate(*_square_problem())[2]) < 1.25


def test_sums_of_half_precision_do_not_stop_growing():
    def ones(indices):
        return jnp.ones(indices.shape[0], jnp.bfloat16).sum()

    totals = jax.jit(lambda: [sum_over_samples(ones, alone(5000).indices, chunk) for chunk in (1, 7)])()
    assert [float(total) for total in totals] == [5000, 5000]


@pytest.mark.parametrize("make", [nl.weight_perturbation, nl.node_perturbation])
@pytest.mark.parametrize("baseline", [nl.baselines.clean(), nl.baselines.antithetic()], ids=["clean", "antithetic"])
def test_a_difference_of_rounding_noise_is_refused(make, baseline):
    problem = problems.chain()
    half = jax.tree.map(lambda w: np.asarray(w).astype(jnp.bfloat16), (problem.params, problem.batch[0]))
    batch = half[1], problem.batch[1]
    estimate = make(problem.objective, sigma=1e-3, baseline=baseline).estimate
    with pytest.raises(ValueError, match=r"sigma = 0\.001 is lost in bfloat16.* Leave sigma out for the default of"):
        jax.eval_shape(estimate, KEY, (), half[0], batch)
    jax.eval_shape(estimate, KEY, (), problem.params, problem.batch)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "dtype"),
    [
        (nl.weight_perturbation, jnp.bfloat16),
        (nl.weight_perturbation, jnp.float16),
        (nl.weight_perturbation, jnp.float32),
        (nl.node_perturbation, jnp.bfloat16),
        (nl.node_perturbation, jnp.float64),
    ],
)
def test_the_default_step_suits_the_dtype(make, dtype, x64):
    """Against the exact derivative along the same directions: far better than steps 30 times longer or shorter."""
    problem = problems.chain()
    params, inputs = jax.tree.map(lambda w: np.asarray(w).astype(dtype), (problem.params, problem.batch[0]))
    wide = jax.tree.map(lambda w: w.astype(np.float64), (params, inputs))
    space = nl.spaces.weights if make is nl.weight_perturbation else nl.spaces.nodes
    exact = nl.forward_gradient(problem.objective, space=space, num_samples=8, directions=signs)
    default = step_size(None, balanced(2), [jnp.dtype(dtype)], 8 if make is nl.node_perturbation else 43)

    def measured(sigma, params, inputs):
        settings = {"num_samples": 8, "directions": signs, "baseline": nl.baselines.antithetic()}
        estimator = make(problem.objective, sigma=sigma, **settings)
        return estimator.estimate(KEY, (), params, (inputs, problem.batch[1]))[0]

    @jax.jit
    def run(params, inputs, wide):
        reference = exact.estimate(KEY, (), wide[0], (wide[1], problem.batch[1]))[0]
        return reference, [measured(sigma, params, inputs) for sigma in (None, default, 30 * default)]

    reference, found = run(params, inputs, wide)

    def error(grads):
        difference = jax.tree.map(lambda a, b: np.asarray(a, np.float64) - np.asarray(b), grads, reference)
        return np.linalg.norm(flat(difference)) / np.linalg.norm(flat(reference))

    by_default, given, longer = map(error, found)
    assert by_default == given < min(60 * float(jnp.finfo(dtype).eps) ** (2 / 3), 0.12)
    assert by_default < longer / 3


def test_the_antithetic_loss_is_the_mean_of_both_sides():
    objective = lambda p, b: b * (p + 1)
    estimator = nl.weight_perturbation(objective, sigma=0.5, baseline=nl.baselines.antithetic())
    info = jax.jit(estimator.estimate)(KEY, (), np.float32(0), np.ones(2, np.float32))[2]
    np.testing.assert_allclose(info.loss, 1, rtol=1e-6)


def test_leaves_of_different_dtypes_get_different_noise():
    template = {name: jax.ShapeDtypeStruct((64,), dtype) for name, dtype in (("a", jnp.float32), ("b", jnp.float16))}
    draw = jax.jit(lambda: signs(KEY, 0, template))()
    assert 16 < np.sum(np.asarray(draw["a"]) == np.asarray(draw["b"])) < 48


def test_mixed_precision_parameters():
    params = {"a": jax.ShapeDtypeStruct((3,), jnp.bfloat16), "b": jax.ShapeDtypeStruct((2,), jnp.float32)}

    def objective(params, batch):
        return batch * (jnp.sum(params["a"].astype(jnp.float32)) + jnp.sum(params["b"]))

    for sampler in (normal, signs):
        estimator = nl.weight_perturbation(objective, directions=sampler)
        assert jax.eval_shape(estimator.estimate, KEY, (), params, np.ones(2, np.float32))[0] == params


@pytest.mark.slow
def test_sum_over_samples_is_the_sum(x64):
    def sample(index):
        return {"x": jax.random.normal(jax.random.fold_in(KEY, index), (2,)), "y": jnp.asarray(index, float)}

    def total(chunk):
        summed = lambda i: jax.tree.map(lambda x: x.sum(axis=0), stacked(sample)(i))
        return sum_over_samples(summed, alone(10).indices, chunk)

    one_by_one = jax.vmap(sample)
    samples, totals = jax.jit(lambda: (one_by_one(jnp.arange(10)), [total(chunk) for chunk in (1, 3, 7, 100)]))()
    for found in totals:
        np.testing.assert_allclose(found["x"], np.sum(samples["x"], axis=0), rtol=1e-12)
        np.testing.assert_allclose(found["y"], 45)


def test_chunks_fit_the_backend(monkeypatch):
    own, shared = Footprint(2**20, weights_of_its_own=True), Footprint(2**20, weights_of_its_own=False)
    assert (default_chunk(100, own), default_chunk(100, shared), default_chunk(3, shared)) == (1, 4, 3)
    assert default_chunk(100, Footprint(100, weights_of_its_own=False)) == 32
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert (default_chunk(5000, own), default_chunk(5000, Footprint(2**32, weights_of_its_own=False))) == (256, 1)


BAD = [
    ({"sigma": 0.0}, "sigma must be a finite Python number above 0, got 0.0"),
    ({"sigma": float("nan")}, "sigma must be .* got nan"),
    ({"sigma": jnp.ones(2)}, r"sigma must be one number, got an array of shape \(2,\)"),
    ({"sigma": "1e-3"}, "sigma must be .* got '1e-3'"),
    ({"num_samples": 0}, "num_samples must be a whole number of at least 1, got 0"),
    ({"num_samples": 2.5}, "num_samples must be .* got 2.5"),
    ({"num_samples": True}, "num_samples must be .* got True"),
    ({"chunk": -1}, "chunk must be a whole number of at least 1, got -1"),
    ({"baseline": "clean"}, r"baseline must be one of nl\.baselines, made by a call such as clean\(\); got 'clean'"),
    ({"directions": "gaussian"}, r"directions must take 3 arguments, got 'gaussian': a sampler .*gaussian\(\)"),
    ({"directions": nl.directions.rademacher}, "directions must take 3 arguments, got rademacher: a sampler"),
]


@pytest.mark.parametrize(
    ("settings", "message"), BAD, ids=[f"{number} {next(iter(settings))}" for number, (settings, _) in enumerate(BAD)]
)
@pytest.mark.parametrize("make", [nl.weight_perturbation, nl.node_perturbation])
def test_bad_settings_are_errors_at_construction(make, settings, message):
    with pytest.raises(ValueError, match=message):
        make(problems.chain().objective, **settings)


def test_bad_spaces_and_credits_are_errors_at_construction():
    objective = problems.chain().objective
    with pytest.raises(ValueError, match=r"space must be nl\.spaces\.weights or nl\.spaces\.nodes, got 'nodes'"):
        nl.forward_gradient(objective, space="nodes")
    with pytest.raises(ValueError, match=r"credit must be nl\.spaces\.per_example_credit\(\)"):
        nl.node_perturbation(objective, credit="batch")


def test_integer_parameters_are_named():
    with pytest.raises(ValueError, match="params leaf 'steps' is int32, not a floating-point array"):
        nl.weight_perturbation(lambda p, b: b * p["w"]).estimate(
            KEY, (), {"w": np.float32(1), "steps": np.int32(1)}, np.ones(2, np.float32)
        )


def test_layers_without_the_batch_axis_need_batch_credit():
    def objective(params, batch, propagate=nl.propagation.feedforward):
        doubled = propagate("constant", lambda p: p * 2, lambda nu: nu, params)
        return batch @ doubled

    at = KEY, (), np.ones(3, np.float32), np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match="per-example credit needs every layer's first axis to be the batch of 2"):
        jax.eval_shape(nl.node_perturbation(objective).estimate, *at)
    jax.eval_shape(nl.node_perturbation(objective, credit=nl.spaces.per_batch_credit()).estimate, *at)


def test_losses_must_be_floating():
    objective = lambda params, batch: (batch * params > 0).astype(jnp.int32)
    with pytest.raises(ValueError, match="must return floating-point losses, got int32: cast them to float32"):
        jax.eval_shape(nl.weight_perturbation(objective).estimate, KEY, (), jnp.float32(1), jnp.ones(3))


def test_an_exact_derivative_has_no_step():
    objective = problems.chain().objective
    with pytest.raises(ValueError, match=r"sigma must be left out with tangent\(\), which makes no step; got 0.1"):
        nl.weight_perturbation(objective, sigma=0.1, baseline=nl.baselines.tangent())
    with pytest.raises(ValueError, match="space must take one argument, got view"):
        nl.forward_gradient(objective, space=nl.spaces.nodes(objective))


def test_accelerators_step_further_unless_their_products_are_exact(monkeypatch):
    step = lambda: step_size(None, balanced(1), [jnp.dtype(jnp.float32)], 100)
    on_cpu = step()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert step() > 10 * on_cpu
    with jax.default_matmul_precision("float32"):
        assert step() == on_cpu


def test_a_part_without_layers_of_its_own():
    """A scale that no layer reads leaves node perturbation nothing to displace; it gets the loss's own derivative."""
    problem = problems.tied()
    parts = {"scale": nl.node_perturbation, "*": nl.backprop}
    estimator = nl.partition(problem.objective, parts)

    @jax.jit
    def both(params, batch):
        state = estimator.init(KEY, params)
        return [
            e.estimate(KEY, at, params, batch)[0]
            for e, at in ((estimator, state), (nl.backprop(problem.objective), ()))
        ]

    grads, exact = both(problem.params, problem.batch)
    np.testing.assert_allclose(grads["scale"], exact["scale"], rtol=1e-5)
