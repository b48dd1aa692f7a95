"""Test of checkpoints: a run is killed at random times, restarted each time, and compared bit by bit.

python -m benchmarks.kills --help
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import nl_jax as nl
from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.results import Folder


@dataclass(frozen=True)
class Config:
    """Kill (SIGKILL) a run of `nl.fit` that saves after each dispatch; compare it with one that was never interrupted.

    The run draws its batches from an iterator, and its optimizer state has momentum and a random key. Writes
    kills.json to --out. The exit code is 1 if a bit differs or a saved step is lost.
    """

    kills: int = 30
    """Number of kills."""
    steps: int = 4000
    """Steps of the run; it must not end before the last kill."""
    longest: float = 0.5
    """Largest delay in seconds: each process is killed at a random time up to this long after its first save."""
    seed: int = 0
    """Seed of the kill times."""
    out: Path = Path("results/benchmarks/kills")
    """Folder for the results."""


class Batches:
    """An endless stream of batches, each a function of its position."""

    def __init__(self) -> None:
        self.position = 0

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> tuple[np.ndarray, np.ndarray]:
        inputs = np.random.default_rng(self.position).standard_normal((8, 16)).astype(np.float32)
        self.position += 1
        return inputs, np.tanh(inputs[:, :2])

    def get_state(self) -> int:
        """The position."""
        return self.position

    def set_state(self, state: int) -> None:
        """Sets the position."""
        self.position = state


def train(steps: int, folder: Path | None = None, **settings: Any) -> Any:
    """Trains the network; returns its state and history."""
    network = nl.mlp([16, 8, 2], activation=nl.activations.tanh())
    objective = nl.supervised(network.apply, nl.losses.half_squared_error)

    def jitter(updates: Any, key: jax.Array, params: Any = None) -> tuple[Any, jax.Array]:
        key, used = jax.random.split(key)
        noise = optax.tree.random_like(used, updates, jax.random.normal)
        return jax.tree.map(lambda u, xi: u + 1e-3 * xi, updates, noise), key

    noisy = optax.GradientTransformation(lambda params: jax.random.key(1), jitter)
    learner = nl.learner(nl.node_perturbation(objective, num_samples=2), optax.chain(noisy, optax.sgd(0.01, 0.9)))
    start = learner.init(jax.random.key(2), network.init(jax.random.key(3)))
    at = learner, jax.random.key(4), start, Batches()
    return nl.fit(*at, num_steps=steps, steps_per_dispatch=2, progress=False, checkpoint=folder, **settings)


def run(config: Config) -> list[dict[str, Any]]:
    """Kills, resumes, compares, prints and saves; returns a row for each kill."""
    results = Folder(config.out, config, outputs=("kills.json",))
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "run")
        for instant in np.random.default_rng(config.seed).uniform(0, config.longest, config.kills):
            before = _newest(folder)
            _killed(folder, config.steps, before, float(instant))
            broken_off = len(list((folder / "steps").iterdir())) > len(list((folder / "seals").glob("*.json")))
            rows.append(
                {"seconds": instant, "step_before": before, "step_after": _newest(folder), "while_saving": broken_off}
            )
            if rows[-1]["step_after"] < before:
                raise ExperimentError(f"after kill {len(rows)} step {before}, which was saved, is lost")
        last = _newest(folder)
        resumed, whole = train(config.steps, folder, every=config.steps), train(config.steps)
    different = [a for a, b in zip(*map(_bits, (resumed, whole)), strict=True) if a != b]
    while_saving = sum(row["while_saving"] for row in rows)
    print(f"killed {len(rows)} times, {while_saving} of them in the middle of a save; resumed at step {last}")
    results.data("kills", {"different": len(different), "kills": rows})
    if different:
        raise ExperimentError(f"{len(different)} arrays of the resumed run differ from those of the uninterrupted one")
    print(f"after {config.steps} steps the resumed run's state and history equal the uninterrupted run's in every bit")
    return rows


def _newest(folder: Path) -> int:
    """The newest saved step, 0 before the first."""
    return max((int(path.stem) for path in (folder / "seals").glob("*.json")), default=0)


def _killed(folder: Path, steps: int, before: int, seconds: float) -> None:
    """Starts the run in its own process, and kills it `seconds` after it has saved a further step."""
    child = subprocess.Popen([sys.executable, "-m", "benchmarks.kills", str(folder), str(steps)], env=os.environ)
    try:
        while _newest(folder) <= before:
            if child.poll() is not None:
                raise ExperimentError(f"the run ended by itself with exit code {child.returncode}: more --steps")
            time.sleep(0.005)
        time.sleep(seconds)
    finally:
        child.kill()
        child.wait()


def _bits(tree: Any) -> list[bytes]:
    def plain(x: Any) -> np.ndarray:
        x = jnp.asarray(x)
        return np.asarray(jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x)

    return [plain(x).tobytes() for x in jax.tree.leaves(tree)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m benchmarks.kills")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    if len(sys.argv) == 3 and not sys.argv[1].startswith("-"):  # the process that is killed: FOLDER STEPS
        train(int(sys.argv[2]), Path(sys.argv[1]))
    else:
        sys.exit(main())
