"""A run over two processes: the bits of one, also when one of them is killed and both are started again."""

import contextlib
import json
import os
import socket
import subprocess
import sys

import nl_jax as nl
from tests.training.processes import digest, first_params, make_network, run


def launched(folder, dies_at=0, processes=2, seconds=150):
    """Exit codes and outputs of processes, of which the last kills itself after a step; 0 for none."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # One device each; the other flags are this process's, for bits depend on how code is compiled.
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=1"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    started = []
    with contextlib.ExitStack() as stack:
        for number in range(processes):
            dies = dies_at if number == processes - 1 else 0
            arguments = [str(x) for x in (port, number, processes, folder, dies)]
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.training.processes", *arguments], env=environment, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
            stack.callback(process.kill)
            started.append(process)
        ended = [process.communicate(timeout=seconds) for process in started]
    return [process.returncode for process in started], ended


def found(folder):
    codes, ended = launched(folder)
    assert codes == [0, 0], ended[0][1] + ended[1][1]
    return [json.loads(out.splitlines()[-1]) for out, _ in ended]


def test_two_processes_and_a_crash_end_on_the_bits_of_one(tmp_path):
    """The other process is aborted by the runtime: the run goes on by being launched again, from its log."""
    expected = digest(run(tmp_path / "one")[1])
    codes, _ = launched(tmp_path / "log", dies_at=6)
    assert codes[1] == -9
    assert codes[0] != 0
    again = found(tmp_path / "log")
    assert all(0 < of["began_at"] < 12 for of in again)
    assert [of["params"] for of in again] == [expected] * 2
    # Both logs are the same, and a late joiner replays either to the same bits.
    logs = [(tmp_path / name / "updates.bin").read_bytes() for name in ("one", "log")]
    assert logs[0] == logs[1]
    assert digest(nl.replay(first_params(make_network()), tmp_path / "log")) == expected
