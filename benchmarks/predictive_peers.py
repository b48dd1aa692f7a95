"""Deep predictive coding: jpc compared with ours on the network of μPC.

python -m benchmarks.predictive_peers --help
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import nl_jax as nl
from benchmarks import report
from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.results import Folder
from nl_jax.evaluation.diagnostics.timing import Spread, ratio
from nl_jax.networks.residual import Residual


@dataclass(frozen=True)
class Config:
    """Time an estimate of predictive coding through deep residual networks by jpc and by ours, and compare the two.

    Both start from the feedforward activity, take the same number of gradient steps on the activity, and return the
    energy's gradient by the weights. jpc runs as in its guide, a compiled call for each step, and as one compiled
    function; the one with the lower median counts. Its layers are written out, and compiled one by one. Ours run in a
    loop, of which one layer is compiled, and written out; the table also has the seconds of the first call. Needs
    `pip install jpc`. Writes predictive_peers.json and predictive_peers.png to --out.
    """

    layers: tuple[int, ...] = (8, 32, 128)
    """Numbers of layers, L."""
    inputs: int = 64
    """Inputs."""
    units: int = 128
    """Units of each hidden layer, N."""
    outputs: int = 10
    """Outputs."""
    batch_size: int = 64
    """Examples."""
    steps: int = 20
    """Steps of inference, T."""
    rate: float = 0.2
    """Step size of inference for each example."""
    rounds: int = 15
    """Interleaved repeats; the table shows medians and quartiles."""
    out: Path = Path("results/benchmarks/predictive_peers")
    """Folder for the results."""
    quick: bool = False
    """Three rounds, at most 8 layers."""


Estimate = Callable[[], list[np.ndarray]]
"""Computes the gradients of all weights, layer by layer, [inputs, outputs]."""

LOOP, WRITTEN_OUT = "in a loop", "written out"
BY_STEPS, WHOLE = "jpc, by steps", "jpc, whole"


class Problem(NamedTuple):
    """A residual network under depth-μP, its parameters, and a batch (inputs, targets)."""

    network: Residual
    params: Any
    batch: tuple[jax.Array, jax.Array]


def run(config: Config) -> dict[str, dict[str, Spread]]:
    """Measures, prints a table and saves; returns jpc's times relative to ours, by way and number of layers.

    Raises:
      ExperimentError: if jpc is not installed.
    """
    if config.quick:
        few = tuple(min(n, 8) for n in config.layers[:1])
        config = dataclasses.replace(config, rounds=min(config.rounds, 3), layers=few)
    folder = Folder(config.out, config, outputs=("predictive_peers.json", "predictive_peers.png"))
    jpc = report.peer("jpc")
    if jpc is None:
        raise ExperimentError("jpc is not installed: there is nothing to compare with; pip install jpc")

    jax.block_until_ready(jax.jit(jnp.cos)(1.0))  # the first compilation of a process takes longer
    over: dict[str, dict[str, Spread]] = {LOOP: {}, WRITTEN_OUT: {}}
    rows: list[tuple[str, ...]] = [
        ("layers", *(f"jpc over ours, {way}" for way in over), *(f"{who}, ms" for who in (*over, BY_STEPS, WHOLE)),
         *(f"{who}, first s" for who in (*over, BY_STEPS, WHOLE)), "difference")
    ]  # fmt: skip
    results: dict[str, Any] = {}
    for layers in config.layers:
        problem = deep_problem(config, layers)
        ours = {LOOP: in_loop(config, problem), WRITTEN_OUT: written_out(config, problem)}
        theirs = jpc_estimates(config, jpc, problem)
        ways = {**ours, **theirs}
        found, first = {}, {}
        for who, estimate in ways.items():
            found[who], first[who] = first_call(estimate)
        differences = [relative_difference(found[BY_STEPS], found[way]) for way in ours]
        seconds = report.timed({who: [of] for who, of in ways.items()}, config.rounds)
        best = min(theirs, key=lambda who: np.median(seconds[who]))
        name = f"{layers} layers"
        for way, ratios in over.items():
            ratios[name] = ratio(seconds[best], seconds[way])
        ms = {who: 1e3 * float(np.median(of)) for who, of in seconds.items()}
        times = [f"{of[who]:.2f}" for of in (ms, first) for who in ways]
        rows.append((str(layers), *(str(of[name]) for of in over.values()), *times, f"{max(differences):.1e}"))
        results[name] = {
            "jpc_over_ours": {way: of[name]._asdict() for way, of in over.items()}, "milliseconds": ms,
            "seconds_of_the_first_call": first, "relative_differences": dict(zip(ours, differences, strict=True)),
        }  # fmt: skip

    heading = (
        f"an estimate, {config.steps} steps of inference, {config.units} units, batch {config.batch_size}, float32, "
        f"{jax.devices()[0].device_kind}; medians (quartiles) of {config.rounds} interleaved rounds"
    )
    print("\n".join(report.aligned([(heading,), *rows])))
    title = f"Predictive coding by jpc, {jpc.__version__}, {jax.devices()[0].device_kind}"
    canvas = report.ratios_figure(
        {f"ours, {way}": of for way, of in over.items()}, "time of jpc over ours (dashed: 1)", title
    )
    report.save(folder, "predictive_peers", {"version": jpc.__version__, **results}, canvas)
    return over


def deep_problem(config: Config, layers: int) -> Problem:
    """Returns random data for a network of so many layers."""
    network = nl.residual(config.inputs, config.units, config.outputs, layers=layers, activation=nl.activations.tanh())
    keys = jax.random.split(jax.random.key(0), 3)
    inputs, targets = (
        jax.random.normal(key, (config.batch_size, size))
        for key, size in zip(keys[1:], (config.inputs, config.outputs), strict=True)
    )
    return Problem(network, network.init(keys[0]), (inputs, targets))


def in_loop(config: Config, problem: Problem) -> Estimate:
    """Returns our estimate for `nl.residual`, whose layers run in a loop."""
    estimate = _estimate(config, problem.network.apply)
    return lambda: weights_of(jax.block_until_ready(estimate(problem.params, problem.batch)))


def written_out(config: Config, problem: Problem) -> Estimate:
    """Returns our estimate for the same network with each of its layers called by Python."""
    of = problem.network.scaling
    weights = dict(enumerate(map(jnp.asarray, weights_of(problem.params))))
    last = len(weights) - 1

    def forward(weights: Any, x: Any, propagate: Any = nl.propagation.feedforward) -> Any:
        same = nl.activations.identity()
        x = propagate("0", lambda w, x: of.first.multiplier * (x @ w), same, weights[0], x)
        for i in range(1, last):
            add = lambda w, x: x + of.block.multiplier * (jnp.tanh(x) @ w)
            x = propagate(str(i), add, same, weights[i], x)
        return propagate(str(last), lambda w, x: of.output.multiplier * (jnp.tanh(x) @ w), same, weights[last], x)

    estimate = _estimate(config, forward)
    return lambda: list(jax.block_until_ready(estimate(weights, problem.batch)).values())


def _estimate(config: Config, forward: Any) -> Callable[[Any, Any], Any]:
    """Returns the compiled estimate: half the squared error, μ = 1, and no early end."""
    objective = nl.supervised(forward, nl.losses.half_squared_error)
    estimator = nl.predictive_coding(objective, optimizer=optax.sgd(config.rate), num_steps=config.steps, tolerance=0.0)
    return jax.jit(lambda params, batch: estimator.estimate(jax.random.key(0), (), params, batch)[0])


def first_call(estimate: Estimate) -> tuple[list[np.ndarray], float]:
    """Returns an estimate and the seconds of its first call, which compiles it."""
    began = time.perf_counter()
    return estimate(), time.perf_counter() - began


def weights_of(params: Any) -> list[Any]:
    """Returns a residual network's weights layer by layer, each [inputs, outputs]."""
    first, block, output = (np.asarray(params[name]["weight"]) for name in ("first", "block", "output"))
    return [first, *block, output]


