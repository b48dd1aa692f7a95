"""Samples divided over devices: the same update, and nothing exchanged but their rates."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import nl_jax as nl

PARAMETERS = 120 * 200 + 200 + 200 * 4 + 4


@pytest.fixture(scope="module")
def processes():
    """Results by number of devices, each from a process of its own."""
    command = [sys.executable, "-W", "error", "-m", "tests.estimators.devices"]
    started = {n: subprocess.Popen([*command, str(n)], stdout=subprocess.PIPE, text=True) for n in (1, 4)}
    return {n: json.loads(process.communicate(timeout=300)[0]) for n, process in started.items()}


@pytest.fixture(scope="module")
def runs(processes):
    """Of descent in place."""
    return {n: {name: of for name, of in all.items() if "rates" in of} for n, all in processes.items()}


@pytest.fixture(scope="module")
def estimates(processes):
    """Of gradients that are formed, on four devices."""
    return {name: of for name, of in processes[4].items() if "gap" in of}


def test_the_update_does_not_depend_on_the_devices(runs):
    for name, one in runs[1].items():
        np.testing.assert_allclose(runs[4][name]["rates"], one["rates"], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(runs[4][name]["params"], one["params"], rtol=1e-6, atol=1e-6)


def test_nothing_but_rates_travels(runs):
    """An all-gather of the K rates and one of the K mean losses, of 8 bytes each, however many parameters there are."""
    for name, found in runs[4].items():
        samples = int(name.split()[-1])
        assert found["bytes"] == {"all-gather": 2 * 8 * samples}, name
        assert runs[1][name]["bytes"].keys() <= {"all-gather"}


def test_a_divided_estimate_is_the_undivided_one(estimates):
    """To rounding: of sums alone, or, where the batch is divided as well, of losses whose small difference is taken."""
    for name, of in estimates.items():
        assert of["gap"] < (1e-6 if name.startswith("two axes") else 1e-14), name


def test_what_is_exchanged_is_chosen(estimates):
    """K rates and K losses; of updates that are summed P numbers more, whatever K; of nodes their credit."""
    scalars, total = lambda samples: {"all-gather": 2 * 8 * samples}, 8 * PARAMETERS
    four = {name: of["bytes"] for name, of in estimates.items()}
    for samples in (8, 16):
        assert four[f"weights, gaussian, scalars, K = {samples}"] == scalars(samples)
        assert four[f"weights, gaussian, sum, K = {samples}"] == scalars(samples) | {"all-reduce": total}
    assert four["weights, rank one, sum, K = 8"] == scalars(8) | {"all-reduce": total}
    assert four["weights, gaussian, by default, K = 8"] == scalars(8) | {"all-reduce": total}
    assert four["weights, rank one, by default, K = 8"] == scalars(8)
    assert four["evolution strategy"] == scalars(8)  # 2 K losses: both sides of each direction
    assert four["nodes"] == four["nodes, forward gradient"] == {"all-reduce": 8 * (8 * (200 + 4) + 1)}  # and the loss
    for within in ("set_mesh", "shard_map"):
        assert four[f"within {within}"] == four["weights, gaussian, sum, K = 8"]


def test_noise_is_drawn_where_parameters_lie(processes):
    """Nothing travels, no device holds a whole parameter beside its part, and the noise is that of a whole one."""
    found = {name: of for name, of in processes[4].items() if "noise gap" in of}
    assert len(found) == 6
    for name, of in found.items():
        assert of["noise gap"] < 1e-14 < 1 < of["moved"], name
        assert of["bytes"] == {}, name
        assert of["stays"], name
    whole = found["(1024, 1028) by (None, 'model')"]
    assert whole["temporaries"] < 1 / 4  # of a parameter: a part of it, and some blocks


def test_layers_that_lie_over_devices(processes):
    """Beside K rates and losses, a step exchanges what its two forward passes do, and not a parameter."""
    found = {name.removeprefix("layers, "): of for name, of in processes[4].items() if "step gap" in of}
    assert len(found) == 3
    for name, of in found.items():
        assert of["step gap"] < 1e-6, name  # the small difference of losses of divided sums is taken
    gaussian, rank_one, explicit = found.values()
    (forward,) = gaussian["forward"].values()
    scalars = 2 * 8 * 4
    assert gaussian["bytes"] == {"all-gather": scalars, "all-reduce": 2 * forward}
    # x W of the two samples of a device at once, x A as well
    assert rank_one["bytes"].keys() == {"all-gather", "all-reduce"}
    assert rank_one["bytes"]["all-gather"] == scalars
    assert rank_one["bytes"]["all-reduce"] < 3.1 * forward
    assert sum(explicit["bytes"].values()) <= 2 * sum(explicit["forward"].values())


@pytest.mark.parametrize(
    "wrong", ["model", {"w": None}, {"v": NamedSharding(jax.make_mesh((1,), ("a",)), PartitionSpec())}]
)
def test_layouts_are_trees_like_the_parameters(wrong):
    estimator = nl.weight_perturbation(lambda params, batch: (params["w"] * batch) ** 2, params_sharding=wrong)
    with pytest.raises(ValueError, match="params_sharding must be a tree like the parameters"):
        estimator.estimate(jax.random.key(0), (), {"w": jax.numpy.ones(1)}, jax.numpy.ones(1))


def test_what_is_refused():
    with pytest.raises(ValueError, match="needs sharding="):
        nl.weight_perturbation(lambda w, batch: (w * batch) ** 2, sum_updates=True)
    mesh = jax.make_mesh((1,), ("samples",))
    objective = lambda w, batch: (w * batch) ** 2
    for wrong in (mesh, NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("samples", None))):
        with pytest.raises(ValueError, match="sharding must divide the samples over one axis"):
            nl.weight_perturbation(objective, sharding=wrong)
