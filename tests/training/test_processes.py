"""A run over two processes: the bits of one, also when one of them is killed and both are started again."""

import json

import pytest

import nl_jax as nl
from benchmarks.processes import joined
from tests.training.processes import digest, first_params, make_network, run

pytestmark = pytest.mark.slow


def launched(folder, dies_at=0, processes=2):
    """Exit codes, outputs and errors of processes, of which the last kills itself after a step; 0 for none."""
    command = lambda number: [
        "-m", "tests.training.processes", str(folder), str(dies_at if number == processes - 1 else 0)
    ]  # fmt: skip
    return joined(command, processes, seconds=150)


def found(folder):
    ended = launched(folder)
    assert all(code == 0 for code, _, _ in ended), ended
    return [json.loads(out.splitlines()[-1]) for _, out, _ in ended]


def test_two_processes_and_a_crash_end_on_the_bits_of_one(tmp_path):
    """The other process is aborted by the runtime: the run goes on by being launched again, from its log."""
    expected = digest(run(tmp_path / "one")[1])
    (survivor, _, _), (killed, _, _) = launched(tmp_path / "log", dies_at=6)
    assert killed == -9
    assert survivor != 0
    again = found(tmp_path / "log")
    assert all(0 < of["began_at"] < 12 for of in again)
    assert [of["params"] for of in again] == [expected] * 2
    # Both logs are the same, and a late joiner replays either to the same bits.
    logs = [(tmp_path / name / "updates.bin").read_bytes() for name in ("one", "log")]
    assert logs[0] == logs[1]
    assert digest(nl.replay(first_params(make_network()), tmp_path / "log")) == expected
