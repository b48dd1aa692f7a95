"""Processes joined by JAX's runtime on this machine, as those of a cluster are by its network."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax


def joined(command: Callable[[int], Sequence[str]], processes: int, seconds: float) -> list[tuple[int, str, str]]:
    """Starts processes of Python, each with one CPU device, and waits for all of them.

    Args:
      command: `command(number)`, what follows `python` in a process's command; its own number, the number of processes
        and a free port are appended, for it to call `join` with before any key or network is made.
      processes: how many.
      seconds: the most that one may take.

    Returns:
      Exit code, output and errors of each; the exit code is -9 of one that was killed.

    Raises:
      subprocess.TimeoutExpired: if one takes longer; all are killed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The other flags are this process's, for bits depend on how code is compiled.
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
        # All at once: one whose output nobody reads would stop, and the others wait for it at their end.
        with ThreadPoolExecutor(processes) as readers:
            ended = list(readers.map(lambda process: process.communicate(timeout=seconds), started))
    return [(process.returncode, *texts) for process, texts in zip(started, ended, strict=True)]


def join(number: str, processes: str, port: str) -> None:
    """Joins this process to the others, through the loopback address."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        f"127.0.0.1:{port}", int(processes), int(number), initialization_timeout=60, heartbeat_timeout_seconds=10
    )
