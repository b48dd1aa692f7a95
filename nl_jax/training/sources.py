"""Sources of batches: arrays on the device, or an iterator."""

import functools
import json
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nl_jax._core.require import concrete, positive_integer, takes
from nl_jax.base import Batch, LearnerState
from nl_jax.training.batching import Order, shuffled
from nl_jax.training.dispatch import Advanced, Call, Plan
from nl_jax.training.outcome import Outcomes

_IN_FLIGHT = 2
"""The maximum number of steps sent to the device and not yet finished."""


def source(data: Any, batch_size: int | None, order: Order) -> "Arrays | Stream":
    """Returns the source of a run's batches: `Arrays` for a tree of arrays, `Stream` for any other iterable."""
    if hasattr(data, "__next__") or (hasattr(data, "__iter__") and not hasattr(data, "shape") and _is_leaf(data)):
        return Stream(data, batch_size, order)
    return Arrays(data, batch_size, order)


def _is_leaf(data: Any) -> bool:
    """Whether JAX treats `data` as a leaf, unlike tuples, dicts and registered classes."""
    return jax.tree_util.treedef_is_leaf(jax.tree.structure(data))


class Arrays:
    """Batches chosen by `order` from arrays, many steps in one compiled call.

    Attributes:
      position: where the source is after a dispatch; None, because the step's number determines it.
      repeatable: whether a dispatch may be started whose result may be discarded.
    """

    position: str | None = None
    repeatable = True

    def __init__(self, data: Batch, batch_size: int | None, order: Order) -> None:
        concrete("data", data)
        takes("order", order, 5, "nl.batching.shuffled or nl.batching.uniform")
        self._data = jax.tree.map(jnp.asarray, data)
        self._order = order
        lengths = {leaf.shape[0] if leaf.ndim else 0 for leaf in jax.tree.leaves(self._data)}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(
                "data must be arrays with examples along their first axis, equally many, at least 1, or an iterator of "
                f"batches; got shapes {jax.tree.map(jnp.shape, self._data)}"
            )
        (self._examples,) = lengths
        self._batch_size = None if batch_size is None else positive_integer("batch_size", batch_size)
        if self._batch_size is not None and self._batch_size > self._examples:
            raise ValueError(f"batch_size must be at most the {self._examples} examples there are, got {batch_size}")

    def begin(self, num_steps: int, with_position: bool) -> Batch:
        """Returns arrays that are placed as the batches will be."""
        del num_steps, with_position
        return self._data

    def resume(self, position: str | None, num_steps: int) -> None:
        """Does nothing: a step's number determines its batch."""

    def advance(self, run: Call, state: LearnerState, step: int, num_steps: int) -> Advanced:
        """Takes some steps."""
        return run.engine.steps(self._plan(run), num_steps, run.key, state, self._data, np.int32(step))

    def check(self, outcomes: Outcomes) -> None:
        """Raises a ValueError if some steps' batches had examples that do not exist."""
        if not outcomes.indices:
            return
        low, high = (int(edge) for edge in (np.min(outcomes.indices[0]), np.max(outcomes.indices[1])))
        if low < 0 or high >= self._examples:
            wrong = low if low < 0 else high
            raise ValueError(
                f"order must return indices from 0 to {self._examples - 1}, one less than the number of examples; got "
                f"{wrong}"
            )

    def memory(self, run: Call, state: LearnerState, num_steps: int) -> int:
        """Returns the bytes that a dispatch needs beside the data, 0 if the backend does not report them.

        The dispatch need not be compiled again. Key and state may be shapes.
        """
        at = run.key, state, self._data, np.int32(0)
        compiled = run.engine.steps.lower(self._plan(run), num_steps, *at).compile()
        found = compiled.memory_analysis()
        if found is None:
            return 0
        given = found.argument_size_in_bytes - sum(leaf.nbytes for leaf in jax.tree.leaves(self._data))
        return given + found.output_size_in_bytes + found.temp_size_in_bytes

    def recorded(self, run: Call, state: LearnerState) -> Any:
        """Returns the shapes and dtypes of one step's record."""
        steps = functools.partial(run.engine.steps, self._plan(run), 1)
        _, (_, recorded) = jax.eval_shape(steps, run.key, state, self._data, np.int32(0))
        of_one = functools.partial(jnp.squeeze, axis=run.engine.step_axis)
        return jax.tree.map(lambda x: jax.eval_shape(of_one, x), recorded)

    def _plan(self, run: Call) -> Plan:
        return Plan(run.learner, run.record, self._order, self._batch_size)

    def __str__(self) -> str:
        order = getattr(self._order, "__qualname__", type(self._order).__qualname__)
        return f"batches of {self._batch_size}, {order}, from {_shapes(self._data)}"


