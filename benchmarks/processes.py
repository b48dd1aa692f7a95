"""Joins processes on this machine by JAX's runtime, like those of a cluster."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax


def joined(command: Callable[[int], Sequence[str]], processes: int, seconds: float) -> list[tuple[int, str, str]]:
    """Starts Python processes, each with one CPU device, and waits for all of them.

    Args:
      command: `command(number)` is what follows `python` in a process's command line. Its number, the number of
        processes and a free port are appended; it must call `join` with them before it makes any key or network.
      processes: number of processes.
      seconds: time limit of a process.

    Returns:
      Exit code, output and errors of each; the exit code of a killed process is -9.

    Raises:
      subprocess.TimeoutExpired: if a process takes longer; all are killed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The other flags are this process's, since the exact bits of results depend on how code is compiled.
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=1"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    with contextlib.ExitStack() as stack:
        started = []
        for number in range(processes):
            process = subprocess.Popen(
                [sys.executable, *command(number), str(number), str(processes), str(port)], env=environment, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
            stack.callback(process.kill)
            started.append(process)
        # All are read at once: a process with unread output would block, and the others wait for it at their end.
        with ThreadPoolExecutor(processes) as readers:
            ended = list(readers.map(lambda process: process.communicate(timeout=seconds), started))
    return [(process.returncode, *texts) for process, texts in zip(started, ended, strict=True)]


def join(number: str, processes: str, port: str) -> None:
    """Joins this process to the others through the loopback address."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        f"127.0.0.1:{port}", int(processes), int(number), initialization_timeout=60, heartbeat_timeout_seconds=10
    )
