"""Cost of an estimate in forward passes, and its signal-to-noise ratio.

python -m benchmarks.estimators --help
"""

import dataclasses
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro

import nl_jax as nl
from benchmarks import report
from benchmarks.problem import Problem, images, problem
from experiments.harness.failure import exit_code
from experiments.harness.results import Folder
from nl_jax.evaluation.diagnostics.timing import Spread, interleaved, ratio


@dataclass(frozen=True)
class Config:
    """Time every estimator on one network and batch, in units of forward passes, and measure its signal to noise.

    The unit of perturbation estimators is K times the jitted mean loss of the batch; the unit of exact ones is
    `jax.value_and_grad` of it. Writes estimators.json and estimators.png to --out.
    """

    sizes: tuple[int, ...] = (784, 256, 256, 10)
    """Units per layer, input to output (tanh, cross-entropy)."""
    conv: bool = False
    """Use a small convolutional network on 28 x 28 images."""
    batch_size: int = 128
    """Examples."""
    num_samples: int = 32
    """K, random directions per estimate."""
    rounds: int = 15
    """Interleaved repeats; the table shows medians and quartiles."""
    num_estimates: int = 40
    """Independent estimates that measure signal and noise."""
    out: Path = Path("results/benchmarks/estimators")
    """Folder for the results."""
    quick: bool = False
    """Three rounds, representative rows only, and the signal of three of them from four estimates."""


NAIVE = "weights: Gaussian, all samples vmapped"
_STANDARDS = (NAIVE, "weights: rank-one signs", "nodes: signs")  # a quick run measures the signal of these
_CALLS = 10  # per round for exact estimates: one alone is too short to time


class Row(NamedTuple):
    """One estimator: time relative to its unit (K forward passes, or value_and_grad), memory and signal.

    Attributes:
      time: relative to the unit.
      evaluations: per estimate.
      per_evaluation: time of one evaluation relative to one forward pass; NaN for exact estimators.
      temporary_mb: of the compiled program, in 10^6 bytes.
      signal_to_noise, signal_to_noise_error: of one estimate, with its standard error; infinite for exact ones.
      signal_rate: signal to noise per second relative to that of the naive way; NaN where it was not measured.
    """

    time: Spread
    evaluations: int
    per_evaluation: float
    temporary_mb: float
    signal_to_noise: float
    signal_to_noise_error: float
    signal_rate: float


def run(config: Config) -> dict[str, Row]:
    """Measures, prints a table and saves."""
    if config.quick:
        config = dataclasses.replace(config, rounds=min(config.rounds, 3), num_estimates=min(config.num_estimates, 4))
    folder = Folder(config.out, config)
    task = images(config.batch_size) if config.conv else problem(config.sizes, config.batch_size)
    sampled, exact = _sampled(task, config.num_samples, config.quick), _exact(task)
    programs = {name: _compiled(task, estimator) for name, estimator in (sampled | exact).items()}
    forward, value_and_grad = jax.jit(task.mean_loss), jax.jit(jax.value_and_grad(task.mean_loss))
    at = task.params, task.data
    functions: dict[str, Any] = {
        "forward": lambda: [forward(*at) for _ in range(config.num_samples)],
        "value_and_grad": lambda: [value_and_grad(*at) for _ in range(_CALLS)],
        **{name: lambda p=programs[name]: p(*at) for name in sampled},
        **{name: lambda p=programs[name]: [p(*at) for _ in range(_CALLS)] for name in exact},
    }
    seconds = interleaved(functions, config.rounds)

    rows = {}
    for name, estimator in (sampled | exact).items():
        evaluations = int(programs[name](*at)[1].evaluations)
        over = "forward" if name in sampled else "value_and_grad"
        time = ratio(seconds[name], seconds[over])
        snr, error = math.inf, 0.0
        if name in sampled:
            wanted = not config.quick or name in _STANDARDS
            snr, error = _signal(task, estimator, config.num_estimates) if wanted else (math.nan, math.nan)
        per_evaluation = time.median * config.num_samples / evaluations if name in sampled else math.nan
        memory = programs[name].memory_analysis().temp_size_in_bytes / 1e6
        rows[name] = Row(time, evaluations, per_evaluation, memory, snr, error, math.nan)
    naive = rows[NAIVE].signal_to_noise / np.median(seconds[NAIVE])
    for name in sampled:
        rate = rows[name].signal_to_noise / np.median(seconds[name]) / naive
        rows[name] = rows[name]._replace(signal_rate=float(rate))

    pass_ms = 1e3 * float(np.median(seconds["forward"])) / config.num_samples
    grad_ms = 1e3 * float(np.median(seconds["value_and_grad"])) / _CALLS
    copy_mb = sum(leaf.nbytes for leaf in jax.tree.leaves(task.params)) / 1e6
    print(f"{task.title}; batch {config.batch_size}, K = {config.num_samples}, float32, {jax.devices()[0].device_kind}")
    print(f"one forward pass {pass_ms:.2f} ms, value_and_grad {grad_ms:.2f} ms, parameters {copy_mb:.2f} MB")
    print(_table(config, rows))
    groups = {
        f"time of K = {config.num_samples} samples over K forward passes": {n: rows[n].time for n in sampled},
        "time over jax.value_and_grad": {n: rows[n].time for n in exact},
    }
    canvas = report.ratios_figure(groups, "time (1: dashed)", f"{task.title}, batch {config.batch_size}")
    results = {
        "rows": {name: row._asdict() | {"time": row.time._asdict()} for name, row in rows.items()},
        "forward_pass_ms": pass_ms,
        "value_and_grad_ms": grad_ms,
        "parameters_mb": copy_mb,
    }
    report.save(folder, "estimators", results, canvas)
    return rows


