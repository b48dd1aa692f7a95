"""Interpretations: one function of a layer that says how a program is run otherwise.

A program, `program(params, inputs, propagate=feedforward)`, is a forward function or an objective. It never applies a
layer itself but asks `propagate` to, and never repeats one but asks `scan` to. What a learning rule makes of a program
is a function of one layer, `layer(site, given) -> (axons, found)`; `interpret` runs the program with it, and carries
what is given to and found in each layer through straight lines and loops alike.
"""

import functools
import itertools
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nl_jax.base import ActivationFn, Array, Connection, Params, Program

SEPARATOR = "/"
"""Between the names of loops and of the layer in them."""


Loop = Callable[[str, Callable, Any, Any, int | None], tuple[Any, Any]]
"""`loop(name, body, carry, xs, length) -> (carry, ys)`: `jax.lax.scan` of the loop called "time", or another way to run
it, which as a rule differs in its derivative alone."""


class Site(NamedTuple):
    """One layer as a run of the program meets it.

    `connection` and `activation` may hold values of the loop or the moment: call them only while the layer is run.

    Attributes:
      name: "hidden", in a loop "time/hidden".
      steps: the number of the step in every loop around it, the outermost first; int32 scalars.
    """

    name: str
    connection: Connection
    activation: ActivationFn
    params: Params
    inputs: tuple[Array, ...]
    steps: tuple[Array, ...] = ()

    def preactivation(self) -> Array:
        """ν = W x + b."""
        return self.connection(self.params, *self.inputs)

    def axons(self) -> Array:
        """f(ν)."""
        return self.activation(self.preactivation())


def plain_loop(name: str, body: Callable, carry: Any, xs: Any, length: int | None) -> tuple[Any, Any]:
    """`jax.lax.scan`."""
    del name
    return jax.lax.scan(body, carry, xs, length)


Layer = Callable[[Site, Any], tuple[Array, Any]]
"""`layer(site, given) -> (axons, found)`: an interpretation. `given` is None where nothing was handed in."""

Given = Mapping[str, Any] | Callable[[str, tuple[Array, ...]], Mapping[str, Any]]
"""What is handed to layers, by name: trees of arrays, with a leading axis of steps for every loop around the layer.

Or a function that makes it where it is needed, so that it is never stored: `given(scope, steps) -> {layer: tree}`, of
one step, with scope "" outside loops and "time/" within."""


def interpret(
    program: Program, layer: Layer, *, loop: Loop = plain_loop, summed: bool = False
) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """Runs the program with `layer` for each of its layers.

    Args:
      program: a forward function or an objective.
      layer: what a layer does.
      loop: what runs a loop.
      summed: add up over the steps what is found in a loop instead of stacking it, so that memory does not grow.

    Returns:
      `run(params, inputs, given={}) -> (outputs, found)`, both by the layers' names, `found` in the order of
      propagation. Layers in which None was found are left out.

    Raises:
      ValueError: when run, for two layers of one name, a name with a "/", something given to a layer that is not there,
        or a layer within a transformation of the program's own, where it cannot be reached.
    """

    def run(params: Params, inputs: Any, given: Given | None = None) -> tuple[Any, dict[str, Any]]:
        interpreter = _Interpreter(layer, loop, summed, given or {})
        outputs = program(params, inputs, propagate=interpreter)
        return outputs, interpreter.close()

    return run


