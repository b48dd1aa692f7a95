"""Peers that do the same recurrent work: braintrace's online rules and snntorch's leaky layer compared with ours.

python -m benchmarks.recurrent_peers --help
"""

import dataclasses
import functools
import importlib
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import nl_jax as nl
from benchmarks import pytorch, report
from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.results import Folder
from nl_jax.base import Objective
from nl_jax.evaluation.diagnostics.timing import Spread, ratio

DECAY, SLOPE = 0.9, 2.0  # of the membrane, and of the arctan surrogate for a spike's derivative


@dataclass(frozen=True)
class Config:
    """Time a gradient of one recurrent network and batch by each peer and by ours, and compare the two gradients.

    braintrace runs a network of tanh units by D-RTRL, which is our e-prop, and by SnAp. Its SnAp of order two includes
    all units and is therefore RTRL. snntorch runs a layer of leaky spiking units forwards and backwards. Peers that are
    not installed are left out: `pip install braintrace torch snntorch` installs them all. Writes recurrent_peers.json
    and recurrent_peers.png to --out.
    """

    units: int = 16
    """Tanh units of braintrace's network."""
    steps: int = 25
    """T, steps of braintrace's network."""
    spiking_units: int = 128
    """Units of snntorch's layer."""
    spiking_steps: int = 100
    """T, steps of snntorch's layer."""
    inputs: int = 8
    """Inputs of both at each step."""
    batch_size: int = 32
    """Examples."""
    rounds: int = 15
    """Interleaved repeats; the table shows medians and quartiles."""
    out: Path = Path("results/benchmarks/recurrent_peers")
    """Folder for the results."""
    quick: bool = False
    """Three rounds."""


Function = Callable[[], Any]


class Problem(NamedTuple):
    """An objective whose loss is summed in the loop over time, initial parameters, and a batch (inputs, targets)."""

    objective: Objective
    params: Any
    batch: tuple[jax.Array, jax.Array]


class Contest(NamedTuple):
    """A peer's gradient and ours.

    Attributes:
      package: the name to install it by.
      title: the peer's name, version and rule, for tables.
      ways: ways to compute the gradient; the best one counts.
      ours: the name of our rule.
      gradient: the peer's gradient, an array like our stacked weights.
    """

    package: str
    title: str
    ways: Sequence[Function]
    ours: str
    gradient: np.ndarray


def run(config: Config) -> dict[str, Spread]:
    """Measures, prints a table and saves; returns the peers' times relative to ours.

    Raises:
      ExperimentError: if no peer is installed.
    """
    if config.quick:
        config = dataclasses.replace(config, rounds=min(config.rounds, 3))
    folder = Folder(config.out, config, outputs=("recurrent_peers.json", "recurrent_peers.png"))
    rates, spikes = tanh_network(config), spiking_layer(config)
    ours: dict[str, tuple[Problem, nl.GradientEstimator]] = {
        "e-prop": (rates, nl.e_prop(rates.objective)),
        "SnAp-1": (rates, nl.snap(rates.objective, order=1)),
        "RTRL": (rates, nl.rtrl(rates.objective)),
        "backprop, spiking": (spikes, nl.backprop(spikes.objective)),
    }
    contests = [*_braintrace(rates), *_snntorch(spikes)]
    if not contests:
        raise ExperimentError("none of the peers is installed: there is nothing to compare with")
    gradients = {name: _gradient(*of) for name, of in ours.items()}
    needed = {contest.ours for contest in contests}
    functions: dict[str, Sequence[Function]] = {name: [gradients[name]] for name in ours if name in needed}
    functions |= {contest.title: contest.ways for contest in contests}
    seconds = report.timed(functions, config.rounds)
    over = {c.title: ratio(seconds[c.title], seconds[c.ours]) for c in contests}
    ms = {name: 1e3 * float(np.median(of)) for name, of in seconds.items()}
    differences = {c.title: _difference(c.gradient, stacked(gradients[c.ours]())) for c in contests}

    print("\n".join(_table(config, contests, over, ms, differences)))
    results = {
        "versions": {contest.package: version(contest.package) for contest in contests},
        "peer_over_ours": {name: value._asdict() for name, value in over.items()},
        "ours": {contest.title: contest.ours for contest in contests},
        "milliseconds": ms,
        "relative_difference_of_gradients": differences,
    }
    title = f"A gradient, batch {config.batch_size}, {jax.devices()[0].device_kind}"
    shown = {f"over our {c.ours}": {c.title: over[c.title]} for c in contests}
    canvas = report.ratios_figure(shown, "time of the peer over ours (dashed: 1)", title)
    report.save(folder, "recurrent_peers", results, canvas)
    return over


