"""Iterations that stop when they have converged, and fail when they diverge."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

import nl_jax as nl
from nl_jax.estimators.lagrangian.relaxation import Relaxation, distance, relax

REMEDY = "step_size=3.0: choose a smaller one"
DIVERGED = f"the inner iterations diverged at {REMEDY}"


def multiply(factor, start, num_steps=100, tolerance=0.0, remedy=REMEDY):
    """x ← factor x, the residual |x|: 1, |factor|, |factor|², …"""
    return relax(lambda x: (factor * x, jnp.abs(x)), start, Relaxation(num_steps, tolerance), remedy)


def test_stops_once_the_residual_has_fallen_to_the_tolerance():
    half = lambda **settings: multiply(0.5, jnp.float32(3.0), **settings)
    runs = {"early": {"tolerance": 2**-5}, "all": {"num_steps": 10}, "cut": {"num_steps": 3, "tolerance": 2**-5}}
    more = {"num_steps": 1000, "tolerance": 2**-5}
    found = jax.jit(lambda: {name: half(**settings)[:2] for name, settings in {**runs, "more": more}.items()})()
    # The sixth step is given 3/2⁵, whose residual is small enough: the one it makes is the last.
    assert {name: (float(x), int(taken)) for name, (x, taken) in found.items()} == {
        "early": (3 / 2**6, 6),
        "all": (3 / 2**10, 10),
        "cut": (3 / 2**3, 3),
        "more": (3 / 2**6, 6),  # more steps change nothing
    }


def test_one_program_takes_any_number_of_steps():
    halved = jax.jit(lambda steps: multiply(0.5, jnp.float32(1.0), num_steps=steps))
    for steps in (1, 3):
        x, taken, _ = halved(jnp.int32(steps))
        assert (float(x), int(taken)) == (0.5**steps, steps)
    assert Relaxation(jnp.int32(3)).checked().num_steps == 3


def test_what_is_stationary_stays():
    x, taken, _ = multiply(1.0, jnp.float32(0.0))
    assert (float(x), int(taken)) == (0, 1)


@pytest.mark.parametrize("run", ["jit", "vmap", "vmap of jit"])
def test_compiled_iterations_that_diverge_are_a_failure_and_nan(run):
    factors = jnp.float32(-3) if run == "jit" else jnp.array([0.5, -3.0])
    grown = functools.partial(multiply, num_steps=9)  # the last residual seen is 3⁸ = 6561
    compiled = {"jit": jax.jit(grown), "vmap": jax.jit(jax.vmap(grown)), "vmap of jit": jax.vmap(jax.jit(grown))}[run]
    x, _, failures = compiled(factors, jnp.ones_like(factors))
    np.testing.assert_array_equal(x, np.where(factors < 0, np.nan, 0.5**9))
    np.testing.assert_array_equal(failures[0].occurred, factors < 0)  # each run its own
    with pytest.raises(FloatingPointError, match=f"^{DIVERGED}$"):
        nl.raise_if_failed(failures)


def test_eager_iterations_that_diverge_raise_at_once():
    with pytest.raises(FloatingPointError, match=f"^{DIVERGED}$"):
        multiply(3.0, jnp.float32(1.0), num_steps=9)


def test_only_numbers_become_nan():
    """An optimizer's count of its steps is an integer, and stays what it was."""
    step = lambda x: ({"x": 3 * x["x"], "z": 1j * x["z"], "count": x["count"] + 1}, jnp.abs(x["x"]))
    start = {"x": jnp.float32(1), "z": jnp.complex64(1), "count": jnp.int32(0)}
    last = jax.jit(lambda: relax(step, start, Relaxation(9), REMEDY).carry)()
    assert np.isnan([last["x"], last["z"]]).all()
    assert int(last["count"]) == 9


def test_growth_on_the_way_is_not_divergence():
    """Up to a thousandfold, or any where the caller knows that all ends well; nor is trouble that was there before."""

    def runs():
        grown = multiply(3.0, jnp.float32(1.0), num_steps=7)  # the last residual seen is 3⁶ = 729
        trusted = multiply(3.0, jnp.float32(1.0), num_steps=20, remedy=None)
        broken = multiply(3.0, jnp.float32(jnp.nan), num_steps=5)
        return grown, trusted, broken

    grown, trusted, broken = jax.jit(runs)()
    np.testing.assert_allclose((grown.carry, trusted.carry), (3.0**7, 3.0**20), rtol=1e-6)
    assert np.isnan(broken.carry)
    assert int(broken.taken) == 5
    assert not [failure for run in (grown, trusted, broken) for failure in run.failures if failure.occurred]


def test_distance_is_the_root_mean_square_over_examples():
    gradients = {"low": jnp.full((4, 2, 3), 2.0), "high": jnp.ones((4, 1))}
    np.testing.assert_allclose(distance(gradients, jnp.zeros((4, 5))), 5.0)  # √(6·2² + 1)
    assert float(distance({})) == 0


def test_distance_of_layers_in_half_precision():
    """Squares that float16 cannot hold, and layers of several dtypes."""
    gradients = {"low": jnp.full((4, 2), 300.0, jnp.float16), "high": jnp.full((4, 1), 100.0)}
    np.testing.assert_allclose(distance(gradients), np.sqrt(2 * 300**2 + 100**2), rtol=1e-6)


@pytest.mark.slow
def test_runs_on_a_device_s_own_part_of_the_batch():
    """The residual varies over the devices of a `jax.shard_map`, as what is iterated does."""
    mesh = jax.make_mesh((1,), ("devices",), axis_types=(AxisType.Auto,))
    part = PartitionSpec("devices")

    def halved(x):
        carry, _, (failure,) = relax(lambda x: (x / 2, distance(x)), x, Relaxation(3), REMEDY)
        return carry, jnp.expand_dims(failure.occurred, 0)

    run = jax.shard_map(halved, mesh=mesh, in_specs=part, out_specs=part)
    for found, failed in (jax.jit(run)(jnp.ones((2, 3))), run(jnp.ones((2, 3)))):
        np.testing.assert_array_equal(found, np.full((2, 3), 1 / 8))
        np.testing.assert_array_equal(failed, [False])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((0, 0.0), "num_steps must be a whole number of at least 1, got 0"),
        ((5, -0.1), "tolerance must be a finite Python number of at least 0, got -0.1"),
        ((5, 1), "tolerance must be below 1, a fraction of the first residual, got 1"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Relaxation(*settings).checked()