class _Interpreter:
    """A `propagate` that hands each layer what is given to it and keeps what is found."""

    def __init__(
        self, layer: Layer, loop: Loop, summed: bool, given: Given, scope: str = "", steps: tuple[Array, ...] = ()
    ) -> None:
        self.layer, self.loop, self.summed, self.scope, self.steps = layer, loop, summed, scope, steps
        self.given = given
        self.values = given(scope, steps) if callable(given) else given
        self.found: dict[str, Any] = {}
        self.met: dict[str, Array | None] = {}
        self.loops: list[str] = []

    def __call__(
        self, name: str, connection: Connection, activation: ActivationFn, params: Params, /, *inputs: Array
    ) -> Array:
        own = self._named(name)
        site = Site(own, connection, activation, params, inputs, self.steps)
        axons, found = self.layer(site, self.values.get(own))
        self.met[own] = axons
        if found is not None:
            self.found[own] = found
        return axons

    def scan(self, name: str, step: Callable, carry: Any, xs: Any, length: int | None) -> tuple[Any, Any]:
        scope = self._named(name) + SEPARATOR
        self.met[scope.removesuffix(SEPARATOR)] = None
        self.loops.append(scope)
        stacked = {} if callable(self.given) else {k: v for k, v in self.values.items() if k.startswith(scope)}
        names: list[str] = []

        def body(state: tuple[Array, Any], slices: tuple[Any, Any]) -> tuple[tuple[Array, Any], tuple[Any, Any]]:
            (index, carry), (x, values) = state, slices
            given = self.given if callable(self.given) else values
            inner = _Interpreter(self.layer, self.loop, self.summed, given, scope, (*self.steps, index))
            carry, y = step(carry, x, inner)
            found = inner.close()
            names[:] = found  # a dict would come back from the loop with its names sorted
            return (index + 1, carry), (y, tuple(found.values()))

        begin = jnp.int32(0), carry
        run = functools.partial(self.loop, scope.removesuffix(SEPARATOR))
        if self.summed:
            (_, carry), ys, found = _summing(run, body, begin, (xs, stacked), length)
        else:
            (_, carry), (ys, found) = run(body, begin, (xs, stacked), length)
        self.found |= dict(zip(names, found, strict=True))
        return carry, ys

    def close(self) -> dict[str, Any]:
        """What was found, after the program's last layer."""
        if not callable(self.given):
            for name in self.given:
                if name not in self.met and not any(name.startswith(scope) for scope in self.loops):
                    layers = ", ".join(self.met)
                    raise ValueError(f"no layer is named {name!r}; the layers are {layers}")
        for name, axons in self.met.items():
            _require_own_body(name, axons)
        return self.found

    def _named(self, name: str) -> str:
        if SEPARATOR in name:
            raise ValueError(f"layer {name!r}: a name must not hold {SEPARATOR!r}, which parts loops and layers")
        own = self.scope + name
        require_new(own, self.met)
        return own


def _summing(loop: Callable, body: Callable, begin: Any, xs: Any, length: int | None) -> tuple[Any, Any, Any]:
    """The loop with what is found added up in its carry."""
    first = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x)[1:], jnp.result_type(x)), xs)
    shapes = jax.eval_shape(body, begin, first)[1][1]
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def adding(state: tuple[Any, Any], x: Any) -> tuple[tuple[Any, Any], Any]:
        carry, totals = state
        carry, (y, found) = body(carry, x)
        return (carry, jax.tree.map(jnp.add, totals, found)), y

    (carry, totals), ys = loop(adding, (begin, zeros), xs, length)
    return carry, ys, totals


def require_new(name: str, met: Collection[str]) -> None:
    """ValueError if a layer of this name was met already in this run."""
    if name in met:
        raise ValueError(f"layer {name!r} is propagated twice in one run: give every layer a name of its own")


def loops_around(name: str) -> int:
    """How many loops a layer stands in: as many axes of steps come before the batch in what is found of it."""
    return name.count(SEPARATOR)


def places(shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, int | np.ndarray], int]:
    """Where layers come in the order of propagation, from 0, each step of a loop counted; and how many there are.

    Args:
      shapes: of what was found of each layer, in the order of propagation, loops' axes first.

    >>> places({"in": (5, 2), "time/a": (3, 5, 2), "time/b": (3, 5, 2), "out": (5, 2)})
    ({'in': 0, 'time/a': array([1, 3, 5]), 'time/b': array([2, 4, 6]), 'out': 7}, 8)
    """
    found: dict[str, int | np.ndarray] = {}
    count = 0
    for loop, members in itertools.groupby(
        shapes, key=lambda name: name.split(SEPARATOR)[0] if SEPARATOR in name else ""
    ):
        names = list(members)
        if not loop:
            found |= {name: count + i for i, name in enumerate(names)}
            count += len(names)
            continue
        inner, size = places({name.removeprefix(loop + SEPARATOR): shapes[name][1:] for name in names})
        steps = shapes[names[0]][0]
        begins = count + size * np.arange(steps)
        for name, rank in inner.items():
            found[loop + SEPARATOR + name] = begins.reshape(-1, *[1] * np.ndim(rank)) + rank
        count += size * steps
    return found, count


def _require_own_body(name: str, axons: Array | None) -> None:
    """ValueError for a layer whose values do not exist outside a transformation of the program's own."""
    if axons is None:
        return
    try:
        jnp.negative(axons)  # any use will do; compiled, nothing is left of it
    except jax.errors.UnexpectedTracerError as error:
        raise ValueError(
            f"layer {name!r} is propagated inside a jax.vmap, lax.scan or other transformation of the program's "
            "own, where it cannot be reached: for a loop use nl.scan, which hands its step a propagate of its own; "
            "otherwise call propagate in the forward function's body, on the whole batch"
        ) from error