class Stream:
    """Batches from an iterator, one compiled call per step; the next is loaded while the device computes.

    A compiled call returns before the device has finished. The loop therefore hands out a batch, loads the next, sends
    it to the device, and only then waits for all steps but the last `_IN_FLIGHT`. The iterator and the device work at
    the same time, and the number of batches on the device does not grow.
    """

    repeatable = False

    def __init__(self, data: Any, batch_size: int | None, order: Order) -> None:
        if batch_size is not None or order is not shuffled:
            raise ValueError(
                f"batch_size and order must be left out where data is an iterator, which chooses the batches; "
                f"got batch_size={batch_size}, order={order}"
            )
        self._iterator = iter(data)
        self._left, self._with_position = 0, False
        self._next: Batch = None
        self._shapes = ""
        self.position: str | None = None

    def begin(self, num_steps: int, with_position: bool) -> Batch:
        """Loads and returns the first batch; raises a ValueError if positions are needed and the iterator has none."""
        if with_position and not all(callable(getattr(self._iterator, x, None)) for x in ("get_state", "set_state")):
            raise ValueError(
                f"data is a {type(self._iterator).__name__}, whose position cannot be saved in a checkpoint: hand in "
                "arrays, a grain loader, or an iterator with get_state() and set_state(state)"
            )
        self._left, self._with_position = num_steps, with_position
        self._next = self._load()
        self._shapes = _shapes(self._next)
        return self._next

    def resume(self, position: str | None, num_steps: int) -> None:
        """Goes to a saved position, from which `num_steps` steps remain to be taken."""
        assert position is not None
        state = json.loads(position)
        self._iterator.set_state(state["bytes"].encode("latin-1") if set(state) == {"bytes"} else state["state"])
        self._left, self.position = num_steps, position
        self._next = self._load() if num_steps else None

    def advance(self, run: Call, state: LearnerState, step: int, num_steps: int) -> Advanced:
        """Takes some steps, fewer if the data ends."""
        plan = Plan(run.learner, run.record)
        found: list[Any] = []
        for batch in self._take(num_steps):
            state, outcome = run.engine.step(plan, run.key, state, batch, np.int32(step + len(found)))
            found.append(outcome)
            if len(found) > _IN_FLIGHT:
                jax.block_until_ready(found[-1 - _IN_FLIGHT])
        if not found:
            return state, (Outcomes(np.zeros(0, np.float32), ()), None)
        return state, jax.tree.map(lambda *x: np.stack(x, axis=run.engine.step_axis), *jax.device_get(found))

    def check(self, outcomes: Outcomes) -> None:
        """Does nothing: an iterator's batches exist."""

    def recorded(self, run: Call, state: LearnerState) -> Any:
        """Returns the shapes and dtypes of one step's record; must be called before `resume`."""
        step = functools.partial(run.engine.step, Plan(run.learner, run.record))
        _, (_, recorded) = jax.eval_shape(step, run.key, state, self._next, np.int32(0))
        return recorded

    def __str__(self) -> str:
        return f"an iterator of {self._shapes}"

    def _take(self, count: int) -> Iterator[Batch]:
        for number in range(count):
            if self._next is None:
                return
            yield self._next
            self._left -= 1
            if number == count - 1:
                self._note_position()  # before the next batch is loaded, which belongs to the next dispatch
            self._next = self._load() if self._left else None
            if self._next is None:
                self._note_position()

    def _note_position(self) -> None:
        if not self._with_position:
            return
        state = self._iterator.get_state()
        if isinstance(state, bytes):
            self.position = json.dumps({"bytes": state.decode("latin-1")})
            return
        try:
            self.position = json.dumps({"state": state})
        except TypeError as error:
            raise ValueError(
                f"data's get_state() must return bytes, or what JSON can hold, to be saved in a checkpoint: {error}"
            ) from error

    def _load(self) -> Batch:
        """Sends the next batch to the device; None after the last. Copies it, as the iterator may reuse its arrays."""
        try:
            batch = next(self._iterator)
        except StopIteration:
            return None
        return jax.tree.map(lambda x: x if isinstance(x, jax.Array) else jax.device_put(np.array(x)), batch)


def _shapes(tree: Any) -> str:
    return ", ".join(f"{x.dtype}{list(x.shape)}" for x in jax.tree.leaves(tree))
