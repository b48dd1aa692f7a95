import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nl_jax as nl
from nl_jax._core.numerics import dot, floating_dtype, in_one_dtype, unit_vector, wide_dtype


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
        assert dtypes("float64", "complex64") == {jnp.dtype("complex128")}
    assert dtypes("float16", "complex64") == {jnp.dtype("complex64")}


def test_products_and_cosines_of_trees_of_any_dtypes_and_of_none():
    ones = jnp.ones(100_000)
    np.testing.assert_allclose([dot(ones, ones) / 1e5, nl.diagnostics.cosine(ones, ones)], 1, rtol=1e-5)
    with jax.enable_x64(True):
        a, b = {"w": jnp.ones(3, "float32"), "b": jnp.zeros(2, "float64")}, {"w": jnp.ones(3), "b": jnp.zeros(2)}
        np.testing.assert_allclose(nl.diagnostics.cosine(a, b), 1, rtol=1e-6)
        np.testing.assert_allclose(nl.diagnostics.angle(a, b), 0, atol=1e-3)
    assert nl.diagnostics.cosine({}, {}) == 0
    assert in_one_dtype({}) == {}


@pytest.mark.parametrize("size", [1e-25, 1.0, 1e25])
def test_unit_vectors_of_any_length(size):
    np.testing.assert_allclose(unit_vector(np.array([3, -4], np.float32) * size), [0.6, -0.8], rtol=1e-6)
