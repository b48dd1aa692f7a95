"""Samples divided over devices: the same update, and nothing exchanged but their rates."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import nl_jax as nl

pytestmark = pytest.mark.slow

PARAMETERS = 120 * 200 + 200 + 200 * 4 + 4


@pytest.fixture(scope="module")
def found():
    """All results, from a process of eight devices."""
    command = [sys.executable, "-W", "error", "-m", "tests.estimators.devices"]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=400, check=True).stdout)


@pytest.fixture(scope="module")
def runs(found):
    """Of descent in place, by number of devices."""
    return {int(devices): of for devices, of in found["runs"].items()}


@pytest.fixture(scope="module")
def estimates(found):
    """Of gradients that are formed, on four devices."""
    return {name: of for name, of in found["estimates"].items() if "gap" in of}


def test_the_update_does_not_depend_on_the_devices(runs):
    assert sorted(runs) == [1, 2, 4, 8]
    for devices in (2, 4, 8):
        for name, of in runs[devices].items():
            np.testing.assert_allclose(of["rates"], runs[1][name]["rates"], rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(of["params"], runs[1][name]["params"], rtol=1e-6, atol=1e-6)


def test_nothing_but_rates_travels(runs):
    """An all-gather of the K rates and one of the K mean losses, of 8 bytes each, whatever the parameters, K and the
    devices are."""
    for devices, of_devices in runs.items():
        for name, of in of_devices.items():
            samples = int(name.split()[-1])
            if devices == 1:
                assert of["bytes"].keys() <= {"all-gather"}
            else:
                assert of["bytes"] == {"all-gather": 2 * 8 * samples}, name


def test_a_divided_estimate_is_the_undivided_one(estimates):
    """To rounding: of sums alone, or, where the batch is divided as well, of losses whose small difference is taken."""
    for name, of in estimates.items():
        assert of["gap"] < (1e-6 if name.startswith("two axes") else 1e-14), name


def test_what_is_exchanged_is_chosen(estimates):
    """K rates and K losses; of updates that are summed P numbers more, whatever K; of nodes their credit."""
    scalars, total = lambda samples: {"all-gather": 2 * 8 * samples}, 8 * PARAMETERS
    four = {name: of["bytes"] for name, of in estimates.items()}
    assert four["weights, rademacher, scalars, K = 8"] == scalars(8)
    assert four["weights, rademacher, sum, K = 16"] == scalars(16) | {"all-reduce": total}
    assert four["weights, rank one, sum, K = 8"] == scalars(8) | {"all-reduce": total}
    assert four["weights, rademacher, by default, K = 8"] == scalars(8) | {"all-reduce": total}
    assert four["weights, rank one, by default, K = 8"] == scalars(8)
    assert four["evolution strategy"] == scalars(8)  # 2 K losses: both sides of each direction
    assert four["nodes"] == four["nodes, forward gradient"] == {"all-reduce": 8 * (8 * (200 + 4) + 1)}  # and the loss
    assert four["reinforce"] == {"all-reduce": total + 8 * (8 + 1)}  # what each example is compared with, and the loss
    for within in ("set_mesh", "shard_map"):
        assert four[f"within {within}"] == four["weights, rademacher, by default, K = 8"]


def test_noise_is_drawn_where_parameters_lie(found):
    """Nothing travels, no device holds a whole parameter beside its part, and the noise is that of a whole one."""
    found = {name: of for name, of in found["estimates"].items() if "noise gap" in of}
    assert len(found) == 7
    for name, of in found.items():
        assert of["noise gap"] < 1e-14 < 1 < of["moved"], name
        assert of["bytes"] == {}, name
        assert of["stays"], name
    whole = found["(1024, 1072) by (None, 'model')"]
    assert whole["temporaries"] < 1 / 4  # of a parameter: a part of it, and some blocks


def test_layers_that_lie_over_devices(found):
    """Beside K rates and losses, a step exchanges what its two forward passes do, and not a parameter."""
    found = {name: of for name, of in found["estimates"].items() if "step gap" in of}
    assert len(found) == 3
    for name, of in found.items():
        assert of["step gap"] < 1e-6, name  # the small difference of losses of divided sums is taken
    signs, rank_one, explicit = found.values()
    (forward,) = signs["forward"].values()
    scalars = 2 * 8 * 4
    assert signs["bytes"] == {"all-gather": scalars, "all-reduce": 2 * forward}
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
    with pytest.raises(ValueError, match="sharding must be over an automatic axis"):
        nl.reinforce(
            nl.supervised(nl.mlp([2, 2], activation=jax.numpy.tanh).apply, nl.losses.cross_entropy),
            units=nl.units.bernoulli(), sharding=NamedSharding(mesh, PartitionSpec("samples")),
        )  # fmt: skip
    objective = lambda w, batch: (w * batch) ** 2
    for wrong in (mesh, NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("samples", None))):
        with pytest.raises(ValueError, match="sharding must divide the samples over one axis"):
            nl.weight_perturbation(objective, sharding=wrong)
