"""Cost of rules for recurrent networks: compile time, run time and memory against the number of steps.

python -m benchmarks.recurrent --help
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import nl_jax as nl
from benchmarks import report
from experiments.harness.failure import exit_code
from experiments.harness.plotting import figure, style
from experiments.harness.results import Folder
from nl_jax.evaluation.diagnostics.timing import Spread, interleaved, ratio

REFERENCE = "backprop through time"

RULES: dict[str, Callable[[Any], nl.GradientEstimator]] = {
    REFERENCE: nl.backprop,
    "backprop recursion": nl.backprop_recursion,
    "feedback alignment": nl.feedback_alignment,
    "truncated backprop, 10 steps": lambda objective: nl.truncated_backprop(objective, window=10),
    "e-prop": nl.e_prop,
    "UORO": nl.uoro,
    "three-factor": nl.three_factor,
    "node perturbation": nl.node_perturbation,
    "weight perturbation": nl.weight_perturbation,
    "RTRL": nl.rtrl,
    "SnAp-1": nl.snap,
}
OF_INFLUENCE = "RTRL"
"""The rule that carries an influence matrix, which is too large for wide networks."""


@dataclass(frozen=True)
class Config:
    """Measure compile time, time relative to backprop and temporary bytes of one estimate, against the number of steps.

    The network is a leaky recurrent network; its read-out is inside the loop, which also sums the loss. One jitted
    estimate is measured. RTRL is measured on networks of at most `most_influence` units. Temporaries include a copy of
    the batch with the time axis first. Writes recurrent.json and recurrent.png to --out.
    """

    units: tuple[int, ...] = (16, 128)
    """Units of the network; one table for each."""
    steps: tuple[int, ...] = (25, 100, 300, 1000, 10_000)
    """Numbers of steps to compile for; those up to `most_steps` are also timed."""
    most_steps: int = 300
    """Largest number of steps that is timed."""
    most_influence: int = 16
    """Largest number of units for RTRL."""
    batch_size: int = 32
    """Examples."""
    inputs: int = 8
    """Inputs at each step."""
    rounds: int = 20
    """Interleaved repeats; the table shows medians and quartiles."""
    out: Path = Path("results/benchmarks/recurrent")
    """Folder for the results."""
    quick: bool = False
    """16 units, 25 and 100 steps, and three rounds."""


@dataclass(frozen=True)
class Cost:
    """Cost of one rule for one number of steps.

    Attributes:
      compile_seconds: to trace and compile, once.
      temporary_bytes: of the compiled program, besides its arguments and results.
      over_backprop: time of an estimate relative to backprop's, interleaved; None if it was not timed.
      seconds: median time of an estimate; None if it was not timed.
    """

    compile_seconds: float
    temporary_bytes: int
    over_backprop: Spread | None = None
    seconds: float | None = None


def run(config: Config) -> dict[int, dict[str, dict[int, Cost]]]:
    """Measures, prints a table for each width and saves; returns costs by units, rule and steps."""
    if config.quick:
        config = dataclasses.replace(config, units=(16,), steps=(25, 100), rounds=3)
    folder = Folder(config.out, config)
    found = {units: measured(config, units) for units in config.units}
    for units, costs in found.items():
        print(f"\n{units} units, batch {config.batch_size}, {jax.devices()[0].device_kind}")
        print("\n".join(report.aligned(_table(costs))))
    results = {
        str(units): {rule: {str(T): dataclasses.asdict(cost) for T, cost in of.items()} for rule, of in costs.items()}
        for units, costs in found.items()
    }
    report.save(folder, "recurrent", results, _figure(found))
    return found


def measured(config: Config, units: int) -> dict[str, dict[int, Cost]]:
    """Costs, by rule and number of steps."""
    rules = {name: make for name, make in RULES.items() if name != OF_INFLUENCE or units <= config.most_influence}
    costs: dict[str, dict[int, Cost]] = {name: {} for name in rules}
    for steps in config.steps:
        objective, params, batch = problem(config, units, steps)
        functions = {}
        for name, make in rules.items():
            estimator = make(objective)
            at = jax.random.key(1), estimator.init(jax.random.key(2), params), params, batch
            began = time.perf_counter()
            compiled = jax.jit(estimator.estimate).lower(*at).compile()
            seconds = time.perf_counter() - began
            memory: Any = compiled.memory_analysis()  # None if the backend does not report it
            costs[name][steps] = Cost(seconds, memory.temp_size_in_bytes if memory else 0)
            functions[name] = lambda compiled=compiled, at=at: compiled(*at)
        if steps > config.most_steps:
            continue
        taken = interleaved(functions, config.rounds)
        for name in rules:
            over, median = ratio(taken[name], taken[REFERENCE]), float(np.median(taken[name]))
            costs[name][steps] = dataclasses.replace(costs[name][steps], over_backprop=over, seconds=median)
    return costs


def problem(config: Config, units: int, steps: int) -> tuple[Any, Any, Any]:
    """A leaky network that has to follow its first input, with read-out and loss inside the loop."""
    cell = nl.cells.leaky(units, rate=0.2)

    def objective(params: Any, batch: Any, propagate: Any = nl.propagation.feedforward) -> jax.Array:
        def step(carry: Any, x: jax.Array, propagate: Any) -> tuple[Any, None]:
            state, loss = carry
            state, y = cell.step(params, state, x, propagate)
            output = propagate("output", lambda w, y: y @ w, nl.activations.identity(), params["output"], y)
            return (state, loss + (output[:, 0] - x[:, 0]) ** 2), None

        start = cell.start(len(batch)), jnp.zeros(len(batch))
        return nl.scan("time", step, start, jnp.swapaxes(batch, 0, 1), propagate)[0][1] / steps

    params = cell.init(jax.random.key(0), config.inputs) | {"output": jnp.full((units, 1), 1 / units)}
    return objective, params, jax.random.normal(jax.random.key(3), (config.batch_size, steps, config.inputs))


def _table(costs: dict[str, dict[int, Cost]]) -> list[tuple[str, ...]]:
    steps = list(next(iter(costs.values())))
    rows: list[tuple[str, ...]] = [("compile seconds", *(f"T = {T:,}" for T in steps))]
    rows += [(name, *(f"{of[T].compile_seconds:.2f}" for T in steps)) for name, of in costs.items()]
    rows += [("temporary kB", *(f"T = {T:,}" for T in steps))]
    rows += [(name, *(f"{of[T].temporary_bytes / 1000:,.0f}" for T in steps)) for name, of in costs.items()]
    rows += [("time over backprop's", *(f"T = {T:,}" for T in steps))]
    for name, of in costs.items():
        rows.append((name, *("–" if of[T].over_backprop is None else str(of[T].over_backprop) for T in steps)))
    return rows


def _figure(found: dict[int, dict[str, dict[int, Cost]]]) -> Any:
    canvas, panels = figure(len(found), 2, size=(12, 0.6 + 4 * len(found)))
    for (units, costs), (left, right) in zip(found.items(), np.reshape(panels, (-1, 2)), strict=True):
        for number, (name, of) in enumerate(costs.items()):
            look = {**style(number), "markevery": 1, "label": name, "linestyle": ("-", "--")[number // 7]}
            left.plot(list(of), [cost.compile_seconds for cost in of.values()], **look)
            right.plot(list(of), [max(cost.temporary_bytes, 1) / 1000 for cost in of.values()], **look)
        left.set(xscale="log", xlabel="steps", ylabel="seconds to compile", title=f"{units} units", ylim=(0, None))
        right.set(xscale="log", yscale="log", xlabel="steps", ylabel="temporaries (kB)", title=f"{units} units")
        right.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.02, 0.5))
    return canvas


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m benchmarks.recurrent")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
