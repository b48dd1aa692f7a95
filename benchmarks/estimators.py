"""What an estimate costs, in forward passes.

python -m benchmarks.estimators --help
"""

import dataclasses
import json
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
from experiments.failure import exit_code
from experiments.plotting import figure
from experiments.results import Folder
from nl_jax.diagnostics.timing import Spread, interleaved, ratio


@dataclass(frozen=True)
class Config:
    """Time every estimator on one network and batch, in units of forward passes.

    Perturbation estimators are given over K times the jitted mean loss of the batch, exact ones over
    `jax.value_and_grad` of it. Writes estimators.json and estimators.png to --out.
    """

    sizes: tuple[int, ...] = (784, 256, 256, 10)
    """Units per layer, input to output (tanh, cross-entropy)."""
    batch_size: int = 128
    """Examples."""
    num_samples: int = 32
    """K, random directions per estimate."""
    rounds: int = 15
    """Interleaved repeats; the table gives medians and quartiles."""
    out: Path = Path("results/benchmarks")
    """Folder for the results."""
    quick: bool = False
    """Three rounds instead."""


_CALLS = 10  # of an exact estimate per round: one alone is too short to time


Timed = dict[str, Spread]  # by estimator


def run(config: Config) -> tuple[Timed, Timed]:
    """Measures, prints a table and saves; returns (over K forward passes, over value_and_grad)."""
    if config.quick:
        config = dataclasses.replace(config, rounds=min(config.rounds, 3))
    folder = Folder(config.out, config)
    network = nl.mlp(config.sizes, activation=nl.activations.tanh())
    objective = nl.supervised(network.apply, nl.losses.cross_entropy)
    keys = jax.random.split(jax.random.key(0), 4)
    params = network.init(keys[0])
    images = jax.random.uniform(keys[1], (config.batch_size, config.sizes[0]))
    batch = images, jax.random.randint(keys[2], (config.batch_size,), 0, config.sizes[-1])

    def mean_loss(params: Any, batch: Any) -> jax.Array:
        return jnp.mean(objective(params, batch))

    def timed(estimator: nl.GradientEstimator, calls: int = 1) -> Callable[[], Any]:
        def estimate(params: Any, batch: Any) -> Any:
            grads, _, info = estimator.estimate(keys[3], estimator.init(keys[3], params), params, batch)
            return grads, info.loss

        compiled = jax.jit(estimate)
        return lambda: [compiled(params, batch) for _ in range(calls)]

    sampled, exact = _sampled(objective, config.num_samples), _exact(objective)
    forward, value_and_grad = jax.jit(mean_loss), jax.jit(jax.value_and_grad(mean_loss))
    functions = {
        "forward": lambda: [forward(params, batch) for _ in range(config.num_samples)],
        "value_and_grad": lambda: [value_and_grad(params, batch) for _ in range(_CALLS)],
        **{name: timed(estimator) for name, estimator in sampled.items()},
        **{name: timed(estimator, _CALLS) for name, estimator in exact.items()},
    }
    seconds = interleaved(functions, config.rounds)

    over_forward = {name: ratio(seconds[name], seconds["forward"]) for name in sampled}
    over_exact = {name: ratio(seconds[name], seconds["value_and_grad"]) for name in exact}
    pass_ms = 1e3 * float(np.median(seconds["forward"])) / config.num_samples
    grad_ms = 1e3 * float(np.median(seconds["value_and_grad"])) / _CALLS
    print(_table(config, over_forward, over_exact, pass_ms, grad_ms))
    results = {
        "over_forward_passes": {name: value._asdict() for name, value in over_forward.items()},
        "over_value_and_grad": {name: value._asdict() for name, value in over_exact.items()},
        "forward_pass_ms": pass_ms,
        "value_and_grad_ms": grad_ms,
    }
    (folder.path / "estimators.json").write_text(json.dumps(results, indent=2) + "\n")
    print(f"data and picture: {folder.path} (estimators.json, config.json, {_plot(folder, config, over_forward).name})")
    return over_forward, over_exact


def _exact(objective: Any) -> dict[str, nl.GradientEstimator]:
    return {
        "backprop": nl.backprop(objective),
        "backprop_recursion": nl.backprop_recursion(objective),
        "lagrangian_backprop": nl.lagrangian_backprop(objective),
    }


def _sampled(objective: Any, samples: int) -> dict[str, nl.GradientEstimator]:
    signs, normal = nl.directions.rademacher(), nl.directions.gaussian()
    found = {
        "weight perturbation, Gaussian, all samples vmapped": nl.weight_perturbation(
            objective, num_samples=samples, chunk=samples, directions=normal
        )
    }
    for label, law in (("Gaussian", normal), ("signs", signs)):
        found |= {
            f"weight perturbation, {label}": nl.weight_perturbation(objective, num_samples=samples, directions=law),
            f"weight perturbation, {label}, antithetic": nl.weight_perturbation(
                objective, num_samples=samples, directions=law, baseline=nl.baselines.antithetic()
            ),
            f"node perturbation, {label}": nl.node_perturbation(objective, num_samples=samples, directions=law),
            f"forward gradient, weights, {label}": nl.forward_gradient(objective, num_samples=samples, directions=law),
            f"forward gradient, nodes, {label}": nl.forward_gradient(
                objective, space=nl.spaces.nodes, num_samples=samples, directions=law
            ),
        }
    return found


def _table(config: Config, over_forward: Timed, over_exact: Timed, pass_ms: float, grad_ms: float) -> str:
    shape = "-".join(map(str, config.sizes))
    lines = [
        f"{shape} tanh, cross-entropy, batch {config.batch_size}, K = {config.num_samples}, float32, "
        f"{jax.devices()[0].device_kind}; medians (quartiles) of {config.rounds} interleaved rounds",
        f"one forward pass {pass_ms:.2f} ms, value_and_grad {grad_ms:.2f} ms",
        f"{'over K forward passes':54}time",
        *(f"  {name:52}{value}" for name, value in over_forward.items()),
        f"{'over jax.value_and_grad':54}time",
        *(f"  {name:52}{value}" for name, value in over_exact.items()),
    ]
    return "\n".join(lines)


def _plot(folder: Folder, config: Config, ratios: Timed) -> Path:
    canvas, axes = figure(1, 1, size=(9, 4.6))
    names, values = list(ratios)[::-1], list(ratios.values())[::-1]
    medians = np.array([value.median for value in values])
    spread = np.abs(np.array([[value.low, value.high] for value in values]).T - medians)
    axes.errorbar(medians, names, xerr=spread, fmt="o", color="#0072B2", ecolor="#000000", elinewidth=1.5)
    axes.axvline(1, color="#000000", linestyle="--", linewidth=1)
    for row, value in enumerate(values):
        axes.annotate(f"{value.median:.2f}", (value.high, row), (6, 0), textcoords="offset points", va="center")
    axes.margins(x=0.12)
    shape = "-".join(map(str, config.sizes))
    axes.set(
        xscale="log",
        xlabel=f"time of an estimate of K = {config.num_samples} samples, in K forward passes (dashed: 1)",
        title=f"{shape} tanh, batch {config.batch_size}, {jax.devices()[0].device_kind}",
    )
    return folder.picture("estimators", canvas)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m benchmarks.estimators")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