def tanh_network(config: Config) -> Problem:
    """h_t = tanh(W x_t + U h_{t−1} + b) has to follow random targets."""
    cell = nl.cells.rnn(config.units)

    def begin(batch: int) -> Any:
        return cell.start(batch)

    keys = jax.random.split(jax.random.key(0), 3)
    shape = config.batch_size, config.steps
    batch = jax.random.normal(keys[0], (*shape, config.inputs)), jax.random.normal(keys[1], (*shape, config.units))
    return Problem(_followed(begin, cell.step), cell.init(keys[2], config.inputs), batch)


def spiking_layer(config: Config) -> Problem:
    """v_t = α v_{t−1} − z_{t−1} + W x_t, z_t = H(v_t − 1), without recurrent weights, like snntorch's Leaky."""
    spike = nl.surrogates.arctan(SLOPE)

    def begin(batch: int) -> Any:
        return (jnp.zeros((batch, config.spiking_units)),) * 2

    def step(params: Any, carry: Any, x: jax.Array, propagate: Any) -> Any:
        v, z = carry
        current = propagate("hidden", lambda p, x: x @ p["weight"], nl.activations.identity(), params["hidden"], x)
        v = DECAY * v - jax.lax.stop_gradient(z) + current
        z = spike(v - 1)
        return (v, z), z

    keys = jax.random.split(jax.random.key(1), 3)
    shape = config.batch_size, config.spiking_steps
    inputs = jax.random.bernoulli(keys[0], 0.3, (*shape, config.inputs)).astype(float)
    weight = 2 * jax.random.normal(keys[2], (config.inputs, config.spiking_units)) / config.inputs**0.5
    targets = jax.random.uniform(keys[1], (*shape, config.spiking_units))
    return Problem(_followed(begin, step), {"hidden": {"weight": weight}}, (inputs, targets))


def _followed(begin: Callable[[int], Any], step: Callable[..., Any]) -> Objective:
    """An objective: mean squared error of the outputs, averaged over the steps."""

    def objective(params: Any, batch: Any, propagate: Any = nl.propagation.feedforward) -> jax.Array:
        inputs, targets = (jnp.swapaxes(part, 0, 1) for part in batch)

        def one(carry: Any, xy: tuple[jax.Array, jax.Array], propagate: Any) -> tuple[Any, None]:
            state, loss = carry
            state, output = step(params, state, xy[0], propagate)
            return (state, loss + jnp.mean((output - xy[1]) ** 2, axis=-1)), None

        examples = inputs.shape[1]
        start = begin(examples), jnp.zeros(examples)
        return nl.scan("time", one, start, (inputs, targets), propagate)[0][1] / len(inputs)

    return objective


def _gradient(on: Problem, estimator: nl.GradientEstimator) -> Function:
    key = jax.random.key(0)
    estimate = jax.jit(lambda params, batch: estimator.estimate(key, estimator.init(key, params), params, batch)[0])
    return lambda: jax.block_until_ready(estimate(on.params, on.batch))


def stacked(params: Any) -> np.ndarray:
    """The hidden layer's input weights, stacked on its recurrent weights if it has any."""
    hidden = params["hidden"]
    return np.concatenate([hidden[name] for name in ("weight", "recurrent") if name in hidden])


def _difference(theirs: np.ndarray, ours: np.ndarray) -> float:
    return float(optax.tree.norm(theirs - ours) / optax.tree.norm(ours))


