"""Data laid over a mesh, with explicit axes and automatic ones."""

import json
import os
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_a_mesh_of_four_devices(tmp_path):
    """The same run as on one device, compiled once, whatever the axes and whether they divide the batch or not."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.training.meshes", str(tmp_path)],
        env={**os.environ, "XLA_FLAGS": flags}, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert len(found) == 6
    assert all(case["compiled"] == 1 for case in found), found