def relative_difference(theirs: Sequence[Any], ours: Sequence[Any]) -> float:
    """Computes ‖theirs − ours‖ / ‖ours‖ over all layers."""
    apart = [np.asarray(of) - np.asarray(own) for of, own in zip(theirs, ours, strict=True)]
    return float(optax.tree.norm(apart) / optax.tree.norm([*map(np.asarray, ours)]))


def jpc_estimates(config: Config, jpc: Any, problem: Problem) -> dict[str, Estimate]:
    """Returns two ways to compute the weights' gradients by jpc: step by step, and compiled as a whole."""
    import equinox as eqx

    weights = weights_of(problem.params)
    inputs, targets = problem.batch
    model = jpc.make_mlp(
        jax.random.PRNGKey(0), input_dim=config.inputs, width=config.units, depth=len(weights),
        output_dim=config.outputs, act_fn="tanh", use_bias=False, param_type="mupc",
    )  # fmt: skip
    own = [jnp.asarray(weight.T) for weight in weights]
    model = eqx.tree_at(lambda layers: [layer[1].weight for layer in layers], model, own)
    skips = jpc.make_skip_model(len(weights))
    optimizer = optax.sgd(config.rate * config.batch_size)  # its energy is a mean over examples
    frozen = optax.sgd(1.0)
    told = {"output": targets, "input": inputs, "param_type": "mupc"}

    def begin(model: Any) -> Any:
        activities = jpc.init_activities_with_ffwd(model=model, input=inputs, skip_model=skips, param_type="mupc")
        return activities, optimizer.init(activities)

    def step(model: Any, activities: Any, state: Any) -> Any:
        moved = jpc.update_pc_activities(
            params=(model, skips), activities=activities, optim=optimizer, opt_state=state, **told
        )
        return moved["activities"], moved["opt_state"]

    def gradients(model: Any, activities: Any) -> list[Any]:
        state = frozen.init((eqx.filter(model, eqx.is_array), skips))
        learned = jpc.update_pc_params(
            params=(model, skips), activities=activities, optim=frozen, opt_state=state, **told
        )
        return [layer[1].weight.T for layer in learned["grads"][0]]

    def step_by_step(model: Any) -> list[Any]:
        reached = begin(model)
        for _ in range(config.steps):
            reached = step(model, *reached)
        return gradients(model, reached[0])

    @eqx.filter_jit
    def whole(model: Any) -> list[Any]:
        again = lambda reached, _: (step(model, *reached), None)
        (activities, _), _ = jax.lax.scan(again, begin(model), None, length=config.steps)
        return gradients(model, activities)

    return {
        BY_STEPS: lambda: jax.block_until_ready(step_by_step(model)),
        WHOLE: lambda: jax.block_until_ready(whole(model)),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m benchmarks.predictive_peers")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
