"""Cost of a training step by each solver of the constrained view, relative to backprop; and by peers, relative to ours.

python -m benchmarks.constrained --help
"""

import dataclasses
import functools
import importlib
import itertools
import sys
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
from benchmarks import multipliers, pytorch, report
from benchmarks.multipliers import Inner
from benchmarks.problem import Problem, problem
from experiments.harness.failure import exit_code
from experiments.harness.results import Folder
from nl_jax.base import Objective
from nl_jax.evaluation.diagnostics.timing import Spread, ratio

RATE = 0.1  # learning rate, and step size of inference in predictive coding
ALL = 0.0  # tolerance: no solver stops early, so all steps are timed


@dataclass(frozen=True)
class Config:
    """Time one training step, an estimate and a descent step, of every solver relative to backprop, side by side.

    Peers do the same work, and their gradients are compared with ours first: fabricpc does the predictive coding; mdmm
    and cooper, with PyTorch, do the primal–dual iterations. Peers that are not installed are left out: `pip install
    fabricpc mdmm cooper-optim torch` installs them all. Writes constrained.json and constrained.png to --out.
    """

    sizes: tuple[int, ...] = (784, 256, 256, 10)
    """Units per layer, input to output (tanh, half the squared error)."""
    batch_size: int = 128
    """Examples."""
    iterations: int = 20
    """K, inner iterations: steps of primal–dual, extragradient, predictive coding and each phase of networks at
    equilibrium. The method of multipliers takes K steps in total, in groups of five; ADMM takes K/4 sweeps."""
    rounds: int = 15
    """Interleaved repeats; the table shows medians and quartiles."""
    out: Path = Path("results/benchmarks/constrained")
    """Folder for the results."""
    quick: bool = False
    """Three rounds."""


Function = Callable[[jax.Array], Any]
"""`function(key) -> what it computes`."""


class Contest(NamedTuple):
    """A peer, and our solver that does the same work.

    Attributes:
      package: the name to install it by.
      title: the peer's name and version, for tables.
      peer: ways to make its step; the best one counts.
      ours: the name of our solver.
      gradient: returns the gradient that the step descends, a tree like the parameters.
    """

    package: str
    title: str
    peer: Sequence[Function]
    ours: str
    gradient: Callable[[], Any]


def run(config: Config) -> dict[str, Spread]:
    """Measures, prints a table and saves; returns solvers' times relative to backprop's."""
    if config.quick:
        config = dataclasses.replace(config, rounds=min(config.rounds, 3))
    folder = Folder(config.out, config, outputs=("constrained.json", "constrained.png"))
    on = _regression(config)
    estimators = solvers(on, config.iterations)
    contests = [*_fabricpc(on, config.iterations), *_multipliers(on, inner(config.iterations))]
    differences = {c.title: _difference(c.gradient(), _gradient(on, estimators[c.ours])) for c in contests}

    functions: dict[str, Sequence[Function]] = {name: [_step(on, one)] for name, one in estimators.items()}
    for (step,) in functions.values():
        nl.raise_if_failed(step(_KEY)[1].failures)
    functions |= {contest.title: contest.peer for contest in contests}
    waited = {name: [functools.partial(_wait, way) for way in ways] for name, ways in functions.items()}
    seconds = report.timed(waited, config.rounds)
    over = {name: ratio(seconds[name], seconds["backprop"]) for name in estimators if name != "backprop"}
    peers = {c.title: ratio(seconds[c.title], seconds[c.ours]) for c in contests}
    ms = {name: 1e3 * float(np.median(of)) for name, of in seconds.items()}

    print("\n".join(_table(config, on, over, contests, peers, ms, differences)))
    results = {
        "versions": {contest.package: version(contest.package) for contest in contests},
        "solver_over_backprop": {name: value._asdict() for name, value in over.items()},
        "peer_over_ours": {name: value._asdict() for name, value in peers.items()},
        "milliseconds": ms,
        "relative_difference_of_gradients": differences,
    }
    title = f"{on.title}, batch {config.batch_size}, {jax.devices()[0].device_kind}"
    groups = {"a step over backprop's": over, "a peer's step over ours": peers}
    canvas = report.ratios_figure({name: of for name, of in groups.items() if of}, "ratio of times (dashed: 1)", title)
    report.save(folder, "constrained", results, canvas)
    return over


