"""Compiled calls of many steps, for one run or many."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.stages import Wrapped

from nl_jax._core.require import no_keys
from nl_jax.base import Array, Batch, Info, Key, Learner, LearnerState, State
from nl_jax.training.batching import Order, shuffled, uniform
from nl_jax.training.outcome import Outcomes
from nl_jax.training.placement import gather

Record = Callable[[LearnerState, Info], State]


def without_residuals(state: LearnerState, info: Info) -> Info:
    """The default record: `info` without residuals, and without failures, which are raised as errors."""
    del state
    return info._replace(residuals=(), failures=())


def hashable(function: Any) -> Any:
    """Returns the function; where it has no hash, which a static argument needs, another that calls it."""
    try:
        hash(function)
    except TypeError:
        return lambda *args, **named: function(*args, **named)
    return function


class Plan(NamedTuple):
    """What a compiled call repeats: its static arguments.

    Attributes:
      learner: whose step is taken.
      record: what is kept of each step.
      order: chooses the examples of a batch, where data are arrays.
      batch_size: examples of a batch; None for all.
    """

    learner: Learner
    record: Record
    order: Order | None = None
    batch_size: int | None = None


Advanced = tuple[LearnerState, tuple[Outcomes, State]]
"""The state after some steps, and their outcomes and records."""


def _taken(plan: Plan, step_key: Key, state: LearnerState, batch: Batch, step: Array) -> Advanced:
    state, info = plan.learner.step(jax.random.fold_in(step_key, step), state, batch)
    recorded = plan.record(state, info)
    no_keys("record", recorded)
    return state, (Outcomes(info.loss, info.failures), recorded)


def _step(plan: Plan, key: Key, state: LearnerState, batch: Batch, step: Array) -> Advanced:
    """Takes one step with a given batch."""
    step_key, _ = jax.random.split(key)
    return _taken(plan, step_key, state, batch, step)


def _steps(plan: Plan, num_steps: int, key: Key, state: LearnerState, data: Batch, first_step: Array) -> Advanced:
    """Takes steps in one scan; outcomes and records have a leading axis of steps."""
    step_key, order_key = jax.random.split(key)
    examples = jax.tree.leaves(data)[0].shape[0]
    chosen: Array | None = None
    extremes: Any = ()
    if plan.batch_size is not None:
        assert plan.order is not None
        chosen = plan.order(order_key, first_step, num_steps, examples, plan.batch_size)
        _require_indices(chosen, (num_steps, plan.batch_size))
        if plan.order not in (shuffled, uniform):
            extremes = jnp.min(chosen, axis=1), jnp.max(chosen, axis=1)

    def one(state: LearnerState, now: tuple[Array, Array | None]) -> Advanced:
        step, index = now
        batch = data if index is None else jax.tree.map(lambda x: gather(x, index), data)
        return _taken(plan, step_key, state, batch, step)

    now = first_step + jnp.arange(num_steps, dtype=jnp.int32), chosen
    if num_steps > 1:
        state, (outcomes, recorded) = jax.lax.scan(one, state, now)
    else:  # No loop: in loops, XLA's CPU compiler is slow for derivatives of convolutions other than nl_jax's.
        state, made = one(state, jax.tree.map(lambda x: jnp.squeeze(x, 0), now))
        outcomes, recorded = jax.tree.map(lambda x: jnp.expand_dims(x, 0), made)
    return state, (outcomes._replace(indices=extremes), recorded)


def _require_indices(chosen: Any, shape: tuple[int, int]) -> None:
    """Raises a ValueError unless an order chose integers, one for each example of each batch."""
    if getattr(chosen, "shape", None) != shape or not jnp.issubdtype(chosen.dtype, jnp.integer):
        raise ValueError(
            f"order must return integer indices of shape [num_steps, batch_size] = {list(shape)}, got {chosen}"
        )


def _many_step(plan: Plan, keys: Key, states: LearnerState, batch: Batch, step: Array) -> Advanced:
    """`_step` for many runs at once, all given the same batch."""
    return jax.vmap(functools.partial(_step, plan), in_axes=(0, 0, None, None))(keys, states, batch, step)


def _many_steps(
    plan: Plan, num_steps: int, keys: Key, states: LearnerState, data: Batch, first_step: Array
) -> Advanced:
    """`_steps` for many runs at once, all at the same step number."""
    run = functools.partial(_steps, plan, num_steps)
    return jax.vmap(run, in_axes=(0, 0, None, None))(keys, states, data, first_step)


class Engine(NamedTuple):
    """Compiled calls that advance one run, or many.

    Attributes:
      donates: whether the input state is donated, so that its memory is reused.
      step: takes one step with a given batch.
      steps: takes many steps, with batches gathered from arrays.
      step_axis: axis of steps in the outcomes and records that `steps` returns.
    """

    donates: bool
    step: Wrapped
    steps: Wrapped
    step_axis: int


def _engine(step: Callable[..., Any], steps: Callable[..., Any], step_axis: int, donates: bool) -> Engine:
    one = jax.jit(step, static_argnums=0, donate_argnums=2 if donates else ())
    many = jax.jit(steps, static_argnums=(0, 1), donate_argnums=3 if donates else ())
    return Engine(donates, one, many, step_axis)


ONE, ONE_DONATING = (_engine(_step, _steps, 0, donates) for donates in (False, True))
MANY, MANY_DONATING = (_engine(_many_step, _many_steps, 1, donates) for donates in (False, True))


class Call(NamedTuple):
    """A run, as a source of batches advances it: how its steps are compiled, what they do, and its key."""

    engine: Engine
    learner: Learner
    record: Record
    key: Key
