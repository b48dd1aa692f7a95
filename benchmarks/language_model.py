"""Zeroth-order steps of a language model, compared with hand-written MeZO: seconds and memory.

python -m benchmarks.language_model --help
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import nl_jax as nl
from benchmarks.report import aligned, timed
from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.language_model import Model, next_token_loss
from experiments.harness.results import Folder
from nl_jax.base import Array, Key, Params

SIGMA, RATE = 1e-3, 1e-6
Step = Callable[[Params, Array, Key], Params]


@dataclass(frozen=True)
class Config:
    """Time one step of each method, K = 1 and antithetic, in turn.

    The sizes are SmolLM2-135M's. Parameters are random, since neither time nor memory depends on them. Prints a table
    and writes language_model.json to --out.
    """

    vocabulary: int = 49_152
    """Vocabulary size in tokens."""
    width: int = 576
    """Features of a token, a multiple of 2 · heads."""
    depth: int = 30
    """Blocks."""
    heads: int = 9
    """Attention heads, three per key head; a multiple of 3."""
    hidden: int = 1536
    """Units of a feed-forward layer."""
    batch_size: int = 8
    """Texts."""
    length: int = 32
    """Tokens per text."""
    rounds: int = 5
    """Rounds; each step is timed once per round."""
    out: Path = Path("results/benchmarks/language_model")
    """Folder for the results."""


def run(config: Config) -> dict[str, dict[str, float]]:
    """Measures, prints and saves; returns median seconds, quartiles and temporaries in bytes, by step.

    Raises:
      ExperimentError: for an invalid setting, or on a backend that does not report its memory.
    """
    sizes = config.vocabulary, config.width, config.depth, config.heads, config.hidden, config.batch_size, config.rounds
    if min(sizes) < 1 or config.length < 2:
        raise ExperimentError("all sizes must be at least 1, and --length at least 2")
    if config.heads % 3 or config.width % (2 * config.heads):
        raise ExperimentError("--heads must be a multiple of 3, and --width of twice the heads")
    model = Model(config.vocabulary, config.width, config.depth, config.heads, config.heads // 3, config.hidden)
    folder = Folder(config.out, config, outputs=("language_model.json",))
    ids = jax.random.randint(jax.random.key(1), (config.batch_size, config.length + 1), 0, config.vocabulary)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    key = jax.random.key(2)
    steps = {name: jax.jit(step, donate_argnums=0).lower(shapes, ids, key).compile() for name, step in _steps(model)}
    forward = jax.jit(lambda params, ids: next_token_loss(model, params, ids)).lower(shapes, ids).compile()
    params = [jax.jit(model.init)(jax.random.key(0))]

    def taking(step: Callable[..., Params]) -> Callable[[], Any]:
        def take() -> Any:
            params[0] = jax.block_until_ready(step(params[0], ids, key))

        return take

    contestants: dict[str, Any] = {name: [taking(step)] for name, step in steps.items()}
    contestants["forward pass"] = [lambda: jax.block_until_ready(forward(params[0], ids))]
    seconds = timed(contestants, config.rounds)
    found = {
        name: {
            "seconds": float(np.median(of)), "low": float(np.quantile(of, 0.25)), "high": float(np.quantile(of, 0.75)),
            "temporaries": _temporaries({**steps, "forward pass": forward}[name]),
        }
        for name, of in seconds.items()
    }  # fmt: skip
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    lines = [["", "s a step", "quartiles", "temporaries"]]
    lines += [
        [name, f"{of['seconds']:.3g}", f"{of['low']:.3g} … {of['high']:.3g}", f"{of['temporaries'] / 1e6:,.0f} MB"]
        for name, of in found.items()
    ]
    print(f"parameters {size / 1e6:,.0f} MB, {config.batch_size} × {config.length} tokens")
    print("\n".join(aligned(lines)))
    folder.data("language_model", found)
    return found


def _temporaries(compiled: Any) -> float:
    analysis = compiled.memory_analysis()
    if analysis is None:
        raise ExperimentError("this backend does not tell what a compiled program holds")
    return float(analysis.temp_size_in_bytes)


def _steps(model: Model) -> list[tuple[str, Step]]:
    losses = lambda params, ids: next_token_loss(model, params, ids)
    samplers = {
        "signs": nl.directions.rademacher(),
        "rank one": nl.directions.rank_one(),
        "normal": nl.directions.gaussian(),
    }

    def ours(sampler: nl.directions.Sampler) -> Step:
        estimator = nl.weight_perturbation(losses, sigma=SIGMA, baseline=nl.baselines.antithetic(), directions=sampler)
        learner = nl.seeded(estimator, RATE)

        def step(params: Params, ids: Array, key: Key) -> Params:
            return learner.step(key, learner.init(key, params), ids)[0].params

        return step

    def by_hand(params: Params, ids: Array, key: Key) -> Params:
        """Displaces parameters in place, back and forth, by noise drawn per leaf (Malladi et al. 2023, algorithm 1)."""

        def moved(params: Params, by: Any) -> Params:
            leaves, tree = jax.tree.flatten(params)
            keys = jax.random.split(key, len(leaves))
            shifted = [w + by * jax.random.normal(k, w.shape, w.dtype) for w, k in zip(leaves, keys, strict=True)]
            return jax.tree.unflatten(tree, shifted)

        # Barriers ensure that only one set of displaced parameters exists at a time.
        params = jax.lax.optimization_barrier(moved(params, SIGMA))
        above = jnp.mean(losses(params, ids))
        params, above = jax.lax.optimization_barrier((params, above))
        params = jax.lax.optimization_barrier(moved(params, -2 * SIGMA))
        below = jnp.mean(losses(params, ids))
        params, below = jax.lax.optimization_barrier((params, below))
        return moved(params, SIGMA - RATE * (above - below) / (2 * SIGMA))

    return [
        *((f"nl.seeded, {name}", ours(sampler)) for name, sampler in samplers.items()),
        ("MeZO by hand, normal", by_hand),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m benchmarks.language_model")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
