"""Fine-tunes with one method: its problem, its learner, and a run that an interruption does not lose."""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import nl_jax as nl
from experiments.finetune import data
from experiments.harness.language_model import adapted, adapters
from nl_jax.base import Array, Key, Objective, Params


class Settings(NamedTuple):
    """The settings of `Config` that the parts share."""

    evaluations: int
    batch_size: int
    moments: int
    sigma: float
    samples: int
    directions: int
    devices: int


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


def cost(method: str, settings: Settings) -> int:
    """Returns the evaluations per step."""
    return {"FZOO": settings.samples + 1, "backprop": 3}.get(method, 2 * settings.directions)


def problem_of(method: str, task: data.Task) -> Problem:
    """Returns what a method trains: the model's parameters or adapters beside it."""
    model, params = task.model, task.params
    losses = data.first_token_losses(model)
    if method != "adapters":
        return Problem(params, (), lambda frozen: losses)
    beside = adapters(model, jax.random.key(17))
    return Problem(beside, params, lambda frozen: lambda beside, batch: losses(adapted(frozen, beside), batch))


def learner_of(
    method: str, objective: Objective, rate: float, settings: Settings
) -> tuple[nl.Learner, nl.GradientEstimator]:
    """Returns a method's learner and the estimator in it."""
    if method == "backprop":
        estimator = nl.backprop(objective)
        return nl.learner(estimator, optax.sgd(rate)), estimator
    law = nl.directions.rank_one() if method == "rank one" else nl.directions.rademacher()
    count = settings.samples if method == "FZOO" else settings.directions
    baseline = nl.baselines.clean() if method == "FZOO" else nl.baselines.antithetic()
    estimator = nl.weight_perturbation(
        objective, sigma=settings.sigma, num_samples=count, baseline=baseline, directions=law,
        sharding=sharding(settings),
    )  # fmt: skip
    estimator = nl.normalised(estimator) if method == "FZOO" else estimator
    return nl.seeded(estimator, rate), estimator


def sharding(settings: Settings) -> NamedSharding | None:
    """Returns how the K samples are divided among devices; None for one device."""
    if settings.devices == 1:
        return None
    return NamedSharding(Mesh(np.array(jax.devices()[: settings.devices]), ("samples",)), PartitionSpec("samples"))


def curve_of(method: str, trained: Trained, run: Run, settings: Settings, task: data.Task) -> list[dict[str, Any]]:
    """Returns the losses of one run at several moments; continues an interrupted run and saves each measurement."""
    problem, evaluate, learner, estimator = trained
    path, key, measured = run
    steps = settings.evaluations // cost(method, settings)
    every = steps // settings.moments
    steps = every * settings.moments
    curve = lines_of(path.with_suffix(".jsonl"))
    if curve and curve[-1]["step"] == steps:
        return curve
    log: list[Any] = []
    at, params = 0, problem.first
    if method == "backprop":  # its gradients are not logged, so it starts anew
        curve = []
        path.with_suffix(".jsonl").unlink(missing_ok=True)
    else:
        log.append(nl.TrainingLog(path, estimator, params, task.train.some(settings.batch_size)))
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
                "step": report.step, "evaluations": report.step * cost(method, settings), "seconds": seconds,
                "losses": np.asarray(evaluate(report.state.params, measured)).tolist(),
            }  # fmt: skip
            if report.step == steps:
                row["digest"] = digest(report.state.params)
            curve.append(row)
            with path.with_suffix(".jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
        begun = time.perf_counter()

    state = learner.init(key, jax.tree.map(jnp.copy, params))._replace(step=jnp.int32(at))
    nl.fit(
        learner, key, state, task.train, num_steps=steps - at, batch_size=settings.batch_size, steps_per_dispatch=every,
        log=[*log, measure], donate=True, progress=False,
    )  # fmt: skip
    return curve


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Reads the rows of a curve; removes an incomplete last row from the file."""
    if not path.exists():
        return []
    whole = path.read_text().rpartition("\n")[0]
    path.write_text(whole + "\n" * bool(whole))
    return [json.loads(line) for line in whole.splitlines()]


def digest(params: Params) -> str:
    """Returns the SHA-256 digest of all parameters' bytes."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()


def temporaries(method: str, rate: float, settings: Settings, task: data.Task) -> int:
    """Returns the bytes the compiled step uses besides its arguments, which include the frozen parameters."""
    problem = problem_of(method, task)
    learner = lambda frozen: learner_of(method, problem.objective(frozen), rate, settings)[0]
    state = jax.eval_shape(learner(problem.frozen).init, jax.random.key(0), problem.first)
    step = lambda state, batch, frozen: learner(frozen).step(jax.random.key(0), state, batch)
    lowered = jax.jit(step, donate_argnums=0).lower(state, task.train.some(settings.batch_size), problem.frozen)
    analysis = lowered.compile().memory_analysis()
    return int(analysis.temp_size_in_bytes) if analysis is not None else 0
