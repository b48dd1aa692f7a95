"""Memory of a training step besides the parameters: temporary bytes of the compiled step relative to the parameters'.

python -m benchmarks.memory --help
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import tyro

import nl_jax as nl
from benchmarks.report import aligned
from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.results import Folder
from nl_jax.base import Objective

LAWS = {
    "Gaussian": nl.directions.gaussian(), "signs": nl.directions.rademacher(), "sparse": nl.directions.sparse(0.1),
    "sphere": nl.directions.sphere(), "orthogonal": nl.directions.orthogonal(),
    "coordinate": nl.directions.coordinate(),
    "rank one": nl.directions.rank_one(), "flipout": nl.directions.flipout(),
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    """Compile one jitted step with donated state of every kind of estimator and report the compiler's memory figures.

    Nothing is run, so the figures do not depend on the machine's load. Prints a table and writes memory.json to --out.
    """

    widths: tuple[int, ...] = (1024, 2048, 2048, 1024)
    """Units of the network's layers, including input and output."""
    batch_size: int = 32
    """Examples."""
    samples: int = 8
    """K, random directions per estimate."""
    out: Path = Path("results/benchmarks/memory")
    """Folder for the results."""


def run(config: Config) -> dict[str, dict[str, float]]:
    """Compiles, prints and saves; returns temporaries relative to parameters, by estimator and learner.

    Raises:
      ExperimentError: for an invalid setting, or on a backend that does not report its memory.
    """
    if len(config.widths) < 2 or min(*config.widths, config.batch_size, config.samples) < 1:
        raise ExperimentError("--widths must be two or more, and all sizes at least 1")
    folder = Folder(config.out, config, outputs=("memory.json",))
    network = nl.mlp(config.widths, activation=nl.activations.tanh())
    objective = nl.supervised(network.apply, nl.losses.cross_entropy)
    params = jax.eval_shape(network.init, jax.random.key(0))
    batch = (
        jax.ShapeDtypeStruct((config.batch_size, config.widths[0]), jnp.float32),
        jax.ShapeDtypeStruct((config.batch_size,), jnp.int32),
    )
    held: dict[str, dict[str, float]] = {"forward pass": {"alone": _temporaries(objective, params, batch)}}
    for name, estimator in _estimators(objective, config.samples).items():
        learners = {"optax.sgd": nl.learner(estimator, optax.sgd(0.1))}
        if estimator.sample is not None and name != "nodes":  # nodes have different noise for every example
            learners["nl.seeded"] = nl.seeded(estimator, 0.1)
        held[name] = {kind: _of_a_step(learner, params, batch) for kind, learner in learners.items()}
    print("\n".join(aligned(_rows(held))))
    folder.data("memory", held)
    print(f"data: {folder.path} (memory.json, config.json)")
    return held


def _estimators(objective: Objective, samples: int) -> dict[str, nl.GradientEstimator]:
    """Estimators by name; weight perturbation has one for each law of directions."""
    both_sides = nl.baselines.antithetic()
    found = {"backprop": nl.backprop(objective), "nodes": nl.node_perturbation(objective, num_samples=samples)}
    for name, law in LAWS.items():
        found[f"weights, {name}"] = nl.weight_perturbation(objective, num_samples=samples, directions=law)
    found["weights, Gaussian, antithetic"] = nl.weight_perturbation(objective, num_samples=samples, baseline=both_sides)
    found["forward gradient, Gaussian"] = nl.forward_gradient(objective, num_samples=samples)
    found["evolution strategy, Gaussian"] = nl.evolution_strategy(objective, num_samples=samples)
    return found


def _of_a_step(learner: nl.Learner, params: Any, batch: Any) -> float:
    state = jax.eval_shape(learner.init, jax.random.key(0), params)
    step = lambda state, batch: learner.step(jax.random.key(0), state, batch)
    return _temporaries(step, state, batch, donate=True, parameters=params)


def _temporaries(function: Callable[..., Any], *arguments: Any, donate: bool = False, parameters: Any = None) -> float:
    compiled = jax.jit(function, donate_argnums=(0,) if donate else ()).lower(*arguments).compile()
    analysis = compiled.memory_analysis()
    if analysis is None:
        raise ExperimentError("this backend does not tell what a compiled program holds")
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(parameters or arguments[0]))
    return analysis.temp_size_in_bytes / size


def _rows(held: dict[str, dict[str, float]]) -> list[list[str]]:
    columns = ("alone", "optax.sgd", "nl.seeded")
    rows = [["temporaries / parameters", *columns]]
    for name, of in held.items():
        rows.append([name, *(f"{of[column]:.3f}" if column in of else "" for column in columns)])
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m benchmarks.memory")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
