"""What is conserved by the flow drifts under the library's own descent, by as little as the step is small."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nl_jax as nl
from nl_jax.theory import conservation, deep_linear

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("x64")]

KEY = jax.random.key(1)
SIZES = [3, 4, 4, 2]


def seed_weights(params):
    return [layer["weight"].T for layer in params.values()]


def of_backprop(params, B):
    del B
    return conservation.backprop(seed_weights(params))


def of_alignment(params, B):
    W0, W = seed_weights(params)[-2:]
    return conservation.feedback_alignment(W0, W, B["output"]["weight"])


def sums(weights):
    """A wrong twin of backprop's: W_l W_lᵀ + W_{l+1}ᵀ W_{l+1}."""
    return tuple(low @ low.T + high.T @ high for low, high in itertools.pairwise(weights))


def of_nothing(params, B):
    del B
    return sums(seed_weights(params))


@functools.cache
def descent(make, depth):
    """`drift(rate, steps)`: how far each quantity moves."""
    network = nl.mlp(SIZES[-depth - 1 :], activation=nl.activations.identity(), bias=False)
    estimator = make(nl.supervised(network.apply, nl.losses.half_squared_error))

    @jax.jit
    def drift(rate, steps):
        params = network.init(KEY, jnp.float64)
        keys = jax.random.split(KEY)
        batch = jax.random.normal(keys[0], (6, SIZES[-depth - 1])), 3 * jax.random.normal(keys[1], (6, SIZES[-1]))
        learner = nl.learner(estimator, optax.sgd(rate))
        start = learner.init(keys[0], params)
        end = jax.lax.fori_loop(0, steps, lambda _, state: learner.step(KEY, state, batch)[0], start)
        B = start.estimator or params
        return {
            quantity.__name__: optax.tree.norm(
                jax.tree.map(jnp.subtract, quantity(end.params, B), quantity(start.params, B))
            )
            for quantity in (of_backprop, of_alignment, of_nothing)
        }

    return drift


@pytest.mark.parametrize(
    ("make", "depth", "conserved"),
    [(nl.backprop, 3, "of_backprop"), (nl.feedback_alignment, 2, "of_alignment")],
)
def test_half_the_step_half_the_drift(make, depth, conserved):
    """Over a fixed time; what is conserved by another rule, or by none, moves as it likes at any step."""
    drift = descent(make, depth)
    coarse, fine = (drift(1 / steps, steps) for steps in (200, 400))
    assert fine[conserved] < 0.05
    assert coarse[conserved] / fine[conserved] == pytest.approx(2, rel=0.05)
    for other in coarse.keys() - {conserved}:
        assert fine[other] > 0.5
        assert coarse[other] / fine[other] == pytest.approx(1, rel=0.05)


def test_the_flow_conserves_exactly():
    """d/dt of the invariant along the equations of motion of three layers is 0; of the wrong twin it is not."""

    @jax.jit
    def rates(x, y):
        shapes = zip(SIZES[1:], SIZES, strict=False)
        weights = tuple(jax.random.normal(jax.random.fold_in(KEY, l), shape) for l, shape in enumerate(shapes))
        moving = deep_linear.flow(weights, *deep_linear.correlations(x, y))
        return jax.jvp(lambda *weights: (conservation.backprop(weights), sums(weights)), weights, moving)[1]

    for ours, wrong in zip(*rates(jax.random.normal(KEY, (6, 3)), jnp.ones((6, 2))), strict=True):
        np.testing.assert_allclose(ours, 0, atol=1e-12)
        assert jnp.abs(wrong).max() > 1
