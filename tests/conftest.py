import jax
import pytest

# Silent promotion hides mistakes of shape and precision: here it is an error.
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def x64():
    """float64 for tests of algebra."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def lenient():
    """JAX's own promotion rules, for models of other libraries that rely on them."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
