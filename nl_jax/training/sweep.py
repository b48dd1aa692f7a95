"""Trains many settings of a learner at once, and compares them on held-out data."""

import functools
import inspect
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nl_jax._core.require import positive_integer, takes
from nl_jax.base import Array, Batch, Info, Key, Learner, LearnerState, Params
from nl_jax.training.batching import Order, shuffled
from nl_jax.training.dispatch import MANY_DONATING, Call, Record, hashable
from nl_jax.training.loop import Loop
from nl_jax.training.run import Log, Run
from nl_jax.training.sources import Arrays
from nl_jax.training.sweep_results import Found, Sweep, measured
from nl_jax.training.trials import count, groups, shapes, trials_of

_SHARE = 0.25
"""The fraction of the device's memory that runs trained at once may use."""


def sweep(
    learner_of: Callable[..., Learner],
    settings: Mapping[str, Sequence[float]] | Sequence[Mapping[str, float]],
    key: Key,
    init: Callable[[Key], Params],
    data: Batch,
    *,
    score: Callable[[Params], Array],
    num_steps: int,
    seeds: int = 3,
    test: Callable[[Params], Array] | None = None,
    at_once: int | None = None,
    batch_size: int | None = None,
    order: Order = shuffled,
    steps_per_dispatch: int = 200,
    record: Record | None = None,
    log: Log | Sequence[Log] = (),
    progress: bool | None = None,
    checkpoint: str | os.PathLike | None = None,
    every: int | None = None,
) -> Sweep:
    """Trains many settings of a learner, each from several initialisations, and finds the best.

    All runs are trained by one compiled program under `vmap`. A seed gives the same initial parameters, batches and
    keys with every setting. Diverged runs are part of the result and do not affect other runs.

    Args:
      learner_of: `learner_of(**setting) -> Learner`, such as `lambda rate: nl.learner(estimator, optax.sgd(rate))`. It
        is traced, and settings arrive as float32 scalars. They may be learning rates, σ, penalties or anything else
        that is computed with, but not counts or names.
      settings: values by name, in which case all combinations are tried; or a sequence of combinations, each a mapping
        from name to value.
      key: typed key of all runs; seed i uses `jax.random.fold_in(key, i)`.
      init: `init(key) -> params`, such as `network.init`.
      data: a tree of arrays to learn from, as for `fit`.
      score: `score(params) -> scalar` on held-out data, lower is better, such as
        `lambda params: objective(params, validation).mean()`.
      num_steps: steps of each run.
      seeds: initialisations of each setting.
      test: another `score`, on data used neither to train nor to choose; it is computed for the best setting only.
      at_once: settings trained at once; by default as many as fit in a quarter of the device's memory. On a CPU, 1 is
        faster for slow steps (10 ms and more), because what one setting works on stays in the cache.
      batch_size, order, steps_per_dispatch, record, progress, every: as for `fit`.
      log: as for `fit`, but it must not return True, because scores after different numbers of steps cannot be
        compared; a report covers the runs trained at once, with a leading axis [settings · seeds].
      checkpoint: as for `fit`; every group of settings trained at once has its own subfolder.

    Returns:
      A `Sweep`.

    Raises:
      ValueError: if settings are out of range, missing, or differ in their names; if a score is not one number; if
        data is an iterator, which cannot begin again; if `log` returns True; or if the `checkpoint` folder belongs to
        another sweep.
      Diverged: if every setting has a diverged run.
      OSError, Interrupted, Terminated: as for `fit`, with `.state` and `.history` of the group that was being trained.

    >>> import jax, jax.numpy as jnp, optax, nl_jax as nl
    >>> x = jax.random.normal(jax.random.key(0), [80, 3])
    >>> data = x, x @ jnp.ones([3, 1])
    >>> objective = nl.supervised(lambda w, x: x @ w, nl.losses.half_squared_error)
    >>> found = nl.sweep(
    ...     lambda rate: nl.learner(nl.backprop(objective), optax.sgd(rate)), {"rate": [0.001, 0.1, 10.0]},
    ...     jax.random.key(1), lambda key: jax.random.normal(key, [3, 1]), jax.tree.map(lambda x: x[:60], data),
    ...     score=lambda w: objective(w, jax.tree.map(lambda x: x[60:], data)).mean(),
    ...     num_steps=50, batch_size=10, progress=False)
    >>> round(found.best["rate"], 3), found.scores.shape, [row["diverged"] for row in found.rows()]
    (0.1, (3, 3), [0, 0, 3])
    """
    trials, seeds = trials_of(settings), positive_integer("seeds", seeds)
    _require_functions(learner_of, trials, init, score, test)
    learner_of, record = hashable(learner_of), hashable(record)
    learner = Learner(_Init(learner_of), _Step(learner_of))  # equal for equal functions: compiled once for all sweeps
    # These are compiled anew in every sweep: init and score may read what has changed since the last.
    begin = jax.jit(functools.partial(_begin, learner, init, seeds, key))
    score_all = jax.jit(functools.partial(measured, score))
    _require_one_number_each({"score": score, "test": test}, begin, trials)
    run_of = functools.partial(
        _run_of, trials, checkpoint, learner=learner, key=key, data=data, num_steps=num_steps, batch_size=batch_size,
        order=order, steps_per_dispatch=steps_per_dispatch, record=record, log=log, progress=progress, every=every,
    )  # fmt: skip
    if at_once is None:
        at_once = _fitting(run_of("all"), begin, trials)
    found = Found(trials, seeds)
    for name, group in groups(trials, positive_integer("at_once", at_once)):
        keys, states = begin(group)
        states, history = Loop(run_of(name), MANY_DONATING, keys, states, 0, _never, lambda states: None).finish()
        found.add(states, np.asarray(score_all(states.params)), history)
    return found.result(states, test)


