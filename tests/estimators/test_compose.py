import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nl_jax as nl
from tests import problems

pytestmark = pytest.mark.slow

KEY = jax.random.key(2)


def _estimate(estimator, problem, key=KEY):
    state = estimator.init(key, problem.params)
    return jax.jit(estimator.estimate)(key, state, problem.params, problem.batch)


def test_average_is_the_mean_of_estimates(x64):
    problem = problems.chain()
    one = nl.forward_gradient(problem.objective)
    grads, _, info = _estimate(nl.average(one, 4), problem)
    singles = [_estimate(one, problem, jax.random.fold_in(KEY, i))[0] for i in range(4)]
    chex.assert_trees_all_close(grads, jax.tree.map(lambda *g: sum(g) / 4, *singles), rtol=1e-10)
    assert int(info.evaluations) == 4 * 3


def test_average_takes_numbers_as_parameters():
    one = nl.backprop(lambda w, b: (w * b) ** 2)
    at = KEY, (), 2.0, jnp.ones(3)
    np.testing.assert_array_equal(nl.average(one, 2).estimate(*at)[0], one.estimate(*at)[0])


def test_average_hands_on_the_state():
    counting = nl.GradientEstimator(
        lambda key, params: jnp.float32(0),
        lambda key, state, params, batch: (params * state, state + 1, nl.Info(jnp.float32(0), jnp.int32(1))),
    )
    grads, state, info = nl.average(counting, 3).estimate(KEY, jnp.float32(5), jnp.float32(1), ())
    assert (float(state), round(float(grads), 5), int(info.evaluations)) == (8, 6.0, 3)


def test_average_of_half_precision_does_not_stop_growing():
    one = nl.GradientEstimator(
        lambda key, params: (),
        lambda key, state, params, batch: (jnp.ones_like(params), state, nl.Info(jnp.float32(0), jnp.int32(1))),
    )
    grads, _, _ = nl.average(one, 2000).estimate(KEY, (), jnp.ones(2, jnp.bfloat16), ())
    assert grads.dtype == jnp.bfloat16
    np.testing.assert_array_equal(grads.astype(jnp.float32), 1)


def test_mix_weighs_estimates(x64):
    problem = problems.chain()
    exact = nl.backprop(problem.objective)
    minus = nl.GradientEstimator(
        exact.init, lambda *at: (jax.tree.map(jnp.negative, exact.estimate(*at)[0]), *exact.estimate(*at)[1:])
    )
    grads, _, info = _estimate(nl.mix([exact, minus], [0.75, 0.25]), problem)
    half = jax.tree.map(lambda g: g / 2, _estimate(exact, problem)[0])
    chex.assert_trees_all_close(grads, half, rtol=1e-12)
    assert int(info.evaluations) == 6


def test_mix_draws_independent_noise():
    problem = problems.chain()
    noisy = nl.forward_gradient(problem.objective)
    difference, _, _ = _estimate(nl.mix([noisy, noisy], [2.0, -1.0]), problem)
    same, _, _ = _estimate(noisy, problem)
    assert not np.allclose(difference["output"]["weight"], same["output"]["weight"])


def test_partition_gives_each_part_its_own_estimator(x64):
    problem = problems.chain()
    seen = []

    def watched(objective):
        inner = nl.weight_perturbation(objective)

        def estimate(key, state, params, batch):
            seen.append(sorted(params))
            return inner.estimate(key, state, params, batch)

        return nl.GradientEstimator(inner.init, estimate)

    estimator = nl.partition(problem.objective, {"output/*": nl.backprop, "*": watched})
    grads, _, info = _estimate(estimator, problem)
    exact, _, _ = _estimate(nl.backprop(problem.objective), problem)
    chex.assert_trees_all_close(grads["output"], exact["output"], rtol=1e-12)
    assert not np.allclose(grads["hidden1"]["weight"], exact["hidden1"]["weight"])
    assert seen == [["hidden1/bias", "hidden1/weight"]]
    assert int(info.evaluations) == 3 + 2


def test_partition_confines_node_noise_to_its_part():
    problem = problems.chain()
    displaced = []

    def spying(objective):
        def space(params, batch, noise):
            view = nl.spaces.nodes(objective)(params, batch, noise)
            displaced.append(set(view.draw(0)))
            return view

        return nl.forward_gradient(objective, space=lambda _: space)

    _estimate(nl.partition(problem.objective, {"output/*": nl.backprop, "hidden*": spying}), problem)
    assert displaced == [{"hidden1"}]


@pytest.mark.parametrize("make", [nl.backprop_recursion, nl.lagrangian_backprop])
def test_partition_of_exact_estimators_is_exact(make, x64):
    problem = problems.skip()
    grads, _, _ = _estimate(nl.partition(problem.objective, {"low/*": make, "*": nl.backprop}), problem)
    chex.assert_trees_all_close(grads, _estimate(nl.backprop(problem.objective), problem)[0], rtol=1e-10, atol=1e-12)


def test_partition_refuses_what_it_would_confuse():
    ambiguous = {"a/b": jnp.ones(2), "a": {"b": jnp.ones(2)}}
    objective = lambda p, b: b * (jnp.sum(p["a/b"] ** 2) + jnp.sum(p["a"]["b"] ** 2))
    with pytest.raises(ValueError, match="two parameters have the path 'a/b'"):
        nl.partition(objective, {"*": nl.backprop}).estimate(KEY, ((),), ambiguous, jnp.ones(2))
    with pytest.raises(ValueError, match=r"parts\['\*'\] must take one argument, got a GradientEstimator"):
        nl.partition(objective, {"*": nl.backprop(objective)})


