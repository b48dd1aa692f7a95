"""Peers that do the same work: evosax, optax and PyTorch compared with nl_jax.

python -m benchmarks.peers --help
"""

import dataclasses
import functools
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import tyro

import nl_jax as nl
from benchmarks import pytorch, report
from benchmarks.problem import Problem, problem
from experiments.harness.failure import exit_code
from experiments.harness.results import Folder
from nl_jax.evaluation.diagnostics.timing import Spread, ratio


@dataclass(frozen=True)
class Config:
    """Time what other libraries offer for the same work, on one network and batch, side by side with ours.

    Peers that are not installed are left out: `pip install evosax torch` installs them all. Writes peers.json and
    peers.png to --out.
    """

    sizes: tuple[int, ...] = (784, 256, 256, 10)
    """Units per layer, input to output (tanh, cross-entropy)."""
    batch_size: int = 128
    """Examples."""
    num_samples: int = 32
    """K, random directions per estimate (a population of 2 K with antithetic pairs)."""
    rounds: int = 15
    """Interleaved repeats; the table shows medians and quartiles."""
    estimates: int = 20
    """Number of estimates over which the cosine to the exact gradient is averaged."""
    out: Path = Path("results/benchmarks/peers")
    """Folder for the results."""
    quick: bool = False
    """Three rounds and three estimates."""


Function = Callable[[jax.Array], Any]
"""`function(key) -> what it computes`."""


class Contest(NamedTuple):
    """A peer, and our functions that do the same work.

    Attributes:
      package: the name to install it by.
      title: the peer's name, version and settings, for tables.
      peer: ways to run its function; the best one counts.
      ours: our functions; they return gradient estimates if the peer has a `gradient`.
      gradient: maps the peer's result to a gradient (of any scale), a tree like the parameters; None for training
        steps, which are only timed.
      calls: calls per round, of the peer and of each of ours: one alone may be too short to time.
    """

    package: str
    title: str
    peer: Sequence[Function]
    ours: Mapping[str, Function]
    gradient: Callable[[Any], Any] | None
    calls: tuple[int, int] = (1, 4)


Cosine = tuple[float, float]  # mean and standard error


def run(config: Config) -> dict[str, dict[str, Spread]]:
    """Measures, prints a table and saves; returns the peers' times relative to ours."""
    if config.quick:
        config = dataclasses.replace(config, rounds=min(config.rounds, 3), estimates=min(config.estimates, 3))
    folder = Folder(config.out, config, outputs=("peers.json", "peers.png"))
    on = problem(config.sizes, config.batch_size)
    contests = [*_evosax(on, config.num_samples), _optax(on, config.num_samples), *_pytorch(on)]

    functions, calls = {}, {}
    for contest in contests:  # a function of ours may be in several contests and is timed once
        named = {contest.title: (contest.peer, contest.calls[0])}
        named |= {name: ([one], contest.calls[1]) for name, one in contest.ours.items()}
        for name, (ways, calls[name]) in named.items():
            functions[name] = [functools.partial(_repeat, way, calls[name]) for way in ways]
    seconds = {name: of / calls[name] for name, of in report.timed(functions, config.rounds).items()}
    over = {c.title: {name: ratio(seconds[c.title], seconds[name]) for name in c.ours} for c in contests}
    ms = {name: 1e3 * float(np.median(of)) for name, of in seconds.items()}
    cosines = _cosines(on, contests, config.estimates)

    print("\n".join(_table(config, on, over, ms, cosines)))
    results = {
        "versions": {contest.package: version(contest.package) for contest in contests},
        "peer_over_ours": {title: {name: value._asdict() for name, value in of.items()} for title, of in over.items()},
        "milliseconds": ms,
        "cosine_and_error": cosines,
    }
    label = f"time of the peer over ours (dashed: 1), K = {config.num_samples}"
    title = f"{on.title}, batch {config.batch_size}, {jax.devices()[0].device_kind}"
    report.save(folder, "peers", results, report.ratios_figure(over, label, title))
    return over


def _repeat(function: Function, calls: int) -> None:
    for _ in range(calls):  # each call is awaited: XLA could overlap them, which training steps cannot
        jax.block_until_ready(function(_KEY))


_KEY = jax.random.key(3)


def _estimate(on: Problem, estimator: nl.GradientEstimator) -> Function:
    @jax.jit
    def estimate(key: jax.Array, params: Any, batch: Any) -> Any:
        return estimator.estimate(key, estimator.init(key, params), params, batch)[0]

    return lambda key: estimate(key, on.params, on.data)


def _laws() -> dict[str, Any]:
    return {
        "Gaussian": nl.directions.gaussian(),
        "signs": nl.directions.rademacher(),
        "rank one": nl.directions.rank_one(),
    }


def _perturbations(on: Problem, samples: int, baseline: Any, note: str) -> dict[str, Function]:
    return {
        f"weight perturbation, {label}{note}": _estimate(
            on, nl.weight_perturbation(on.objective, num_samples=samples, directions=law, baseline=baseline)
        )
        for label, law in _laws().items()
    }


def _radius(on: Problem) -> float:
    # σ of a step of length 1, our evolution strategy's default. Time does not depend on σ, but the cosine does: optax's
    # default of 0.1 is a step of length 52 in 269 322 dimensions, and its estimates no longer follow the gradient.
    return sum(leaf.size for leaf in jax.tree.leaves(on.params)) ** -0.5


