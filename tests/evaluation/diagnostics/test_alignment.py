"""Angles are angles, by layer and by leaf, and are traced without disturbing what is trained."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nl_jax as nl
from nl_jax.evaluation.diagnostics import alignment, angle, by_layer, by_leaf, trace_alignment
from tests import problems

KEY = jax.random.key(0)


def test_angles_from_the_smallest_on():
    @jax.jit
    def turned(radians):
        a = {"u": jnp.array([3.0, 0.0]), "v": jnp.zeros(1)}
        return angle(a, {"u": 2 * jnp.array([jnp.cos(radians), 0.0]), "v": 2 * jnp.sin(radians)[None]})

    for degrees in (0.0, 1e-4, 1.0, 90.0, 120.0, 180.0):  # in float32 the cosine of 1e-4 degrees is 1
        np.testing.assert_allclose(turned(np.radians(degrees).astype("float32")), degrees, rtol=1e-5, atol=2e-5)
    assert np.isnan(angle(jnp.zeros(2), jnp.ones(2)))
    np.testing.assert_allclose(angle(jnp.array([1e-22, 0.0]), jnp.array([1e25, 1e25])), 45, rtol=1e-6)
    long = jnp.ones(100_000, jnp.float16)  # whose square overflows
    np.testing.assert_allclose([angle(long, long), angle(long, -long)], [0, 180], rtol=1e-6)


def fixed(grads):
    return nl.GradientEstimator(lambda key, params: (), lambda *_: (grads, (), ()))


def test_by_layer_and_by_leaf():
    a = {"low": {"w": jnp.array([1.0, 0.0]), "b": jnp.ones(1)}, "high": jnp.ones(2, jnp.bfloat16)}
    b = {"low": {"w": jnp.array([0.0, 1.0]), "b": jnp.ones(1)}, "high": -jnp.ones(2, jnp.bfloat16)}
    measure = lambda split: alignment(fixed(a), fixed(b), KEY, (), a, (), split=split)
    layers, leaves = measure(by_layer), measure(by_leaf)
    assert list(by_layer({"low": a["low"], "pooled": {}})) == ["low"]  # which is taught nothing
    chex.assert_trees_all_close(layers, {"low": jnp.float32(60), "high": jnp.float32(180)}, rtol=1e-5)
    chex.assert_trees_all_close(leaves, {"low/w": 90.0, "low/b": 0.0, "high": 180.0}, rtol=1e-5, atol=1e-4)
    with pytest.raises(ValueError, match=r"key must be a typed key made by jax\.random\.key"):
        alignment(fixed(a), fixed(b), jnp.zeros(2, jnp.uint32), (), a, ())


@pytest.mark.slow
def test_is_traced_through_training_as_it_is_measured_at_each_point():
    problem = problems.chain()
    estimator, exact = nl.feedback_alignment(problem.objective), nl.backprop(problem.objective)
    learner = nl.learner(estimator, optax.sgd(0.5))
    start = learner.init(KEY, problem.params)
    record = trace_alignment(estimator, exact, KEY, problem.batch, every=3)
    end, history = nl.fit(learner, KEY, start, problem.batch, num_steps=6, record=record, progress=False)
    degrees = history.degrees["hidden1"]
    assert np.isnan(degrees).tolist() == [True, True, False, True, True, False]
    measure = jax.jit(lambda state, params: alignment(estimator, exact, KEY, state, params, problem.batch))
    np.testing.assert_allclose(degrees[5], measure(end.estimator, end.params)["hidden1"], rtol=1e-4)
    assert abs(degrees[2] - degrees[5]) > 0.1
    assert history.info.loss.shape == (6,)
    with pytest.raises(ValueError, match="every must be a whole number of at least 1, got 0"):
        trace_alignment(estimator, exact, KEY, problem.batch, every=0)


def test_every_step_is_measured_with_a_key_of_its_own():
    noise = nl.GradientEstimator(lambda key, params: (), lambda key, *_: (jax.random.normal(key, (3,)), (), ()))
    params, info = jnp.ones(3), nl.Info(jnp.float32(0), jnp.int32(0))
    measured = trace_alignment(noise, fixed(params), KEY, (), split=lambda grads: {"all": grads})
    at = jax.jit(lambda step: measured(nl.LearnerState(params, (), (), step), info).degrees["all"])
    assert at(jnp.int32(1)) == at(jnp.int32(1)) != at(jnp.int32(2))
