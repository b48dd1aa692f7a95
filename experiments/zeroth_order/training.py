"""Zeroth-order methods by name, and their runs: one compiled program per method for all rates, seeds and trials."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nl_jax as nl
from experiments.finetune import data
from nl_jax.base import Array, Batch, Key, LearnerState, Objective, Params, Propagate
from nl_jax.propagation import feedforward


class Settings(NamedTuple):
    """Settings of the methods: σ, K of FZOO, K and rank of ZO-Muon, rank of AGZO."""

    sigma: float
    samples: int
    queries: int
    subspace: int
    rank: int


def learner(method: str, objective: Objective, rate: Any, settings: Settings) -> nl.Learner:
    """A method as a learner, at a learning rate that may be traced."""
    sigma, signs = settings.sigma, nl.directions.rademacher()
    if method == "MeZO":
        both_sides = nl.baselines.antithetic()
        mezo = nl.weight_perturbation(objective, sigma=sigma, baseline=both_sides, directions=signs)
        return nl.seeded(mezo, lambda step: rate)
    if method == "FZOO":
        one_sided = nl.weight_perturbation(objective, sigma=sigma, num_samples=settings.samples, directions=signs)
        return nl.seeded(nl.normalised(one_sided), lambda step: rate)
    if method == "ZO-Muon":
        basis = nl.bases.random(settings.subspace)
        estimator = nl.subspace_perturbation(objective, basis=basis, sigma=sigma, num_samples=settings.queries)
        # Q has orthonormal columns up to a factor, so orthogonalising Q C is the same as orthogonalising C.
        muon = optax.contrib.scale_by_muon(beta=0.0, nesterov=False, weight_dimension_numbers=_matrices)
        return nl.learner(estimator, optax.chain(muon, optax.scale_by_learning_rate(rate)))
    estimator = nl.subspace_perturbation(objective, basis=nl.bases.inputs(settings.rank), sigma=sigma)
    return nl.learner(estimator, optax.sgd(rate))


def _matrices(params: Params) -> Any:
    """Treats the last two axes of every weight as a matrix; leading axes index the weights of a stack."""
    return jax.tree.map(lambda w: optax.contrib.MuonDimensionNumbers(w.ndim - 2, w.ndim - 1), params)


class Problem(NamedTuple):
    """Learned and frozen parameters, and the losses: `objective(frozen)` is an objective of the learned parameters."""

    learned: Params
    frozen: Params
    objective: Callable[[Params], Objective]


def problem(task: data.Task, learn: tuple[str, ...]) -> Problem:
    """A problem in which the parameters of these names learn: weights of the blocks, or the embedding."""
    losses = data.first_token_losses(task.model)
    chosen = lambda path: path[-1].key in learn
    flat, tree = jax.tree_util.tree_flatten_with_path(task.params)
    learned = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat if chosen(path)}
    frozen = {str(i): leaf for i, (path, leaf) in enumerate(flat) if not chosen(path)}
    names = [jax.tree_util.keystr(path, simple=True, separator="/") if chosen(path) else "" for path, _ in flat]

    def objective(frozen: Params) -> Objective:
        def of_learned(learned: Params, batch: Batch, propagate: Propagate = feedforward) -> Array:
            leaves = [learned[name] if name else frozen[str(i)] for i, name in enumerate(names)]
            return losses(jax.tree.unflatten(tree, leaves), batch, propagate=propagate)

        return of_learned

    return Problem(learned, frozen, objective)


class Curve(NamedTuple):
    """One run: evaluations spent [moments + 1], mean losses of the two sets of prompts by moment, seconds per step.

    It is shorter if time ran out or if a loss became infinite or NaN.
    """

    evaluations: np.ndarray
    validation: np.ndarray
    held_out: np.ndarray
    seconds: float


class Runner:
    """Runs of one method. It is compiled once, in the constructor, for all rates and seeds.

    Args:
      method: its name.
      problem: what is learned.
      task: prompts for training, for choosing rates and for measurement.
      settings: of the method.
      batch_size: prompts per step.
      every: steps between moments, made in one dispatch.
    """

    def __init__(
        self, method: str, problem: Problem, task: data.Task, settings: Settings, batch_size: int, every: int
    ) -> None:
        self.problem, self.task, self.every = problem, task, every
        number = len(task.train.last)

        def some_steps(state: LearnerState, key: Key, rate: Array, frozen: Params, train: data.Prompts) -> Any:
            own = learner(method, problem.objective(frozen), rate, settings)

            def step(state: LearnerState, _: None) -> tuple[LearnerState, Array]:
                of_step = jax.random.fold_in(key, state.step)
                places = jax.random.randint(jax.random.fold_in(of_step, 1), (batch_size,), 0, number)
                state, info = own.step(of_step, state, jax.tree.map(lambda part: part[places], train))
                return state, info.evaluations

            state, evaluations = jax.lax.scan(step, state, length=every)
            return state, jnp.sum(evaluations)

        def first(params: Params, key: Key, rate: Array, frozen: Params) -> LearnerState:
            return learner(method, problem.objective(frozen), rate, settings).init(key, params)

        self._first = jax.jit(first)
        at = jax.random.key(0), jnp.float32(1), problem.frozen
        state = jax.eval_shape(self._first, problem.learned, *at)
        self._some_steps = jax.jit(some_steps, donate_argnums=0).lower(state, *at, task.train).compile()

    def __call__(self, key: Key, rate: float, moments: int, measure: "Measure", until: float = np.inf) -> Curve:
        """Makes a run of at least one moment; none begins after `until`, a time by `time.perf_counter`."""
        frozen, eta = self.problem.frozen, jnp.float32(rate)
        state = self._first(self.problem.learned, key, eta, frozen)
        rows = [(0, *measure(state.params))]
        times = [time.perf_counter()]
        while len(rows) <= moments and (len(rows) == 1 or times[-1] < until):
            state, spent = self._some_steps(state, key, eta, frozen, self.task.train)
            rows.append((rows[-1][0] + int(spent), *measure(state.params)))
            times.append(time.perf_counter())
            if not np.isfinite(rows[-1][1:]).all():
                break
        evaluations, validation, held_out = (np.array(column, float) for column in zip(*rows, strict=True))
        return Curve(evaluations, validation, held_out, float(np.median(np.diff(times))) / self.every)


class Measure:
    """Mean losses on validation and held-out prompts, compiled once for all methods."""

    def __init__(self, problem: Problem, task: data.Task) -> None:
        self.task, self.frozen = task, problem.frozen
        self._losses = jax.jit(
            lambda learned, frozen, prompts: jnp.mean(problem.objective(frozen)(learned, prompts))
        )  # one shape if both sets have the same number of prompts

    def __call__(self, learned: Params) -> tuple[float, float]:
        """Losses of the learned parameters."""
        of = lambda prompts: float(self._losses(learned, self.frozen, prompts))
        return of(self.task.validation), of(self.task.held_out)


def cosines(
    problem: Problem, task: data.Task, settings: Settings, batch_size: int, draws: int
) -> dict[str, np.ndarray]:
    """cos(ĝ, g) to the batch's gradient at initial parameters, 6 evaluations each, for isotropic and AGZO's noise."""

    def found(learned: Params, frozen: Params, train: data.Prompts, keys: Key) -> dict[str, Array]:
        objective = problem.objective(frozen)
        isotropic = nl.weight_perturbation(objective, sigma=settings.sigma, num_samples=5)
        guided = nl.subspace_perturbation(
            objective, basis=nl.bases.inputs(settings.rank), sigma=settings.sigma, num_samples=4
        )

        def of_key(key: Key) -> dict[str, Array]:
            places = jax.random.randint(jax.random.fold_in(key, 0), (batch_size,), 0, len(train.last))
            batch = jax.tree.map(lambda part: part[places], train)
            exact = jax.grad(lambda learned: jnp.mean(objective(learned, batch)))(learned)
            estimate = lambda estimator: estimator.estimate(key, (), learned, batch)[0]
            return {
                "isotropic": nl.diagnostics.cosine(estimate(isotropic), exact),
                "inputs": nl.diagnostics.cosine(estimate(guided), exact),
            }

        return jax.lax.map(of_key, keys)

    keys = jax.random.split(jax.random.key(37), draws)
    return {
        of: np.asarray(own) for of, own in jax.jit(found)(problem.learned, problem.frozen, task.train, keys).items()
    }
