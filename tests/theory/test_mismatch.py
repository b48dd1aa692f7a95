"""The walk of hidden weights under node perturbation against many students of the library's own estimator."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nl_jax as nl
from nl_jax.theory import mismatch

pytestmark = pytest.mark.slow

SIZES = N, H, M = mismatch.Sizes(3, 5, 2)
RATE, V = 0.02, 1.5
STUDENTS, TRIALS = 1500, 150
READOUT = jnp.eye(M, H) * V  # sees the first M hidden units
START = mismatch.Squares(distance=2 * V**2, unseen=1.0)


def output(weight, x, propagate=nl.propagation.feedforward):
    return propagate("hidden", lambda w, x: x @ w, lambda nu: nu, weight, x) @ READOUT.T


@functools.cache
def students():
    """Compiled once: |Δ|², |Q⊥W|² and |W|² after each trial, [STUDENTS, TRIALS, 3]; the teacher is W* = 0."""
    objective = nl.supervised(output, nl.losses.half_squared_error)
    estimator = nl.node_perturbation(objective, baseline=nl.baselines.tangent())
    learner = nl.learner(estimator, optax.sgd(RATE))

    def student(key, irreducible, normalise):
        weight = jnp.zeros([N, H]).at[0, :M].set(1).at[1, M].set(1)
        norm = jnp.linalg.norm(weight)

        def trial(state, key):
            noise, inputs, residual = jax.random.split(key, 3)
            d = jnp.sqrt(2 * irreducible / M) * jax.random.normal(residual, (1, M))
            state, _ = learner.step(noise, state, (jax.random.normal(inputs, (1, N)), d))
            w = state.params
            w = jnp.where(normalise, w * norm / jnp.linalg.norm(w), w)
            squares = jnp.stack([jnp.sum((w @ READOUT.T) ** 2), jnp.sum(w[:, M:] ** 2), jnp.sum(w**2)])
            return state._replace(params=w), squares

        return jax.lax.scan(trial, learner.init(key, weight), jax.random.split(key, TRIALS))[1]

    return jax.jit(jax.vmap(student, in_axes=(0, None, None)))


@functools.cache
def walked(irreducible, normalise=False):
    keys = jax.random.split(jax.random.key(5), STUDENTS)
    return np.asarray(students()(keys, irreducible, normalise), float)


def _expected(trials, irreducible, step=mismatch.trial):
    squares = START
    for _ in range(trials):
        squares = step(squares, SIZES, rate=RATE, readout=V, irreducible=irreducible)
    return np.array(squares)


def _twin(before, sizes, *, rate, readout, irreducible):
    """Noise and inputs taken for independent of their own squares: M N for (M + 2)(N + 2), N for N + 2."""
    N, H, M = sizes
    pace = rate * readout**2
    return mismatch.Squares(
        (1 - 2 * pace + pace**2 * M * N) * before.distance + pace**2 * M * N * 2 * irreducible,
        before.unseen + rate * pace * (H - M) * N * (before.distance + 2 * irreducible),
    )


@pytest.mark.parametrize("trials", [1, TRIALS])
@pytest.mark.parametrize("irreducible", [0.0, 2.0])
def test_squares(trials, irreducible):
    measured = walked(irreducible)[:, trials - 1, :2]
    standard_error = measured.std(axis=0, ddof=1) / STUDENTS**0.5
    off = np.abs(measured.mean(axis=0) - _expected(trials, irreducible)) / standard_error
    assert off.max() < 5
    if trials > 1:
        assert np.abs(measured.mean(axis=0) - _expected(trials, irreducible, _twin))[1] > 5 * standard_error[1]


def test_mismatch_makes_weights_grow_and_normalisation_stops_it():
    settings = {"rate": RATE, "readout": V, "irreducible": 2.0}
    growth = mismatch.growth(SIZES, **settings)
    late = walked(2.0)[:, -1, 1] - walked(2.0)[:, 75, 1]
    assert abs(late.mean() - growth * (TRIALS - 76)) < 5 * late.std(ddof=1) / STUDENTS**0.5
    matched = walked(0.0)[:, :, 1].mean(axis=0)
    assert matched[-1] - matched[75] < 1e-2 * growth * (TRIALS - 76)
    np.testing.assert_allclose(walked(2.0, normalise=True)[:, :, 2], 3.0, rtol=1e-4)
    assert walked(2.0)[:, -1, 2].mean() > 2 * 3.0


def test_floor_and_growth_are_the_recursion_s():
    settings = {"rate": RATE, "readout": V, "irreducible": 2.0}
    settled = mismatch.Squares(mismatch.floor(SIZES, **settings), 0.0)
    after = mismatch.trial(settled, SIZES, **settings)
    assert after.distance == pytest.approx(settled.distance)
    assert after.unseen == pytest.approx(mismatch.growth(SIZES, **settings))
    too_fast = settings | {"rate": 2.1 / V**2 / (M + 2) / (N + 2)}
    assert mismatch.floor(SIZES, **too_fast) == mismatch.growth(SIZES, **too_fast) == math.inf


def test_bad_input_is_told():
    good = {"rate": 0.1, "readout": 1.0, "irreducible": 1.0}
    for sizes in (mismatch.Sizes(3, 2, 2), mismatch.Sizes(0, 2, 1)):
        with pytest.raises(ValueError, match="sizes must be at least 1 and outputs fewer than hidden units, got Sizes"):
            mismatch.growth(sizes, **good)
    for name, value in (("rate", -1.0), ("irreducible", math.nan)):
        with pytest.raises(ValueError, match=f"{name} must be a finite number of at least 0"):
            mismatch.trial(START, SIZES, **(good | {name: value}))
