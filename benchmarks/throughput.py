"""Speed of an estimate's evaluations as a fraction of pure inference on an accelerator.

python -m benchmarks.throughput --help
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import nl_jax as nl
from benchmarks import report
from benchmarks.problem import problem
from experiments.harness.failure import exit_code
from experiments.harness.results import Folder
from nl_jax.estimators.noise.engine.step_size import balanced, step_size
from nl_jax.evaluation.diagnostics.timing import Spread, interleaved, ratio


@dataclass(frozen=True)
class Config:
    """Measure samples per second as a fraction of pure batched inference on the same device.

    Inference is the jitted mean loss on `inference_batches` batches at once. It is scaled to the number of examples
    that an estimate evaluates and includes no random numbers, comparison or average. Fractions above 1 are correct:
    samples that share the first layer's product do less work than inference. The defaults fill a large GPU; on a CPU
    use `--quick`. Writes throughput.json and throughput.png to --out.
    """

    sizes: tuple[int, ...] = (8192, 8192, 8192, 8192, 10)
    """Units per layer, input to output (tanh, cross-entropy)."""
    batch_size: int = 1024
    """Examples."""
    num_samples: tuple[int, ...] = (64, 512, 4096)
    """K, random directions per estimate; each has one row per estimator."""
    products: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    """Dtypes that layers compute in; parameters and losses stay in float32."""
    inference_batches: int = 8
    """Batches per inference call."""
    rounds: int = 5
    """Interleaved repeats; the table shows medians and quartiles."""
    out: Path = Path("results/benchmarks/throughput")
    """Folder for the results."""
    quick: bool = False
    """512-256-256-10, batch 128, K = 32 and three rounds."""


def run(config: Config) -> dict[str, Spread]:
    """Measures, prints a table and saves; returns the fractions by name."""
    if config.quick:
        config = dataclasses.replace(config, sizes=(512, 256, 256, 10), batch_size=128, num_samples=(32,), rounds=3)
    folder = Folder(config.out, config)
    fractions: dict[str, Spread] = {}
    rates: dict[str, float] = {}
    for dtype in config.products:
        for samples in config.num_samples:
            for name, (fraction, rate) in _measured(config, jnp.dtype(dtype), samples).items():
                fractions[f"{name}, {dtype}, K = {samples}"] = fraction
                rates[f"{name}, {dtype}, K = {samples}"] = rate
    title = f"{'-'.join(map(str, config.sizes))} tanh, batch {config.batch_size}, {jax.devices()[0].device_kind}"
    print(title)
    rows = [("speed of evaluations over pure inference", "fraction", "evaluations/s")]
    rows += [(name, str(fraction), f"{rates[name]:.4g}") for name, fraction in fractions.items()]
    print("\n".join(report.aligned(rows)))
    results = {name: f._asdict() | {"evaluations_per_second": rates[name]} for name, f in fractions.items()}
    canvas = report.ratios_figure({"": fractions}, "evaluations per second over pure inference's (1: dashed)", title)
    report.save(folder, "throughput", results, canvas)
    return fractions


def _measured(config: Config, dtype: jnp.dtype, samples: int) -> dict[str, tuple[Spread, float]]:
    task = problem(config.sizes, config.batch_size * config.inference_batches)
    batch = jax.tree.map(lambda x: x[: config.batch_size], task.data)
    network = nl.mlp(config.sizes, activation=nl.activations.tanh())

    def forward(params: Any, inputs: jax.Array, propagate: Any = nl.propagation.feedforward) -> jax.Array:
        low = jax.tree.map(lambda weight: weight.astype(dtype), params)  # perturbed weights support astype as well
        return network.apply(low, inputs.astype(dtype), propagate=propagate).astype(jnp.float32)

    objective = nl.supervised(forward, nl.losses.cross_entropy)
    key = jax.random.key(3)

    def timed(estimator: nl.GradientEstimator) -> Any:
        compiled = jax.jit(lambda params, batch: estimator.estimate(key, (), params, batch)[::2])
        return lambda: compiled(task.params, batch)

    infer = jax.jit(lambda params, data: jnp.mean(objective(params, data)))
    # A step large enough for the layers' dtype; the default suits the parameters, which stay in float32.
    components = sum(leaf.size for leaf in jax.tree.leaves(task.params))
    sigma = step_size(None, balanced(1), [dtype], components)
    functions = {name: timed(estimator) for name, estimator in _estimators(objective, samples, sigma).items()}
    seconds = interleaved({"inference": lambda: infer(task.params, task.data)} | functions, config.rounds)
    found = {}
    for name, function in functions.items():
        evaluations = int(function()[1].evaluations)
        inference = seconds["inference"] / config.inference_batches * evaluations
        found[name] = ratio(inference, seconds[name]), float(evaluations / np.median(seconds[name]))
    return found


def _estimators(objective: Any, samples: int, sigma: Any) -> dict[str, nl.GradientEstimator]:
    signs, one, antithetic = nl.directions.rademacher(), nl.directions.rank_one(), nl.baselines.antithetic()

    def weights(**settings: Any) -> nl.GradientEstimator:
        return nl.weight_perturbation(objective, num_samples=samples, sigma=sigma, **settings)

    return {
        "weights: rank-one signs": weights(directions=one),
        "weights: rank-one signs, antithetic": weights(directions=one, baseline=antithetic),
        "weights: signs": weights(directions=signs),
        "nodes: signs": nl.node_perturbation(objective, num_samples=samples, directions=signs),
        "forward gradient in nodes: signs": nl.forward_gradient(
            objective, num_samples=samples, directions=signs, space=nl.spaces.nodes
        ),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m benchmarks.throughput")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
