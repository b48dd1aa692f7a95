"""What counts as a whole number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nl_jax as nl
from nl_jax._core import require


@pytest.mark.parametrize("value", [2, np.int64(2), np.array(2), jnp.int32(2)], ids=repr)
def test_integer_scalars_are_whole_numbers(value):
    found = require.positive_integer("batch_size", value)
    assert (type(found), found) == (int, 2)


@pytest.mark.parametrize("value", [0, True, 2.0, "2", None, jnp.float32(2), jnp.ones(1, int)], ids=repr)
def test_others_are_not(value):
    with pytest.raises(ValueError, match=r"batch_size must be a whole number of at least 1, got [^:]*$"):
        require.positive_integer("batch_size", value)


def test_zero_counts_where_it_may():
    assert require.nonnegative_integer("steps", 0) == 0
    with pytest.raises(ValueError, match="steps must be a whole number of at least 0, got -1"):
        require.nonnegative_integer("steps", -1)


def test_the_remedy_for_traced_numbers_is_theirs_alone():
    count = lambda value: require.positive_integer("restart_every", value)
    with pytest.raises(ValueError, match=r"got .*: nl\.sweep cannot try .*optax\.inject_hyperparams needs them in"):
        jax.eval_shape(count, jnp.int32(2))
    with pytest.raises(ValueError, match=r"got .*: nl\.sweep cannot try"):  # as a sweep passes them
        jax.eval_shape(count, jnp.float32(2))
    with pytest.raises(ValueError, match=r"got Array\(2\., dtype=float32\)$"):
        count(jnp.float32(2))
    assert nl.mlp([jnp.int32(3), np.int64(2)], activation=jnp.tanh).shapes["output"] == (2,)
