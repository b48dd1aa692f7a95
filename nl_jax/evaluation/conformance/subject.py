"""An estimator to certify, with the claims about it."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from nl_jax._core.paths import path_name
from nl_jax.base import Batch, GradientEstimator, Info, Key, Objective, Params, State
from nl_jax.evaluation.conformance.problem import MakeProblem, Problem

Factory = Callable[..., GradientEstimator]
"""`factory(objective) -> estimator`, with optional keyword settings."""


class Claims(NamedTuple):
    """The author's claims about an estimator, to be checked.

    Attributes:
      calibrated: its mean is the gradient of the mean loss; without randomness it is that gradient.
      gradient_free: it takes no derivative of layers or losses.
      evaluations: the cost of one estimate; None makes no claim.
      verdict: the verdict of `nl.audit`, such as "three-factor"; None makes no claim.
    """

    calibrated: bool = True
    gradient_free: bool = False
    evaluations: int | None = None
    verdict: str | None = None


class Subject(NamedTuple):
    """The argument of every check.

    Attributes:
      factory, claims, make_problem: as passed in.
      problem: the result of `make_problem`.
      num_keys: the number of estimates drawn at a time.
      max_keys: the number of estimates that may be drawn to show that there is no bias.
      estimator: made by the factory for the problem's objective.
      state: its initial state.
      estimate: its `estimate`, jitted once for all checks.
      traces: grows by one entry each time `estimate` is traced.
      sample: `sample(keys, state, params)`, the gradients for many keys, [keys, parameters]. If the factory has a
        setting `chunk`, the samples come from another estimator with other chunks, so that one program serves several
        checks.
      estimates: a function that returns `num_keys` gradients from the initial state, [keys, parameters], computed once
        for all checks.
    """

    factory: Factory
    claims: Claims
    make_problem: MakeProblem
    problem: Problem
    num_keys: int
    max_keys: int
    estimator: GradientEstimator
    state: State
    estimate: Callable[[Key, State, Params, Batch], tuple[Params, State, Info]]
    traces: list[None]
    sample: Callable[..., np.ndarray]
    estimates: Callable[[], np.ndarray]


def subject(
    factory: Factory, claims: Claims, make_problem: MakeProblem, num_keys: int, max_keys: int | None = None
) -> Subject:
    """Makes the factory's estimator for the problem, ready to run; `max_keys` is `num_keys` by default."""
    problem = make_problem()
    estimator = made(factory, problem.objective)
    traces: list[None] = []

    @jax.jit
    def estimate(key: Key, state: State, params: Params, batch: Batch) -> tuple[Params, State, Info]:
        traces.append(None)
        return estimator.estimate(key, state, params, batch)

    state = estimator.init(jax.random.key(0), problem.params)
    chunk = other_chunk(factory)
    sample = sampler(estimator if chunk is None else made(factory, problem.objective, chunk=chunk), problem)

    @functools.cache
    def estimates() -> np.ndarray:
        return sample(keys(num_keys), state)

    budget = num_keys if max_keys is None else max_keys
    return Subject(
        factory, claims, make_problem, problem, num_keys, budget, estimator, state, estimate, traces, sample, estimates
    )


def other_chunk(factory: Factory) -> int | None:
    """Returns a chunk size other than the default; None without a setting `chunk`."""
    if "chunk" not in inspect.signature(factory).parameters:
        return None
    return 1 if setting(factory, "chunk") == 2 else 2


def setting(factory: Factory, name: str) -> Any:
    """Returns the default of a setting of the factory; None if it has no such setting or default."""
    parameter = inspect.signature(factory).parameters.get(name)
    return None if parameter is None or parameter.default is parameter.empty else parameter.default


def keys(count: int, block: int = 0) -> Key:
    """Returns the keys of a block of `count`; means are taken over the blocks."""
    key = jax.random.key(11)
    return jax.random.split(jax.random.fold_in(key, block) if block else key, count)


def sampler(estimator: GradientEstimator, problem: Problem) -> Callable[..., np.ndarray]:
    """Makes `sample(keys, state, params=problem.params)`: one estimate per key, from one state, [keys, parameters]."""

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None, None))
    def grads(key: Key, state: State, params: Params) -> Params:
        return estimator.estimate(key, state, params, problem.batch)[0]

    def sample(keys: Key, state: State, params: Params | None = None) -> np.ndarray:
        found = jax.tree.leaves(grads(keys, state, problem.params if params is None else params))
        return np.concatenate([np.reshape(np.asarray(x), (len(keys), -1)) for x in found], axis=1)

    return sample


def by_leaf(tree: Params) -> dict[str, np.ndarray]:
    """Returns the leaves by name, such as "hidden/bias", in double precision, [parameters]."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): np.ravel(np.asarray(leaf)).astype(np.float64) for path, leaf in leaves}


def flat(tree: Params) -> np.ndarray:
    """Concatenates all leaves to one vector, [parameters]."""
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def made(factory: Factory, objective: Objective, **settings: int) -> GradientEstimator:
    """Calls the factory; raises a TypeError if the result is not an estimator."""
    estimator = factory(objective, **settings)
    if not (isinstance(estimator, tuple) and hasattr(estimator, "init") and hasattr(estimator, "estimate")):
        raise TypeError(
            f"the factory must return a nl.GradientEstimator(init, estimate), got {type(estimator).__name__}: "
            "hand in factory(objective) -> estimator"
        )
    return estimator
