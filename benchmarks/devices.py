"""Cost and benefit of dividing samples over devices: difference of gradients, bytes exchanged and seconds.

python -m benchmarks.devices --help
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from jax.sharding import NamedSharding, PartitionSpec

import nl_jax as nl
from benchmarks.problem import problem
from benchmarks.processes import join, joined
from benchmarks.report import aligned
from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.results import Folder

LAWS = {"Gaussian": nl.directions.gaussian(), "rank one": nl.directions.rank_one()}
WAYS = {"scalars": False, "sum": True}
NODES, WEIGHTS = "nodes, Gaussian", "weights, {}, {}"
ESTIMATES = (NODES, *(WEIGHTS.format(law, way) for law in LAWS for way in WAYS))


@dataclass(frozen=True)
class Config:
    """Estimate one gradient with its samples divided over forced CPU devices, of one process or of several.

    The devices share one machine's cores. The figures show what is exchanged, whether all agree, and which exchange is
    cheaper here; they do not show how a cluster scales. Writes devices.json to --out. The exit code is 1 if different
    numbers of devices disagree.
    """

    devices: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of devices of one process; the others are compared with the first."""
    processes: tuple[int, ...] = (2,)
    """Numbers of processes of one device each, joined by gloo through the loopback address; empty for none."""
    sizes: tuple[int, ...] = (512, 512, 10)
    """Units of the network's layers."""
    batch_size: int = 32
    """Examples."""
    estimates: tuple[str, ...] = ESTIMATES
    """Estimates to measure."""
    samples: tuple[int, ...] = (8,)
    """K, random directions per estimate: multiples of all numbers of devices and processes."""
    rounds: int = 3
    """Repeats; the median is reported."""
    sigma: float = 1e-2
    """σ of the noise. It does not affect time. The estimators' default σ is so small that the losses' float32 rounding
    errors, which depend on the number of devices, would show."""
    tolerance: float = 1e-4
    """Largest difference between gradients, relative to the largest component, that counts as agreement."""
    seconds: float = 300
    """Time limit of a process, in seconds."""
    out: Path = Path("results/benchmarks/devices")
    """Folder for the results."""


def run(config: Config) -> list[dict[str, Any]]:
    """Starts the processes one after the other, compares, prints and saves; returns a row for each estimate.

    Raises:
      ExperimentError: if different numbers of devices disagree, a process fails, or samples cannot be divided.
    """
    wrong = [(k, n) for k in config.samples for n in (*config.devices, *config.processes) if n < 1 or k % n]
    if wrong or not config.devices:
        raise ExperimentError(
            f"every one of --samples must be a multiple of all --devices and --processes; not so (K, number): {wrong}"
        )
    unknown = set(config.estimates) - set(ESTIMATES)
    if unknown or not config.estimates:
        raise ExperimentError(f"--estimates must be of {'; '.join(ESTIMATES)}; got {'; '.join(sorted(unknown))}")
    folder = Folder(config.out, config, outputs=("devices.json",))
    rows = [row for devices in config.devices for row in _of_one_process(config, devices)]
    rows += [row for processes in config.processes for row in _of_processes(config, processes)]
    for row in rows:
        first = next(r for r in rows if (r["estimate"], r["samples"]) == (row["estimate"], row["samples"]))
        row["difference"] = float(np.max(np.abs(np.subtract(row["some"], first["some"]))) / first["largest"])
    heads = ("estimate", "K", "devices", "processes", "difference", "bytes exchanged", "ms")
    place = lambda row: (row["estimate"], row["samples"], row["processes"], row["devices"])
    table = [heads, *(_cells(row) for row in sorted(rows, key=place))]
    print("\n".join(aligned(table)))
    folder.data("devices", [{name: of for name, of in row.items() if name != "some"} for row in rows])
    print(f"data: {folder.path} (devices.json, config.json)")
    apart = [row for row in rows if not row["difference"] <= config.tolerance]
    if apart:
        named = ", ".join(
            f"{row['estimate']}, K = {row['samples']}, {row['devices']} devices of {row['processes']} processes"
            for row in apart
        )
        raise ExperimentError(f"gradients differ by more than {config.tolerance}: {named}")
    return rows


def _cells(row: dict[str, Any]) -> list[str]:
    counts = [str(row[name]) for name in ("samples", "devices", "processes")]
    size = f"{sum(row['bytes'].values()):,}"
    return [row["estimate"], *counts, f"{row['difference']:.1e}", size, f"{1e3 * row['seconds']:.1f}"]