def _compiled(task: Problem, estimator: nl.GradientEstimator) -> Any:
    key = jax.random.key(3)

    def estimate(params: Any, batch: Any) -> Any:
        grads, _, info = estimator.estimate(key, estimator.init(key, params), params, batch)
        return grads, info._replace(residuals=())  # unused outputs cost nothing

    return jax.jit(estimate).lower(task.params, task.data).compile()


def _signal(task: Problem, estimator: nl.GradientEstimator, num_estimates: int) -> tuple[float, float]:
    at = jax.random.key(4), task.params, task.data
    reference = nl.backprop(task.objective)
    m = jax.jit(lambda *at: nl.diagnostics.measure(estimator, reference, *at, num_estimates=num_estimates))(*at)
    return float(m.signal_to_noise), float(m.signal_to_noise_error)


def _exact(task: Problem) -> dict[str, nl.GradientEstimator]:
    return {
        "backprop": nl.backprop(task.objective),
        "backprop_recursion": nl.backprop_recursion(task.objective),
        "lagrangian_backprop": nl.lagrangian_backprop(task.objective),
    }


def _sampled(task: Problem, samples: int, quick: bool) -> dict[str, nl.GradientEstimator]:
    laws, baselines = nl.directions, nl.baselines
    signs, one = laws.rademacher(), laws.rank_one()

    def weights(**settings: Any) -> nl.GradientEstimator:
        return nl.weight_perturbation(task.objective, num_samples=samples, **settings)

    def nodes(**settings: Any) -> nl.GradientEstimator:
        return nl.node_perturbation(task.objective, num_samples=samples, **settings)

    def forward(**settings: Any) -> nl.GradientEstimator:
        return nl.forward_gradient(task.objective, num_samples=samples, **settings)

    found = {
        NAIVE: weights(chunk=samples),
        "weights: Gaussian": weights(),
        "weights: signs": weights(directions=signs),
        "weights: signs, antithetic": weights(directions=signs, baseline=baselines.antithetic()),
        "weights: rank-one signs": weights(directions=one),
        "weights: rank-one signs, antithetic": weights(directions=one, baseline=baselines.antithetic()),
        "weights: flipout": weights(directions=laws.flipout()),
        "nodes: Gaussian": nodes(),
        "nodes: signs": nodes(directions=signs),
        "forward gradient in weights: signs": forward(directions=signs),
        "forward gradient in weights: rank-one signs": forward(directions=one),
        "forward gradient in nodes: signs": forward(directions=signs, space=nl.spaces.nodes),
    }
    if quick:
        return found
    return found | {
        "weights: rank-four signs": weights(directions=laws.low_rank(4)),
        "weights: orthogonal signs": weights(directions=laws.orthogonal()),
        "weights: sphere": weights(directions=laws.sphere()),
        "weights: sparse signs, 10 %": weights(directions=laws.sparse(0.1)),
        "weights: coordinates": weights(directions=laws.coordinate()),
        "weights: rank-one signs, no baseline": weights(directions=one, baseline=baselines.none()),
        "weights: rank-one signs, running mean": _warm(
            task, weights(directions=one, baseline=baselines.running_mean())
        ),
        "nodes: signs, antithetic": nodes(directions=signs, baseline=baselines.antithetic()),
        "nodes: orthogonal signs": nodes(directions=laws.orthogonal()),
        "nodes: signs, no baseline": nodes(directions=signs, baseline=baselines.none()),
        "nodes: signs, running mean": _warm(task, nodes(directions=signs, baseline=baselines.running_mean())),
    }


def _warm(task: Problem, estimator: nl.GradientEstimator) -> nl.GradientEstimator:
    """The estimator with its state after some estimates, since a running mean needs a history."""
    state = estimator.init(jax.random.key(5), task.params)
    step = jax.jit(lambda key, state: estimator.estimate(key, state, task.params, task.data)[1])
    for key in jax.random.split(jax.random.key(6), 5):
        state = step(key, state)
    return nl.GradientEstimator(lambda key, params: state, estimator.estimate)


def _table(config: Config, rows: dict[str, Row]) -> str:
    head = (f"over K = {config.num_samples} forward passes", "time", "per evaluation", "temporary MB")
    lines: list[tuple[str, ...]] = [(*head, "signal/noise", "signal/noise per second over the first row's")]
    exact: list[tuple[str, ...]] = [("over jax.value_and_grad", "time", "", "temporary MB")]
    for name, row in rows.items():
        if math.isinf(row.signal_to_noise):
            exact.append((name, str(row.time), "", f"{row.temporary_mb:.2f}"))
            continue
        measured = not math.isnan(row.signal_to_noise)
        signal = f"{row.signal_to_noise:.2e} ± {row.signal_to_noise_error:.0e}" if measured else "-"
        cost = f"{row.per_evaluation:.2f}", f"{row.temporary_mb:.2f}"
        lines.append((name, str(row.time), *cost, signal, f"{row.signal_rate:.3g}" if measured else "-"))
    return "\n".join(report.aligned(lines + exact))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m benchmarks.estimators")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
