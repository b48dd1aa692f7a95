import math

import jax
import numpy as np
import pytest

from nl_jax import batching

KEY = jax.random.key(5)
ORDERS = [jax.jit(order, static_argnums=(2, 3, 4)) for order in (batching.shuffled, batching.uniform)]
shuffled, uniform = ORDERS


@pytest.mark.slow
@pytest.mark.parametrize(("examples", "batch"), [(6, 2), (7, 3), (4, 4)])
def test_order_depends_on_the_step_alone(examples, batch):
    """From any first step on, over the ends of one pass or several."""
    for order in ORDERS:
        whole = np.asarray(order(KEY, 0, 14, examples, batch))
        assert whole.shape == (14, batch)
        assert whole.min() >= 0
        assert whole.max() < examples
        for first in range(10):
            np.testing.assert_array_equal(order(KEY, first, 5, examples, batch), whole[first : first + 5])


def test_a_pass_sees_no_example_twice():
    indices = np.asarray(shuffled(KEY, 0, 6, 10, 3))
    for one_pass in (indices[:3], indices[3:]):
        assert len(np.unique(one_pass)) == 9
    assert not np.array_equal(indices[:3], indices[3:])


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_all_orders_are_as_likely_as_each_other(size):
    """Pearson's statistic against its standard deviation; few rounds are the wrong twin."""

    def deviation(**settings):
        passes, orders = 24_000, math.factorial(size)
        positions = np.broadcast_to(np.arange(size), (passes, size))
        permuted = lambda numbers, at: batching._permuted(batching._words(KEY, numbers, **settings), at, size)
        found = np.asarray(jax.jit(permuted)(np.arange(passes), positions))
        assert np.array_equal(np.sort(found), positions)
        counts = np.unique(found, axis=0, return_counts=True)[1]
        expected = passes / orders
        statistic = ((counts - expected) ** 2 / expected).sum() + (orders - len(counts)) * expected
        return (statistic - (orders - 1)) / (2 * (orders - 1)) ** 0.5

    assert abs(deviation()) < 4
    assert deviation(num_rounds=4) > 20


def test_neighbours_are_no_likelier_to_stay_neighbours():
    def neighbours(**settings):
        """How many pairs of neighbours are neighbours after the permutation, over their number expected, 2 a pass."""
        passes, size = 1000, 200
        positions = np.broadcast_to(np.arange(size), (passes, size))
        permuted = lambda numbers, at: batching._permuted(batching._words(KEY, numbers, **settings), at, size)
        found = np.asarray(jax.jit(permuted)(np.arange(passes), positions))
        return (np.abs(np.diff(found, axis=1)) == 1).sum() / (passes * 2 * (size - 1) / size)

    assert abs(neighbours() - 1) < 4 / 2000**0.5
    assert neighbours(num_rounds=4) > 1.5


def test_cost_does_not_depend_on_the_number_of_examples():
    def cost(examples):
        compiled = shuffled.lower(KEY, 0, 20, examples, 10).compile()
        return compiled.cost_analysis()["flops"], compiled.memory_analysis().temp_size_in_bytes

    assert cost(1_000_000) == cost(1000)


def test_uniform_is_uniform():
    counts = np.bincount(np.ravel(uniform(KEY, 0, 5000, 4, 2)), minlength=4)
    assert np.max(np.abs(counts - 2500)) < 5 * (10_000 * 0.25 * 0.75) ** 0.5


@pytest.mark.parametrize("order", ORDERS, ids=["shuffled", "uniform"])
def test_keys_differ(order):
    assert not np.array_equal(order(KEY, 0, 4, 50, 5), order(jax.random.key(6), 0, 4, 50, 5))
