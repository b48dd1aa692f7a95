"""Recurrent networks: a cell in a loop over time with a read-out."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nl_jax._core.require import positive_integer, typed_key
from nl_jax.activations import identity
from nl_jax.base import Array, Initializer, Key, Params, Propagate
from nl_jax.networks.cells.cell import WEIGHT_INIT, Cell
from nl_jax.networks.cells.rate import affine
from nl_jax.propagation import feedforward, scan


class Read(NamedTuple):
    """Which steps' outputs are read out.

    Attributes:
      each: whether every step is read out inside the loop; otherwise only the last one is, after the loop.
      kept: whether all read-outs are kept, instead of their mean.
    """

    each: bool
    kept: bool


last = Read(each=False, kept=False)
"""The output of the last step, read after the loop."""

mean = Read(each=True, kept=False)
"""The mean of all steps' outputs, read and summed in the loop."""

every = Read(each=True, kept=True)
"""All steps' outputs."""


class Recurrent(NamedTuple):
    """A recurrent network as pure functions.

    Attributes:
      init: `init(key, dtype=float32) -> params`, by layer.
      apply: `apply(params, xs, propagate=feedforward) -> outputs`, xs [batch, time, inputs]; outputs [batch, outputs],
        or [batch, time, outputs] if the outputs of every step are kept.
    """

    init: Callable[..., Params]
    apply: Callable[..., Array]


def recurrent(
    cell: Cell, inputs: int, outputs: int, *, read: Read = last, weight_init: Initializer = WEIGHT_INIT
) -> Recurrent:
    """A cell in a loop called "time", read out by a linear layer "output".

    Args:
      cell: a cell from `nl.cells`.
      inputs: number of inputs at each step, at least 1.
      outputs: number of outputs, at least 1.
      read: `nl.cells.last` reads the last step's output after the loop. `nl.cells.mean` gives the mean of all steps'
        outputs, read and summed in the loop, so that memory does not grow with the number of steps. `nl.cells.every`
        gives all steps' outputs.
      weight_init: scheme for the read-out's weight.

    Returns:
      A `Recurrent` network of pure functions. Its layers are those of the cell, such as "time/hidden", and "output" or
      "time/output".

    Raises:
      ValueError: if an argument is not as described; when run, for inputs of another shape.

    >>> import jax, nl_jax as nl
    >>> net = nl.recurrent(nl.cells.gru(8), 2, 3, read=nl.cells.mean)
    >>> net.apply(net.init(jax.random.key(0)), jax.numpy.ones([5, 100, 2])).shape
    (5, 3)
    """
    if not isinstance(cell, Cell):
        raise ValueError(f"cell must be one of nl.cells, made by a call such as nl.cells.gru(32); got {cell!r}")
    if not isinstance(read, Read):
        raise ValueError(f"read must be nl.cells.last, nl.cells.mean or nl.cells.every, got {read!r}")
    inputs, outputs = positive_integer("inputs", inputs), positive_integer("outputs", outputs)

    def init(key: Key, dtype: jax.typing.DTypeLike = jnp.float32) -> Params:
        typed_key(key)
        keys = jax.random.split(key)
        readout = {"weight": weight_init(keys[1], (cell.units, outputs), dtype), "bias": jnp.zeros(outputs, dtype)}
        return cell.init(keys[0], inputs, dtype) | {"output": readout}

    def apply(params: Params, xs: Array, propagate: Propagate = feedforward) -> Array:
        if jnp.ndim(xs) != 3 or xs.shape[2] != inputs:
            raise ValueError(f"xs must have shape [batch, time, {inputs}], got {list(jnp.shape(xs))}")
        dtype = jnp.result_type(*jax.tree.leaves(params))

        def readout(y: Array, propagate: Propagate) -> Array:
            return propagate("output", affine, identity(), params["output"], y)

        def step(carry: tuple[Any, Array], x: Array, propagate: Propagate) -> tuple[tuple[Any, Array], Any]:
            state, total = carry
            state, y = cell.step(params, state, x, propagate)
            if not read.each:
                return (state, y), None
            output = readout(y, propagate)
            return (state, total if read.kept else total + output), output if read.kept else None

        batch, steps = xs.shape[:2]
        width = outputs if read.each else cell.units
        begin = cell.start(batch, dtype), jnp.zeros((batch, width), dtype)
        (_, total), kept = scan("time", step, begin, jnp.swapaxes(xs, 0, 1), propagate)
        if read.kept:
            return jnp.swapaxes(kept, 0, 1)
        return total / steps if read.each else readout(total, propagate)

    return Recurrent(init, apply)
