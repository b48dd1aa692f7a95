import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nl_jax._core.numerics import floating_dtype, in_one_dtype, unit_vector, wide_dtype


@pytest.mark.parametrize(
    ("given", "floating", "wide"),
    [
        ("bool", "float32", "float32"),
        ("uint8", "float32", "float32"),
        ("int32", "float32", "float32"),
        ("bfloat16", "bfloat16", "float32"),
        ("float16", "float16", "float32"),
        ("float32", "float32", "float32"),
        ("float64", "float64", "float64"),
    ],
)
def test_dtypes_to_compute_and_to_sum_in(given, floating, wide):
    assert floating_dtype(jnp.dtype(given)) == floating
    assert wide_dtype(jnp.dtype(given)) == wide


def test_one_dtype_is_the_widest_of_floats():
    dtypes = lambda *given: {leaf.dtype for leaf in in_one_dtype([jnp.zeros(2, dtype) for dtype in given])}
    assert dtypes("float16", "bfloat16", "int32") == {jnp.dtype("float32")}
    with jax.enable_x64(True):
        assert dtypes("float16", "float64") == dtypes("int8", "bool") == {jnp.dtype("float64")}
        assert dtypes("float32", "int64") == {jnp.dtype("float32")}


@pytest.mark.parametrize("size", [1e-25, 1.0, 1e25])
def test_unit_vectors_of_any_length(size):
    np.testing.assert_allclose(unit_vector(np.array([3, -4], np.float32) * size), [0.6, -0.8], rtol=1e-6)
