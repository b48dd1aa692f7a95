import jax
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nl_jax import batching

KEY = jax.random.key(5)
ORDERS = [jax.jit(order, static_argnums=(2, 3, 4)) for order in (batching.shuffled, batching.uniform)]
shuffled, uniform = ORDERS


@settings(max_examples=4, deadline=None)
@given(examples=st.integers(1, 12), batch=st.integers(1, 12), first=st.integers(0, 30), steps=st.integers(1, 8))
@example(examples=6, batch=2, first=2, steps=2)  # the last step alone lies in the second pass
def test_order_depends_on_the_step_alone(examples, batch, first, steps):
    batch = min(batch, examples)
    for order in ORDERS:
        whole = np.asarray(order(KEY, 0, first + steps, examples, batch))
        part = np.asarray(order(KEY, first, steps, examples, batch))
        assert whole.shape == (first + steps, batch)
        np.testing.assert_array_equal(part, whole[first:])
        assert whole.min() >= 0
        assert whole.max() < examples


def test_a_pass_sees_no_example_twice():
    indices = np.asarray(shuffled(KEY, 0, 6, 10, 3))
    for one_pass in (indices[:3], indices[3:]):
        assert len(np.unique(one_pass)) == 9
    assert not np.array_equal(indices[:3], indices[3:])


def test_uniform_is_uniform():
    counts = np.bincount(np.ravel(uniform(KEY, 0, 5000, 4, 2)), minlength=4)
    assert np.max(np.abs(counts - 2500)) < 5 * (10_000 * 0.25 * 0.75) ** 0.5


@pytest.mark.parametrize("order", ORDERS, ids=["shuffled", "uniform"])
def test_keys_differ(order):
    assert not np.array_equal(order(KEY, 0, 4, 50, 5), order(jax.random.key(6), 0, 4, 50, 5))