_OF_A_CHILD = ("estimates", "sizes", "batch_size", "samples", "sigma", "rounds")


def _child(config: Config) -> list[str]:
    settings = {name: getattr(config, name) for name in _OF_A_CHILD}
    return ["-m", "benchmarks.devices", "--child", json.dumps(settings)]


def _of_one_process(config: Config, devices: int) -> list[dict[str, Any]]:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    try:
        ended = subprocess.run(
            [sys.executable, *_child(config)], env=environment, capture_output=True, text=True, timeout=config.seconds,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ExperimentError(f"{devices} devices took more than {config.seconds} s: raise --seconds") from None
    return _told(ended.returncode, ended.stdout, ended.stderr, f"the process of {devices} devices")


def _of_processes(config: Config, processes: int) -> list[dict[str, Any]]:
    try:
        ended = joined(lambda number: _child(config), processes, config.seconds)
    except subprocess.TimeoutExpired:
        raise ExperimentError(f"{processes} processes took more than {config.seconds} s: raise --seconds") from None
    first, *_ = [_told(*of, f"one of {processes} processes") for of in ended]
    return first


def _told(code: int, printed: str, errors: str, name: str) -> list[dict[str, Any]]:
    if code:
        raise ExperimentError(f"{name} failed: {errors.strip()[-500:]}")
    return json.loads(printed.splitlines()[-1])


def exchanged(text: str) -> dict[str, int]:
    """Bytes by collective in a compiled program's text: the size of its results on one device."""
    found: dict[str, int] = {}
    for results, name in re.findall(r"= (.*?) (all-[a-z]+|collective-[a-z]+|reduce-scatter)(?:-start)?\(", text):
        for dtype, shape in re.findall(r"([a-z]+\d+)\[([\d,]*)\]", results):  # several if XLA has combined collectives
            size = int(np.prod([int(n) for n in shape.split(",") if n], initial=1))
            found[name] = found.get(name, 0) + size * int(re.sub(r"\D", "", dtype)) // 8
    return found


def _estimates(
    estimates: Sequence[str], sizes: Sequence[int], batch_size: int, samples: Sequence[int], sigma: float, rounds: int
) -> list[dict[str, Any]]:
    """Measures estimates on all available devices, in this process; returns a row for each."""
    devices = len(jax.devices())
    mesh = jax.make_mesh((devices,), ("samples",), axis_types=(jax.sharding.AxisType.Auto,))
    everywhere, sharding = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ([], ["samples"]))
    task = problem(tuple(sizes), batch_size)
    whole = lambda x: jax.make_array_from_callback(x.shape, everywhere, lambda part: x[part])
    key = jax.jit(lambda: jax.random.key(3), out_shardings=everywhere)()
    at = key, (), *jax.tree.map(whole, jax.device_get((task.params, task.data)))
    rows = []
    for count in samples:
        settings: dict[str, Any] = {"num_samples": count, "sigma": sigma, "sharding": sharding}
        cases = {NODES: nl.node_perturbation(task.objective, **settings)}
        for name, law in LAWS.items():
            for way, summed in WAYS.items():
                cases[WEIGHTS.format(name, way)] = nl.weight_perturbation(
                    task.objective, directions=law, sum_updates=summed, **settings
                )
        for name in estimates:
            step = jax.jit(cases[name].estimate).lower(*at).compile()
            mine = lambda leaf: np.ravel(leaf.addressable_data(0))
            grads = np.concatenate([mine(leaf) for leaf in jax.tree.leaves(step(*at)[0])])
            seconds = []
            for _ in range(rounds):
                began = time.perf_counter()
                jax.block_until_ready(step(*at))
                seconds.append(time.perf_counter() - began)
            rows.append({
                "estimate": name, "samples": count, "devices": devices, "processes": jax.process_count(),
                "seconds": float(np.median(seconds)),
                "bytes": exchanged(str(step.as_text())), "largest": float(np.max(np.abs(grads))),
                "some": grads[:: max(1, grads.size // 1000)].tolist(),
            })  # fmt: skip
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m benchmarks.devices")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:  # a process with forced devices, or one of several to be joined
        if sys.argv[3:]:
            join(*sys.argv[3:])
        print(json.dumps(_estimates(**json.loads(sys.argv[2]))))
    else:
        sys.exit(main())
