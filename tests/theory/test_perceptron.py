"""The perceptron's mistakes against Novikoff's bound, and the rule as descent on a sign unit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nl_jax as nl
from nl_jax.theory import perceptron

learn, mistake_bound = jax.jit(perceptron.learn, static_argnums=2), jax.jit(perceptron.mistake_bound)


def separable(seed: int, N: int = 12, D: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs, the labels a random teacher gives them, and the teacher; nothing within 0.1 of the boundary."""
    rng = np.random.default_rng(seed)
    teacher, x = rng.normal(size=D), rng.normal(size=(N, D))
    direction = teacher / np.linalg.norm(teacher)
    y = np.sign(x @ direction)
    return x + 0.1 * np.outer(y, direction), y, teacher


@pytest.mark.parametrize("seed", range(5))
def test_mistakes_are_bounded(seed, x64):
    x, y, teacher = separable(seed)
    w, mistakes = learn(x, y, 200)
    bound = mistake_bound(x, y, teacher)
    assert 1 < int(mistakes.sum()) <= float(bound) < 1e4
    assert mistakes[-1] == 0
    assert np.all(y * (x @ np.asarray(w)) > 0)


def test_the_bound_is_reached(x64):
    """Orthonormal inputs teach nothing of each other: N mistakes, and (R/γ)² = (1/(1/√N))² = N."""
    y = np.array([1.0, -1, -1, 1, 1])
    w, mistakes = learn(np.eye(5), y, 2)
    np.testing.assert_array_equal(mistakes, [5, 0])
    np.testing.assert_array_equal(w, y)
    np.testing.assert_allclose(mistake_bound(np.eye(5), y, 7 * y), 5, rtol=1e-14)


def test_no_bound_from_a_teacher_that_errs(x64):
    x, y, teacher = separable(0)
    assert mistake_bound(x, y, -teacher) == np.inf
    x[0] = 0
    assert mistake_bound(x, y, teacher) == np.inf


def test_learns_only_from_mistakes(x64):
    w, x, update = np.array([1.0, 0.0]), np.array([2.0, 5.0]), jax.jit(perceptron.update)
    np.testing.assert_array_equal(update(w, x, 1.0), w)
    np.testing.assert_array_equal(update(w, x, -1.0), [-1, -5])
    np.testing.assert_array_equal(update(np.zeros(2), x, 1.0), x)  # a tie is a mistake


def test_is_descent_on_the_sign_unit(x64):
    """Seed 001 §1: `optax.sgd` at rate ½ on ½(sign(wᵀx) − y)², one example at a time, the surrogate slope 1.

    At w = 0, where sign is 0, descent would make half a step; so it starts where the first mistake leads.
    """
    x, y, _ = separable(1)
    passes = 4
    expected, mistakes = learn(x, y, passes)
    assert mistakes.sum() > 2

    sign = nl.activations.sign(surrogate=jnp.ones_like)
    network = nl.mlp([3, 1], activation=sign, output_activation=sign, bias=False)
    objective = nl.supervised(network.apply, nl.losses.half_squared_error)
    learner = nl.learner(nl.backprop(objective), optax.sgd(0.5))

    @jax.jit
    def walk(x, y):
        first = perceptron.update(jnp.zeros(3), x[0], y[0])
        key, order = jax.random.key(0), jnp.arange(1, passes * len(x)) % len(x)
        step = lambda state, i: (learner.step(key, state, (x[i][None], y[i][None, None]))[0], None)
        return jax.lax.scan(step, learner.init(key, {"output": {"weight": first[:, None]}}), order)[0]

    state = walk(x, y)
    np.testing.assert_allclose(state.params["output"]["weight"][:, 0], expected, rtol=1e-14)


def test_bad_input_is_told():
    x, y, teacher = separable(0)
    with pytest.raises(ValueError, match=r"got \[12, 3\] and \[12, 1\]"):
        perceptron.learn(x, y[:, None], 1)
    with pytest.raises(ValueError, match=r"got \[12, 3\] and \[3\]"):
        perceptron.mistake_bound(x, y[:3], teacher)
