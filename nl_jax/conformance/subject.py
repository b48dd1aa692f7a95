"""An estimator to be certified, with what is claimed of it."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from nl_jax.base import Batch, GradientEstimator, Info, Key, Objective, Params, State
from nl_jax.conformance.problem import MakeProblem, Problem

Factory = Callable[..., GradientEstimator]
"""`factory(objective) -> estimator`, with more keyword settings if it has them."""


class Claims(NamedTuple):
    """What its author says of an estimator, to be checked.

    Attributes:
      calibrated: its mean is the gradient of the mean loss; without randomness: it is that gradient.
      gradient_free: it takes no derivative of layers or losses.
      evaluations: what one estimate costs; None to say nothing.
      verdict: what `nl.audit` finds of it, such as "three-factor"; None to say nothing.
    """

    calibrated: bool = True
    gradient_free: bool = False
    evaluations: int | None = None
    verdict: str | None = None


class Subject(NamedTuple):
    """What every check is given.

    Attributes:
      factory, claims, make_problem: as handed in.
      problem: what `make_problem` makes.
      num_keys: how many estimates a mean is taken of.
      estimator: made by the factory for the problem's objective.
      state: its first.
      estimate: its `estimate`, jitted once for all checks.
      traces: grows by one entry each time `estimate` is traced.
      estimates: as many gradients as keys, from the first state, made once for all checks, [keys, parameters].
      estimates_from: the same from a state of its argument.
    """

    factory: Factory
    claims: Claims
    make_problem: MakeProblem
    problem: Problem
    num_keys: int
    estimator: GradientEstimator
    state: State
    estimate: Callable[[Key, State, Params, Batch], tuple[Params, State, Info]]
    traces: list[None]
    estimates: Callable[[], np.ndarray]
    estimates_from: Callable[[State], np.ndarray]


def subject(factory: Factory, claims: Claims, make_problem: MakeProblem, num_keys: int) -> Subject:
    """The factory's estimator for the problem, ready to be run."""
    problem = make_problem()
    estimator = made(factory, problem.objective)
    traces: list[None] = []

    @jax.jit
    def estimate(key: Key, state: State, params: Params, batch: Batch) -> tuple[Params, State, Info]:
        traces.append(None)
        return estimator.estimate(key, state, params, batch)

    state = estimator.init(jax.random.key(0), problem.params)
    estimates_from = functools.partial(sampler(estimator, problem), keys(num_keys))

    @functools.cache
    def estimates() -> np.ndarray:
        return estimates_from(state)

    return Subject(
        factory, claims, make_problem, problem, num_keys, estimator, state, estimate, traces, estimates, estimates_from
    )


def keys(count: int) -> Key:
    """Those that means are taken over."""
    return jax.random.split(jax.random.key(11), count)


def sampler(estimator: GradientEstimator, problem: Problem) -> Callable[[Key, State], np.ndarray]:
    """`sample(keys, state)`: one estimate for each key, all from one state, [keys, parameters]."""

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None))
    def grads(key: Key, state: State) -> Params:
        return estimator.estimate(key, state, problem.params, problem.batch)[0]

    def sample(keys: Key, state: State) -> np.ndarray:
        return np.concatenate([np.reshape(x, (len(keys), -1)) for x in jax.tree.leaves(grads(keys, state))], axis=1)

    return sample


def flat(tree: Params) -> np.ndarray:
    """All leaves as one vector, [parameters]."""
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def made(factory: Factory, objective: Objective, **settings: int) -> GradientEstimator:
    """What the factory makes, or TypeError if that is not an estimator."""
    estimator = factory(objective, **settings)
    if not (isinstance(estimator, tuple) and hasattr(estimator, "init") and hasattr(estimator, "estimate")):
        raise TypeError(
            f"the factory must return a nl.GradientEstimator(init, estimate), got {type(estimator).__name__}: "
            "hand in factory(objective) -> estimator"
        )
    return estimator