def _evosax(on: Problem, samples: int) -> list[Contest]:
    """One generation of Open_ES, and an estimate from the same number of evaluations, all antithetic."""
    if report.peer("evosax") is None:
        return []
    algorithm = importlib.import_module("evosax.algorithms").Open_ES(
        population_size=2 * samples,
        solution=on.params,
        optimizer=optax.sgd(1e-3),
        std_schedule=optax.constant_schedule(_radius(on)),
    )
    settings = algorithm.default_params
    start = algorithm.init(jax.random.key(0), on.params, settings)

    def generation(evaluate: Callable[[Any, Any], jax.Array]) -> Function:
        @jax.jit
        def next_state(key: jax.Array, state: Any, batch: Any) -> Any:
            ask_key, tell_key = jax.random.split(key)
            population, state = algorithm.ask(ask_key, state, settings)
            return algorithm.tell(tell_key, population, evaluate(population, batch), state, settings)[0]

        return lambda key: next_state(key, start, on.data)

    def gradient(state: Any) -> Any:
        return jax.tree.map(lambda before, after: before - after, on.params, algorithm.get_mean(state))

    at_once = generation(lambda population, batch: jax.vmap(on.mean_loss, in_axes=(0, None))(population, batch))
    in_turn = generation(lambda population, batch: jax.lax.map(lambda one: on.mean_loss(one, batch), population))
    strategies = {
        f"evolution strategy, {label}": _estimate(
            on, nl.evolution_strategy(on.objective, num_samples=samples, directions=law)
        )
        for label, law in _laws().items()
        if label != "rank one"
    }
    ours = strategies | _perturbations(on, samples, nl.baselines.antithetic(), ", antithetic")
    title = f"evosax {version('evosax')} Open_ES, population {2 * samples}, antithetic, "
    return [
        Contest("evosax", title + "vmap", [at_once], ours, gradient),  # the usual way to write it
        Contest("evosax", title + "lax.map", [in_turn], ours, gradient),  # better on a CPU
    ]


def _optax(on: Problem, samples: int) -> Contest:
    """The gradient of optax's perturbed mean loss; its default baseline is our clean baseline."""

    @jax.jit
    def gradient(key: jax.Array, params: Any, batch: Any) -> Any:
        perturbed = optax.perturbations.make_perturbed_fun(
            lambda params: on.mean_loss(params, batch),
            num_samples=samples,
            sigma=_radius(on),
            noise=optax.perturbations.Normal(),
        )
        return jax.grad(perturbed, argnums=1)(key, params)

    ours = _perturbations(on, samples, nl.baselines.clean(), "")
    title = f"optax {version('optax')} make_perturbed_fun, {samples} samples, Gaussian"
    return Contest("optax", title, [lambda key: gradient(key, on.params, on.data)], ours, lambda grads: grads)


def _pytorch(on: Problem) -> list[Contest]:
    """Backprop, and a step of MeZO compared with the same estimate and a plain descent step."""
    torch = pytorch.module()
    if torch is None:
        return []
    steps: dict[str, Function] = {}
    for label, law in _laws().items():
        estimator = nl.weight_perturbation(on.objective, directions=law, baseline=nl.baselines.antithetic())
        learner = nl.learner(estimator, optax.sgd(pytorch.RATE))
        state = learner.init(jax.random.key(0), on.params)
        step = functools.partial(jax.jit(learner.step), state=state, batch=on.data)
        steps[f"step of weight perturbation, {label}, one sample"] = step
    backward, gradient = pytorch.backprop(torch, on)
    passes, mezo = pytorch.with_threads(torch, backward), pytorch.with_threads(torch, pytorch.mezo(torch, on))
    backprop, title = {"backprop": _estimate(on, nl.backprop(on.objective))}, pytorch.title(torch)
    return [
        Contest("torch", f"{title}: backprop", passes, backprop, gradient, calls=(10, 10)),
        Contest("torch", f"{title}: step of MeZO, Gaussian", mezo, steps, None, calls=(5, 10)),
    ]


def _cosines(on: Problem, contests: Sequence[Contest], estimates: int) -> dict[str, Cosine]:
    """Cosine to `jax.grad`, mean and standard error; a peer's result is an estimate of the gradient, too."""
    exact = jax.jit(jax.grad(on.mean_loss))(on.params, on.data)
    cosine = jax.jit(nl.diagnostics.cosine)
    keys = jax.random.split(jax.random.key(4), estimates)
    found: dict[str, Cosine] = {}
    for contest in contests:
        if contest.gradient is None:
            continue
        named = {contest.title: (contest.peer[0], contest.gradient)}
        named |= {name: (function, lambda grads: grads) for name, function in contest.ours.items()}
        for name, (function, gradient) in named.items():
            if name not in found:
                values = np.array([cosine(gradient(function(key)), exact) for key in keys])
                found[name] = float(values.mean()), float(values.std(ddof=1) / estimates**0.5)
    return found


def _table(
    config: Config, on: Problem, over: dict[str, dict[str, Spread]], ms: dict[str, float], cosines: dict[str, Cosine]
) -> list[str]:
    def row(name: str, shown: str, time: str) -> tuple[str, ...]:
        value = f"{cosines[name][0]:.4f} ± {cosines[name][1]:.4f}" if name in cosines else ""
        return shown, time, f"{ms[name]:.2f}", value

    rows: list[tuple[str, ...]] = [
        (
            f"{on.title}, batch {config.batch_size}, K = {config.num_samples}, float32, "
            f"{jax.devices()[0].device_kind}; medians (quartiles) of {config.rounds} interleaved rounds",
        ),
        ("", "peer over ours", "ms", "cosine to jax.grad"),
    ]
    for title, ratios in over.items():
        rows.append(row(title, title, ""))
        rows += [row(name, f"  {name}", str(value)) for name, value in ratios.items()]
    return report.aligned(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m benchmarks.peers")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
