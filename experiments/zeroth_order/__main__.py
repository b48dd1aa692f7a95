"""Forward passes of zeroth-order methods (MeZO, FZOO, ZO-Muon and AGZO) on a language model, until a given loss.

python -m experiments.zeroth_order --help
"""

import dataclasses
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from experiments.finetune import data
from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.hasty import hasty
from experiments.harness.results import Folder, judge, verdict
from experiments.harness.settings import at_least
from experiments.zeroth_order.claims import search, target_of
from experiments.zeroth_order.report import Results, compared, plot, report
from experiments.zeroth_order.training import Curve, Measure, Problem, Runner, Settings, cosines, problem

WEIGHTS = ("query", "key", "value", "mix", "gate", "up", "down")
LEARNABLE = (*WEIGHTS, "embedding")


@dataclass(frozen=True)
class Config:
    """Count the forward passes that zeroth-order methods need to fine-tune a language model to a given loss.

    Model and task are those of `experiments.finetune`: SmolLM2-135M-Instruct if it is installed. With --small or
    --quick it is a small character model that is trained here first. Learning rates are chosen on validation prompts.
    The loss to reach is the one at which MeZO has done most of its descent. All measurements are on held-out prompts.
    Prints what the papers claim and what was found. Exits with 1 if a method ends above its initial loss. Writes
    config.json, metrics.jsonl, zeroth_order.json, zeroth_order.npz and zeroth_order.png to --out.
    """

    out: Path = Path("results/zeroth_order")
    """Folder for the results."""
    evaluations: int = 3000
    """Budget of each run in evaluations of the objective, as the library counts them: AGZO's basis sketch is one."""
    batch_size: int = 16
    """Prompts per step."""
    held_out: int = 128
    """Number of held-out prompts to measure on; as many others are the validation prompts."""
    moments: int = 60
    """Number of times the losses are measured during a run; the steps between two measurements are one dispatch."""
    seeds: int = 3
    """Runs at the chosen rate, each with its own noise and batches."""
    sigma: float = 1e-3
    """σ of the noise."""
    samples: int = 8
    """K, samples of FZOO."""
    queries: int = 4
    """K, samples of ZO-Muon."""
    subspace: int = 16
    """Rank of ZO-Muon's random subspaces."""
    rank: int = 1
    """Rank of AGZO's bases."""
    learn: tuple[str, ...] = WEIGHTS
    """Parameters that learn: some of query, key, value, mix, gate, up, down and embedding. All others are frozen. The
    embedding is used for look-up as well as multiplication, so AGZO perturbs it with isotropic noise."""
    rates: tuple[float, ...] = (3e-5, 1e-3, 1e-2, 1e-4)
    """Initial learning rates of the search, for MeZO, FZOO, ZO-Muon and AGZO."""
    trials: int = 5
    """Largest number of rates tried. The search moves up or down by √10 until the best rate is not at the edge. The
    best rate has the lowest mean validation loss over the measurements that all runs have. With 1, the first rate is
    used."""
    fraction: float = 0.9
    """Sets the loss to reach: the fraction of MeZO's mean descent on held-out prompts, over all its seeds."""
    target: float | None = None
    """The loss to reach, instead of --fraction."""
    draws: int = 8
    """Number of estimates whose cosine to the gradient is measured, each on its own batch; 0 for none. This uses
    backpropagation."""
    minutes: float = float("inf")
    """Time limit for everything. Each run has a share and stops at the first measurement after it; results are kept."""
    methods: tuple[str, ...] = ("MeZO", "FZOO", "ZO-Muon", "AGZO")
    """Methods to run, of these four; the others are compared with MeZO."""
    small: bool = False
    """Use the character model, with 600 evaluations and 8 seeds."""
    quick: bool = False
    """The character model, few evaluations, two seeds and one rate; without ZO-Muon, which is slow to compile."""


METHODS = Config.methods
SMALL: dict[str, Any] = {"evaluations": 600, "seeds": 8, "rates": (3e-3, 3e-2, 3e-2, 1e-2)}
_FEW: dict[str, Any] = {"evaluations": 180, "moments": 5, "seeds": 2, "trials": 1, "draws": 0}
QUICK = _FEW | {"methods": ("MeZO", "FZOO", "AGZO")}


def run(config: Config) -> Results:
    """Runs every method and prints the comparison.

    Raises:
      ExperimentError: for an invalid setting or an unusable folder, or if a method ends above its initial loss.
    """
    if config.quick or config.small:
        preset = SMALL | (QUICK if config.quick else {})
        # Settings that were given explicitly are kept.
        settings = {name: value for name, value in preset.items() if getattr(config, name) == getattr(Config, name)}
        config = dataclasses.replace(config, small=True, **settings)
    _check(config)
    with hasty(config.quick):
        return _results(config)


