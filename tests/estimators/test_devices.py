"""Samples divided over devices: the same update, and nothing exchanged but their rates."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import nl_jax as nl


@pytest.fixture(scope="module")
def runs():
    """Results by number of devices, each from a process of its own."""
    command = [sys.executable, "-m", "tests.estimators.devices"]
    started = {n: subprocess.Popen([*command, str(n)], stdout=subprocess.PIPE, text=True) for n in (1, 4)}
    return {n: json.loads(process.communicate(timeout=300)[0]) for n, process in started.items()}


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


def test_what_is_refused():
    mesh = jax.make_mesh((1,), ("samples",))
    objective = lambda w, batch: (w * batch) ** 2
    for wrong in (mesh, NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("samples", None))):
        with pytest.raises(ValueError, match="sharding must divide the samples over one axis"):
            nl.weight_perturbation(objective, sharding=wrong)