def _regression(config: Config) -> Problem:
    """The benchmarks' problem with half the squared error to one-hot targets, which all peers support."""
    on = problem(config.sizes, config.batch_size)
    network = nl.mlp(config.sizes, activation=nl.activations.tanh())
    title = "-".join(map(str, config.sizes)) + " tanh, half the squared error, random data"
    images, labels = on.data
    targets = jax.nn.one_hot(labels, config.sizes[-1])
    objective = nl.supervised(network.apply, nl.losses.half_squared_error)
    return on._replace(title=title, objective=objective, data=(images, targets))


def inner(iterations: int) -> Inner:
    """Settings of the primal–dual iterations, the same for ours and the peers'."""
    return Inner(step_size=0.05, damping=1.0, num_steps=iterations)


def solvers(on: Problem, k: int) -> dict[str, nl.GradientEstimator]:
    """All solvers by name, with `k` inner iterations."""
    f, layers = on.objective, len(on.params)
    return {
        "backprop": nl.backprop(f),
        "Lagrangian, by substitution": nl.lagrangian_backprop(f),
        f"fixed prediction, {layers - 1} steps": nl.fixed_prediction(f, num_steps=layers - 1),
        "Z-IL": nl.zero_divergence(f),
        _PREDICTIVE.format(k): nl.predictive_coding(f, optimizer=optax.sgd(RATE), num_steps=k, tolerance=ALL),
        f"auxiliary coordinates, 2 × {k} steps": nl.auxiliary_coordinates(
            f, penalties=(1, 10), num_steps=k, tolerance=ALL
        ),
        _PRIMAL_DUAL.format(k): _primal_dual(f, inner(k)),
        f"extragradient, {k} steps": nl.extragradient(f, step_size=0.05, num_steps=k, tolerance=ALL),
        f"augmented Lagrangian, {k // 5 or 1} × 5 steps": nl.augmented_lagrangian(
            f, num_outer=k // 5 or 1, num_inner=5, tolerance=ALL
        ),
        f"ADMM, {k // 4 or 1} sweeps": nl.admm(f, num_steps=k // 4 or 1, tolerance=ALL),
        f"equilibrium propagation, 3 phases of {k} steps": nl.equilibrium_propagation(
            f, feedback_strength=0.3, num_steps=k, tolerance=ALL
        ),
        f"contrastive Hebbian, 2 phases of {k} steps": nl.contrastive_hebbian(f, num_steps=k),
    }


def _primal_dual(objective: Objective, settings: Inner) -> nl.GradientEstimator:
    eta, c, k = settings
    return nl.primal_dual(objective, step_size=eta, multiplier_step_size=eta, damping=c, num_steps=k, tolerance=ALL)


_PREDICTIVE, _PRIMAL_DUAL = "predictive coding, {} steps", "primal–dual, {} steps"


def _step(on: Problem, estimator: nl.GradientEstimator) -> Function:
    learner = nl.learner(estimator, optax.sgd(RATE))
    state = learner.init(jax.random.key(0), on.params)
    return functools.partial(jax.jit(learner.step), state=state, batch=on.data)


def _gradient(on: Problem, estimator: nl.GradientEstimator) -> Any:
    return jax.jit(lambda params, batch: estimator.estimate(jax.random.key(0), (), params, batch)[0])(
        on.params, on.data
    )


def _difference(theirs: Any, ours: Any) -> float:
    return float(optax.tree.norm(jax.tree.map(jnp.subtract, theirs, ours)) / optax.tree.norm(ours))


def _wait(function: Function) -> None:
    jax.block_until_ready(function(_KEY))


_KEY = jax.random.key(3)


def _fabricpc(on: Problem, iterations: int) -> list[Contest]:
    """A training step of fabricpc, with its nodes' derivatives by autodiff or written by hand."""
    if report.peer("fabricpc") is None:
        return []
    nodes = (_module("nodes.linear").Linear, _module("nodes.linear_explicit_grad").LinearExplicitGrad)
    ways = [fabricpc_step(node, on, iterations) for node in nodes]

    def gradient() -> Any:
        """The gradient, from the difference of the parameters: the step returns only these."""
        after = ways[0](_KEY)
        return {
            name: jax.tree.map(lambda w, moved: (w - moved) / RATE, layer, _layer(after.nodes[name]))
            for name, layer in on.params.items()
        }

    title = f"fabricpc {version('fabricpc')}"
    return [Contest("fabricpc", title, ways, _PREDICTIVE.format(iterations), gradient)]


def fabricpc_step(node: Any, on: Problem, iterations: int) -> Function:
    """A step with the same energies: Gaussian of unit precision, targets clamped, feedforward initial axons; μ = 1."""
    tanh = _module("core.activations").TanhActivation()
    top = list(on.params)[-1]
    units = dict(zip(on.params, on.sizes[1:], strict=True))
    layers = [node(shape=(on.sizes[0],), name="input")]
    layers += [
        node(shape=(n,), name=name, **({} if name == top else {"activation": tanh})) for name, n in units.items()
    ]
    edge, assembly = _module("core.topology").Edge, _module("graph_assembly")
    edges = [edge(source=low, target=high.slot("in")) for low, high in itertools.pairwise(layers)]
    structure = assembly.graph(
        nodes=layers,
        edges=edges,
        task_map=assembly.TaskMap(x=layers[0], y=layers[-1]),
        inference=_module("core.inference").InferenceSGD(eta_infer=RATE, infer_steps=iterations),
    )
    params = _module("graph_initialization").initialize_params(structure, jax.random.key(0))
    own = {
        name: params.nodes[name]._replace(
            weights={next(iter(params.nodes[name].weights)): layer["weight"]}, biases={"b": layer["bias"][None]}
        )
        for name, layer in on.params.items()
    }
    params = params._replace(nodes={**params.nodes, **own})
    optimizer = optax.sgd(RATE)
    train = _module("training").make_train_step(structure, optimizer, algorithm="pc")
    batch = dict(zip("xy", on.data, strict=True))
    return lambda key: train(params, optimizer.init(params), batch, key)[0]


def _module(name: str) -> Any:
    return importlib.import_module(f"fabricpc.{name}")


def _layer(node: Any) -> dict[str, jax.Array]:
    (weight,) = node.weights.values()
    return {"weight": weight, "bias": node.biases["b"][0]}


def _multipliers(on: Problem, settings: Inner) -> list[Contest]:
    """The primal–dual iterations in PyTorch, by each installed library."""
    torch = pytorch.module()
    if torch is None:
        return []
    contests = []
    for package, name, make in (("mdmm", "mdmm", multipliers.mdmm), ("cooper-optim", "cooper", multipliers.cooper)):
        library = report.peer(name)
        if library is not None:
            step, program = make(torch, library, on, settings)
            ways = pytorch.with_threads(torch, step)
            title = f"{name} {version(package)}, {pytorch.title(torch)}"
            gradient = functools.partial(_torch_gradient, step, program, on)
            contests.append(Contest(package, title, ways, _PRIMAL_DUAL.format(settings.num_steps), gradient))
    return contests


def _torch_gradient(step: Function, program: multipliers.Program, on: Problem) -> Any:
    return program.tree(step(_KEY), on)


def _table(
    config: Config,
    on: Problem,
    over: dict[str, Spread],
    contests: Sequence[Contest],
    peers: dict[str, Spread],
    ms: dict[str, float],
    differences: dict[str, float],
) -> list[str]:
    heading = (
        f"{on.title}, batch {config.batch_size}, float32, {jax.devices()[0].device_kind}; a training step; medians "
        f"(quartiles) of {config.rounds} interleaved rounds"
    )
    rows: list[tuple[str, ...]] = [(heading,), ("", "over backprop", "ms"), ("backprop", "1", f"{ms['backprop']:.2f}")]
    rows += [(name, str(value), f"{ms[name]:.2f}") for name, value in over.items()]
    if contests:
        rows.append(("", "over ours", "ms", "ours", "difference of gradients"))
    for contest in contests:
        title = contest.title
        rows.append((title, str(peers[title]), f"{ms[title]:.2f}", contest.ours, f"{differences[title]:.1e}"))
    return report.aligned(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m benchmarks.constrained")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
