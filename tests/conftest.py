import atexit
import gc
import os
import shutil
import tempfile
from importlib.metadata import version

# Most of a test's time is machine code being optimised that runs once; what XLA makes of a program (its FLOPs, its
# memory) is decided before, and stays as it is. Set in the environment, for the processes that tests start as well.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")  # nobody reads where each operation was written
if version("jaxlib").startswith("0.10."):  # a quarter of the time to compile; XLA ends the process at flags it has lost
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1")

import jax
import pytest

jax.config.update("jax_disable_most_optimizations", True)  # here, should JAX have read its environment before
# Tests compile many small programs that other tests have compiled before, in this worker or another: all workers share
# a folder, which goes with the session. Processes that tests start do not: those of one run must compile alike.
COMPILED = "NL_JAX_TESTS_COMPILED"
if COMPILED not in os.environ:
    os.environ[COMPILED] = tempfile.mkdtemp(prefix="nl_jax_compiled_")
    atexit.register(shutil.rmtree, os.environ[COMPILED], ignore_errors=True)
jax.config.update("jax_compilation_cache_dir", os.environ[COMPILED])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_collection_modifyitems(items):
    """Documents and examples of docstrings run as a user would run them, and are slow for that."""
    for item in items:
        if isinstance(item, pytest.DoctestItem):
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish():
    """Tracing makes many objects and little garbage: what is imported is not searched for it, the rest seldom."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)


@pytest.fixture(autouse=True)
def strict():
    """Silent promotion hides mistakes of shape and precision: here it is an error."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def x64():
    """float64 for tests of algebra."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def lenient(strict):
    """JAX's own promotion rules, for other libraries' models and optimizers that rely on them."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
