"""What counts as a whole number, and what messages show of what they were given."""

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


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (jnp.zeros(2, "uint32"), "ArrayImpl of dtype uint32"), (None, "None")],
    ids=["int", "raw key", "None"],
)
def test_what_is_no_key_is_shown(value, shown):
    with pytest.raises(ValueError, match=rf"key must be a typed key made by jax\.random\.key\(seed\), got {shown}$"):
        require.typed_key(value)


def test_an_estimator_in_the_place_of_its_factory_is_named_and_not_printed():
    estimator = nl.backprop(lambda w, batch: batch * w)
    with pytest.raises(ValueError, match="factory must take one argument, got a GradientEstimator: hand in"):
        require.takes("factory", estimator, 1, "hand in nl.backprop")


def test_a_function_of_more_arguments_is_told_what_it_lacks():
    def two(program, rule):
        return rule(program)

    with pytest.raises(ValueError, match=r"factory must take one argument, got two, missing .* 'rule': hand in"):
        require.takes("factory", two, 1, "hand in a partial")


def test_the_remedy_for_traced_numbers_is_theirs_alone():
    count = lambda value: require.positive_integer("restart_every", value)
    with pytest.raises(ValueError, match=r"got .*: nl\.sweep cannot try .*optax\.inject_hyperparams needs them in"):
        jax.eval_shape(count, jnp.int32(2))
    with pytest.raises(ValueError, match=r"got .*: nl\.sweep cannot try"):  # as a sweep passes them
        jax.eval_shape(count, jnp.float32(2))
    with pytest.raises(ValueError, match=r"got Array\(2\., dtype=float32\)$"):
        count(jnp.float32(2))
    assert nl.mlp([jnp.int32(3), np.int64(2)], activation=jnp.tanh).shapes["output"] == (2,)