@pytest.mark.parametrize(
    ("patterns", "shares"),
    [
        (["a[0]/w", "*"], [["a[0]/w"], ["a0/w"]]),
        (["a[0]/*", "*"], [["a[0]/w"], ["a0/w"]]),
        (["a[[]0]/*", "*"], [["a[0]/w"], ["a0/w"]]),
        (["a[02]/*", "*"], [["a0/w"], ["a[0]/w"]]),
    ],
)
def test_brackets_of_a_name_stand_for_themselves(patterns, shares):
    params, seen = {"a[0]": {"w": jnp.ones(2)}, "a0": {"w": jnp.ones(2)}}, {}

    def watched(pattern):
        def init(key, params):
            seen[pattern] = list(params)
            return ()

        return lambda objective: nl.GradientEstimator(init, nl.backprop(objective).estimate)

    objective = lambda p, b: b
    nl.partition(objective, {pattern: watched(pattern) for pattern in patterns}).init(KEY, params)
    assert list(seen.values()) == shares
    assert [*nl.train_only(objective, params, patterns[0]).params] == shares[0]


def test_partition_names_what_does_not_match():
    problem = problems.chain()
    with pytest.raises(ValueError, match="no pattern of parts matches parameter 'hidden1/bias'"):
        _estimate(nl.partition(problem.objective, {"output/*": nl.backprop}), problem)
    with pytest.raises(
        ValueError, match=r"pattern 'readout' of parts gets no parameter, .*; the paths are hidden1/bias"
    ):
        _estimate(nl.partition(problem.objective, {"readout": nl.backprop, "*": nl.backprop}), problem)
    with pytest.raises(ValueError, match="parts must name at least one pattern"):
        nl.partition(problem.objective, {})
    with pytest.raises(ValueError, match="sigma must be"):
        nl.partition(problem.objective, {"*": functools.partial(nl.weight_perturbation, sigma=-1)})


def test_a_state_of_another_estimator_is_refused():
    problem = problems.chain()
    for composed in (
        nl.mix([nl.backprop(problem.objective)], [1.0]),
        nl.partition(problem.objective, {"*": nl.backprop}),
    ):
        with pytest.raises(ValueError, match="state must be the 1 states that init made"):
            composed.estimate(KEY, (), problem.params, problem.batch)


def test_bad_mixtures_are_errors():
    exact = nl.backprop(problems.chain().objective)
    with pytest.raises(ValueError, match="weights must sum to 1"):
        nl.mix([exact, exact], [0.5, 0.6])
    with pytest.raises(ValueError, match="weights must be one number per estimator; got 1 for 2"):
        nl.mix([exact, exact], [1.0])
    with pytest.raises(ValueError, match="num_estimates must be a whole number"):
        nl.average(exact, 0)


def test_batch_sum_is_the_gradient_of_the_sum(x64):
    """Seed 001 §4: Σ_{i∈I} ∇f_i."""
    problem = problems.chain()
    grads, _, _ = _estimate(nl.batch_sum(nl.backprop(problem.objective)), problem)
    expected = jax.grad(lambda p: jnp.sum(problem.objective(p, problem.batch)))(problem.params)
    chex.assert_trees_all_close(grads, expected, rtol=1e-12)


@pytest.mark.parametrize(
    "batch",
    [{"prior": jnp.ones(7), "x": jnp.ones((3, 2))}, {"x": jnp.ones((3, 2)), "prior": jnp.ones(7)}, (), 2.0],
    ids=["first", "last", "empty", "number"],
)
def test_batch_sum_needs_one_number_of_examples(batch):
    estimator = nl.batch_sum(nl.backprop(lambda w, b: jnp.ones(3)))
    with pytest.raises(ValueError, match=r"batch must be arrays with examples along their first axis, .*; got shapes"):
        estimator.estimate(KEY, (), jnp.ones(2), batch)


def test_batch_sum_passes_over_numbers():
    grads, _, _ = nl.batch_sum(nl.backprop(lambda w, b: b["a"] * w * b["x"])).estimate(
        KEY, (), jnp.float32(1), {"a": 2.0, "x": jnp.ones(3)}
    )
    assert float(grads) == 6


@pytest.mark.parametrize(
    ("name", "make"),
    [
        (r"estimators\[1\]", lambda exact: nl.mix([exact, nl.backprop], [0.5, 0.5])),
        ("estimator", lambda exact: nl.average(nl.backprop, 2)),
        ("estimator", lambda exact: nl.batch_sum(nl.backprop)),
        ("estimator", lambda exact: nl.augment_batches(nl.backprop, lambda key, batch: batch)),
        ("estimator", lambda exact: nl.normalised(nl.backprop)),
        ("estimator", lambda exact: nl.seeded(nl.backprop, 0.1)),
        ("reference", lambda exact: nl.diagnostics.measure(exact, nl.backprop, KEY, 1.0, jnp.ones(1))),
    ],
    ids=["mix", "average", "batch_sum", "augment_batches", "normalised", "seeded", "measure"],
)
def test_what_is_no_estimator_is_refused(name, make):
    message = rf"{name} must be a GradientEstimator such as nl\.backprop\(objective\), not nl\.backprop; got backprop"
    with pytest.raises(ValueError, match=message):
        make(nl.backprop(lambda w, b: w * b))


def test_a_factory_must_make_an_estimator():
    objective = lambda w, b: w * b
    message = "must make a GradientEstimator of an objective, it makes 3"
    with pytest.raises(ValueError, match=rf"parts\['\*'\] {message}"):
        nl.partition(objective, {"*": lambda objective: 3})
    with pytest.raises(ValueError, match=f"a stage's factory {message}"):
        nl.alternating(objective, [nl.Stage("*", lambda objective: 3, optax.sgd(0.1))])
