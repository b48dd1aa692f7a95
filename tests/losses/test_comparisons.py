"""What holds for every loss that compares outputs and targets element by element."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nl_jax import losses

COMPARISONS = {
    "half_squared_error": losses.half_squared_error,
    "p_norm(1.5)": losses.p_norm(1.5),
    "kullback_leibler": losses.kullback_leibler,
    "binary_kullback_leibler": losses.binary_kullback_leibler,
    "normalised_kullback_leibler": losses.normalised_kullback_leibler,
    "binary_cross_entropy": losses.binary_cross_entropy,
}
X = np.linspace(0.1, 0.9, 12).reshape(2, 3, 2)
TARGETS = np.linspace(0.7, 0.2, 12).reshape(2, 3, 2)


@pytest.mark.parametrize("name", COMPARISONS)
def test_one_value_per_example_in_the_outputs_dtype(name):
    """Summed over every axis but the first, whatever the other examples are; the derivative keeps the dtype too."""
    loss, dtypes = COMPARISONS[name], (jnp.float32, jnp.bfloat16)

    def evaluate(x, targets):
        alone = jax.vmap(lambda x, t: loss(x.reshape(1, 6), t.reshape(1, 6))[0])(x, targets)
        return loss(x, targets), jax.grad(lambda x: loss(x, targets).sum())(x), alone

    both = jax.jit(lambda *arrays: [evaluate(*(a.astype(dtype) for a in arrays)) for dtype in dtypes])
    for dtype, (value, derivative, alone) in zip(dtypes, both(X, TARGETS), strict=True):
        assert value.shape == (2,)
        assert value.dtype == derivative.dtype == dtype
        # Of one rounding of the loss, whose terms are up to ten times its size.
        value, alone = (np.asarray(found, np.float32) for found in (value, alone))
        np.testing.assert_allclose(value, alone, rtol=10 * float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize("name", COMPARISONS)
@pytest.mark.parametrize(("outputs", "targets"), [((2, 3), (2,)), ((2, 3), (2, 1)), ((2, 3), (1, 3)), ((), ())])
def test_shapes_are_never_broadcast(name, outputs, targets):
    compares = f"{name.removeprefix('normalised_')} compares arrays of one shape [batch, …]"
    message = f"{compares}; got outputs {outputs} and targets {targets} (labels need jax.nn.one_hot first)"
    with pytest.raises(ValueError, match=re.escape(message)):
        COMPARISONS[name](np.ones(outputs), np.ones(targets))


@pytest.mark.parametrize("name", COMPARISONS)
def test_a_nan_is_not_lost(name):
    loss, x, targets = jax.jit(COMPARISONS[name]), X.copy(), TARGETS.copy()
    assert not np.isnan(loss(x, targets)).any()
    x[0, 1, 1] = targets[1, 0, 0] = np.nan
    assert np.isnan(loss(x, targets)).all()


@pytest.mark.parametrize("name", COMPARISONS)
@pytest.mark.parametrize("dtype", [bool, jnp.uint8, jnp.int32])
@pytest.mark.usefixtures("lenient")
def test_whole_numbers_are_floats(name, dtype):
    """The difference of unsigned integers would wrap."""
    outputs, targets = np.array([[1, 0, 1]], dtype), np.array([[1, 1, 1]], dtype)
    loss = COMPARISONS[name](outputs, targets)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, COMPARISONS[name](outputs.astype("f4"), targets.astype("f4")))