class Varied(NamedTuple):
    """The estimator's state in a sweep; it carries the run's settings, so that `vmap` maps over them."""

    settings: dict[str, Array]
    own: Any


@dataclass(frozen=True)
class _Init:
    """Initialises a run; its `params` argument is the pair of settings and parameters."""

    learner_of: Callable[..., Learner]

    def __call__(self, key: Key, params: tuple[dict[str, Array], Params]) -> LearnerState:
        settings, params = params  # params of the learner that the settings make
        learner = self.learner_of(**settings)
        if not isinstance(learner, Learner):
            raise ValueError(f"learner_of must return what nl.learner(…) makes, got {type(learner).__name__}")
        state = learner.init(key, params)
        return state._replace(estimator=Varied(settings, state.estimator))


@dataclass(frozen=True)
class _Step:
    """Takes a step with the settings in the state."""

    learner_of: Callable[..., Learner]

    def __call__(self, key: Key, state: LearnerState, batch: Batch) -> tuple[LearnerState, Info]:
        settings, own = state.estimator
        state, info = self.learner_of(**settings).step(key, state._replace(estimator=own), batch)
        return state._replace(estimator=Varied(settings, state.estimator)), info


def _begin(
    learner: Learner, init: Callable[[Key], Params], seeds: int, key: Key, trials: dict[str, Array]
) -> tuple[Key, LearnerState]:
    """Returns keys and states of all seeds of some trials, [trials · seeds, …]."""

    def one(settings: dict[str, Array], seed: Array) -> tuple[Key, LearnerState]:
        params_key, state_key, run_key = jax.random.split(jax.random.fold_in(key, seed), 3)
        return run_key, learner.init(state_key, (settings, init(params_key)))

    of_trial = lambda settings: jax.vmap(lambda seed: one(settings, seed))(jnp.arange(seeds))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), jax.vmap(of_trial)(trials))


def _require_functions(learner_of: Any, trials: dict[str, np.ndarray], init: Any, score: Any, test: Any) -> None:
    """Raises a ValueError unless the functions take what a sweep gives them."""
    for name, judge in {"score": score, "test": score if test is None else test}.items():
        takes(name, judge, 1, "a function of the parameters, such as lambda params: objective(params, data).mean()")
    takes("init", init, 1, "a function of a key, such as network.init, or lambda key: params")
    if not callable(learner_of):
        raise ValueError(f"learner_of must be a function of the settings that returns a learner, got {learner_of!r}")
    try:
        inspect.signature(learner_of).bind(**trials)
    except TypeError as error:
        raise ValueError(f"settings must be named like the arguments of learner_of: {error}") from None


def _run_of(trials: dict[str, np.ndarray], checkpoint: str | os.PathLike | None, group: str, **settings: Any) -> Run:
    """Returns the run of a group of trials, which has its own subfolder of `checkpoint`."""
    run = Run(checkpoint=None if checkpoint is None else Path(checkpoint) / group, log_may_stop=False, **settings)
    if not isinstance(run.source, Arrays):
        raise ValueError(
            f"data must be arrays, got {run.source}: every group of settings starts the data "
            "again, which an iterator cannot"
        )
    run.identity |= {"settings": json.dumps({n: values.tolist() for n, values in trials.items()}), "group": group}
    return run


def _fitting(run: Run, begin: Callable[..., Any], trials: dict[str, np.ndarray]) -> int:
    """Returns how many settings fit into memory at once."""
    device = jax.local_devices()[0]
    told = device.memory_stats() or {}
    total = told.get("bytes_limit") or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    together = count(trials)
    while together > 1:
        keys, states = jax.eval_shape(begin, shapes(trials, together))
        steps = min(run.steps_per_dispatch, run.num_steps)
        assert isinstance(run.source, Arrays)
        if run.source.memory(Call(MANY_DONATING, run.learner, run.record, keys), states, steps) <= _SHARE * total:
            break
        together = -(-together // 2)
    return together


def _require_one_number_each(
    judges: dict[str, Callable[[Params], Array] | None], begin: Callable[..., Any], trials: dict[str, np.ndarray]
) -> None:
    """Raises a ValueError, before training, unless a run's score and test are one number each."""
    _, states = jax.eval_shape(begin, shapes(trials, 1))
    for name, judge in judges.items():
        if judge is None:
            continue
        shape = jax.eval_shape(functools.partial(measured, judge), states.params).shape
        if len(shape) != 1:
            raise ValueError(f"{name} must return one number, got shape {shape[1:]}: average over the examples")


def _never(*of: Any) -> None:
    """Never stops: a sweep continues whatever the outcomes of a dispatch."""