def _results(config: Config) -> Results:
    begun = time.perf_counter()
    task = data.small(config.held_out) if config.small else data.real(config.held_out)
    folder = Folder(config.out, config, outputs=[f"zeroth_order.{kind}" for kind in ("json", "npz", "png")])
    of = problem(task, config.learn)
    settings = Settings(config.sigma, config.samples, config.queries, config.subspace, config.rank)
    measure = Measure(of, task)
    size = sum(leaf.size for leaf in jax.tree.leaves(of.learned))
    print(f"{task.name}: {size / 1e6:,.2f} million parameters learn", flush=True)
    results = Results({}, {}, {}, {})
    if config.draws:
        results = results._replace(cosines=cosines(of, task, settings, config.batch_size, config.draws))
    for number, method in enumerate(config.methods):
        # The remaining time is shared by this method and those after it.
        left = config.minutes * 60 - (time.perf_counter() - begun)
        share = left / (len(config.methods) - number)
        _method(method, config, (of, task, settings, measure), share, results)
        folder.metric(
            method=method, rate=results.rates[method], tried=results.tried[method],
            curves=[curve._asdict() for curve in results.curves[method]],
        )  # fmt: skip
        _write(folder, config, task, results)
    folder.picture("zeroth_order", plot(results, _target(results, config), task.name))
    print("\n".join(report(results, _target(results, config), task.name)))
    print(f"picture and data: {folder.path} (zeroth_order.png, zeroth_order.npz, zeroth_order.json, config.json)")
    judge(deviations(results))
    return results


def _method(
    method: str, config: Config, of: tuple[Problem, data.Task, Settings, Measure], share: float, results: Results
) -> None:
    """Chooses the method's rate and runs its seeds, within `share` seconds."""
    of_problem, task, settings, measure = of
    every = max(1, round(config.evaluations / config.moments / _cost(method, config)))
    begun = time.perf_counter()
    runner = Runner(method, of_problem, task, settings, config.batch_size, every)
    compiled = time.perf_counter()
    print(f"{method}: compiled in {compiled - begun:.3g} s", flush=True)
    end = compiled + max(0.0, share - (compiled - begun))

    def curve(key: Any, rate: float, runs_left: int) -> Curve:
        until = time.perf_counter() + (end - time.perf_counter()) / runs_left
        found = runner(key, rate, config.moments, measure, until)
        print(
            f"{method}: rate {rate:.2g}, validation loss {found.validation[-1]:.3f} after "
            f"{found.evaluations[-1]:,.0f} evaluations, {found.seconds:.3g} s a step", flush=True,
        )  # fmt: skip
        return found

    def trial(rate: float, number: int) -> Curve:
        return curve(jax.random.key(31), rate, config.trials + config.seeds - number)

    best = config.rates[METHODS.index(method)]
    tried: dict[float, float] = {}
    if config.trials > 1:
        tried = search(trial, best, config.trials)
        best = min(tried, key=lambda rate: tried[rate])
        if not np.isfinite(tried[best]):
            raise ExperimentError(f"{method} diverged at every rate, {', '.join(f'{rate:.2g}' for rate in tried)}")
    results.rates[method], results.tried[method] = best, tried
    results.curves[method] = [
        curve(jax.random.fold_in(jax.random.key(29), seed), best, config.seeds - seed) for seed in range(config.seeds)
    ]


def _cost(method: str, config: Config) -> int:
    """Evaluations per step."""
    return {"MeZO": 2, "FZOO": config.samples + 1, "ZO-Muon": config.queries + 1, "AGZO": 3}[method]


def _check(config: Config) -> None:
    at_least(
        config, evaluations=1, batch_size=1, held_out=2, moments=1, seeds=1, samples=2, queries=1, subspace=1, rank=1,
        trials=1, draws=0,
    )  # fmt: skip
    for name, allowed in (("methods", METHODS), ("learn", LEARNABLE)):
        given = getattr(config, name)
        if not given or set(given) - set(allowed):
            raise ExperimentError(f"--{name} must be one or more of {', '.join(allowed)}; got {', '.join(given)}")
    if "MeZO" not in config.methods and config.target is None:
        raise ExperimentError("--methods must have MeZO, whose loss is to be reached, or give a loss by --target")
    if len(config.rates) != len(METHODS) or not all(0 < rate < np.inf for rate in (*config.rates, config.sigma)):
        raise ExperimentError(f"--rates must be {len(METHODS)} finite numbers above 0, and --sigma one")
    if not 0 < config.fraction <= 1:
        raise ExperimentError(f"--fraction must be above 0 and at most 1, got {config.fraction}")
    if not config.minutes > 0:
        raise ExperimentError(f"--minutes must be above 0, got {config.minutes}")


def _target(results: Results, config: Config) -> float:
    """The loss to reach."""
    if config.target is not None:
        return config.target
    return target_of([own.held_out for own in results.curves["MeZO"]], config.fraction)


def deviations(results: Results) -> dict[str, float]:
    """The deviations that are judged: each method's final held-out loss over its initial one."""
    return {
        f"held-out loss by {method}": float(np.mean([own.held_out[-1] / own.held_out[0] for own in curves]))
        for method, curves in results.curves.items()
    }


def _write(folder: Folder, config: Config, task: data.Task, results: Results) -> None:
    """Writes all results so far, so that an interrupted run keeps the finished methods."""
    target = _target(results, config)
    queries, times = compared(results, target)
    off = deviations(results)
    folder.data(
        "zeroth_order",
        {
            **verdict(off)._asdict(), "model": task.name, "deviations": off, "target": target, "queries": queries,
            "times fewer than MeZO": {method: own._asdict() for method, own in times.items()},
            "rates": results.rates, "tried": results.tried, "cosines": results.cosines,
            "seconds a step": {of: float(np.median([c.seconds for c in own])) for of, own in results.curves.items()},
        },
    )  # fmt: skip
    arrays = {
        f"{part} {method} {seed}": getattr(curve, part)
        for method, curves in results.curves.items()
        for seed, curve in enumerate(curves)
        for part in ("evaluations", "validation", "held_out")
    }
    folder.arrays("zeroth_order", arrays)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.zeroth_order")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