def _braintrace(on: Problem) -> list[Contest]:
    """Its rules on its own cell with our weights, batched as it supports: all examples in one state, or vmap."""
    module = report.peer("braintrace")
    if module is None:
        return []
    brainstate = importlib.import_module("brainstate")
    title = f"braintrace {version('braintrace')} "
    contests = []
    for label, algorithm, settings, vmaps, ours in (
        ("D-RTRL", module.D_RTRL, {}, (False, True), "e-prop"),
        ("SnAp, n = 1", module.SnAp, {"n": 1}, (False, True), "SnAp-1"),
        ("SnAp, n = 2", module.SnAp, {"n": 2}, (True,), "RTRL"),  # needs vmap: otherwise it also widens over examples
    ):
        ways = [braintrace_way(module, brainstate, on, algorithm, settings, vmap) for vmap in vmaps]
        found = jax.block_until_ready(ways[0]())  # the first call starts from a zero state
        (gradient,) = (np.asarray(leaf) for leaf in jax.tree.leaves(found) if leaf.ndim == 2)
        contests.append(Contest("braintrace", title + label, ways, ours, gradient))
    return contests


def braintrace_way(module: Any, brainstate: Any, on: Problem, algorithm: Any, settings: Any, vmap: bool) -> Function:
    """A sequence's gradient, computed as in its documentation; every call starts from the last call's final state."""
    hidden = on.params["hidden"]
    inputs, units = hidden["weight"].shape
    model = module.nn.ValinaRNNCell(inputs, units, activation="tanh")
    for parameter in model.states(brainstate.ParamState).values():
        parameter.value = {"weight": jnp.asarray(stacked(on.params)), "bias": hidden["bias"]}
    xs, ys = (jnp.swapaxes(part, 0, 1) for part in on.batch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that SnAp widens, which is intended here
        learner = module.compile(model, algorithm, xs[0], batch_size=xs.shape[1], vmap=vmap, **settings)

    @brainstate.transform.jit
    def gradient(xs: jax.Array, ys: jax.Array) -> Any:
        return learner.etrace_grad(xs, ys, step_fn=lambda x, y: jnp.mean((learner(x) - y) ** 2))

    return lambda: jax.block_until_ready(gradient(xs, ys))


def _snntorch(on: Problem) -> list[Contest]:
    """`Leaky` after a linear layer, forwards and backwards."""
    torch, module = pytorch.module(), report.peer("snntorch")
    if torch is None or module is None:
        return []
    backward = snntorch_way(torch, module, on)
    gradient = backward(None).numpy().T.copy()
    ways = [functools.partial(way, None) for way in pytorch.with_threads(torch, backward)]
    title = f"snntorch {version('snntorch')} Leaky, PyTorch {torch.__version__}"
    return [Contest("snntorch", title, ways, "backprop, spiking", gradient)]


def snntorch_way(torch: Any, module: Any, on: Problem) -> Callable[[Any], Any]:
    """A Python loop over time, as in its tutorials."""
    weight = np.asarray(on.params["hidden"]["weight"])
    linear = torch.nn.Linear(*weight.shape, bias=False)
    linear.weight.data = torch.tensor(weight.T.copy())
    surrogate = importlib.import_module("snntorch.surrogate").atan(alpha=SLOPE)
    leaky = module.Leaky(beta=DECAY, threshold=1.0, reset_mechanism="subtract", spike_grad=surrogate)
    inputs, targets = (torch.tensor(np.swapaxes(np.asarray(part), 0, 1).copy()) for part in on.batch)

    def backward(key: Any) -> Any:
        del key
        linear.zero_grad()
        membrane, loss = leaky.init_leaky(), torch.zeros(())
        for x, y in zip(inputs, targets, strict=True):
            spikes, membrane = leaky(linear(x), membrane)
            loss = loss + ((spikes - y) ** 2).mean()
        (loss / len(inputs)).backward()
        return linear.weight.grad

    return backward


def _table(
    config: Config,
    contests: Sequence[Contest],
    over: dict[str, Spread],
    ms: dict[str, float],
    differences: dict[str, float],
) -> list[str]:
    heading = (
        f"tanh network of {config.units} units, {config.steps} steps; spiking layer of {config.spiking_units}, "
        f"{config.spiking_steps} steps; {config.inputs} inputs, batch {config.batch_size}, float32, "
        f"{jax.devices()[0].device_kind}; a gradient; medians (quartiles) of {config.rounds} interleaved rounds"
    )
    rows: list[tuple[str, ...]] = [(heading,), ("", "over ours", "ms", "ours", "ms", "difference of gradients")]
    for c in contests:
        times = f"{ms[c.title]:.2f}", c.ours, f"{ms[c.ours]:.2f}"
        rows.append((c.title, str(over[c.title]), *times, f"{differences[c.title]:.1e}"))
    return report.aligned(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m benchmarks.recurrent_peers")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
