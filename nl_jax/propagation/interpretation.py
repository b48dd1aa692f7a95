"""Interpretations: functions of one layer that change how a program is run.

A program, `program(params, inputs, propagate=feedforward)`, is a forward function or an objective. It applies layers
only through `propagate`, and repeats them only through `scan`. A learning rule is defined by a function of one layer,
`layer(site, given) -> (axons, found)`. `interpret` runs the program with this function. It passes given values to each
layer and collects the found values, inside and outside loops.
"""

import functools
import itertools
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np

from nl_jax.base import ActivationFn, Array, Connection, Params, Program
from nl_jax.propagation.program import require_functions

SEPARATOR = "/"
"""Separates the names of loops and of the layer in them."""


Loop = Callable[[str, Callable, Any, Any, int | None], tuple[Any, Any]]
"""`loop(name, body, carry, xs, length) -> (carry, ys)`: runs the loop called `name`, by `jax.lax.scan` or another way,
which usually differs only in its derivative."""


class Site(NamedTuple):
    """One layer, as reached in a run of the program.

    `connection` and `activation` may hold traced values of the loop or run: call them only while the layer is run.

    Attributes:
      name: "hidden", or "time/hidden" in a loop.
      steps: the step number in every loop around the layer, outermost first; int32 scalars.
    """

    name: str
    connection: Connection
    activation: ActivationFn
    params: Params
    inputs: tuple[Array, ...]
    steps: tuple[Array, ...] = ()

    def preactivation(self) -> Array:
        """Computes ν = W x + b."""
        nu = self.connection(self.params, *self.inputs)
        _require_array(self.name, "connection", nu)
        return nu

    def axons(self) -> Array:
        """Computes f(ν)."""
        return self.activation(self.preactivation())

    @property
    def mixes_examples(self) -> bool:
        """Whether the connection says that examples act on each other in it (`nl_jax.base.Connection`)."""
        return getattr(self.connection, "mixes_examples", False)


def plain_loop(name: str, body: Callable, carry: Any, xs: Any, length: int | None) -> tuple[Any, Any]:
    """Runs the loop by `jax.lax.scan`."""
    del name
    return jax.lax.scan(body, carry, xs, length)


Layer = Callable[[Site, Any], tuple[Array, Any]]
"""`layer(site, given) -> (axons, found)`: an interpretation. `given` is None for layers without a given value."""

Given = Mapping[str, Any] | Callable[[str, tuple[Array, ...]], Mapping[str, Any]]
"""Values given to layers, by name: trees of arrays, with a leading axis of steps for every loop around the layer.

Or a function that computes them step by step, so that no more than one step's are stored:
`given(scope, steps) -> {layer: tree}`, for one step, with scope "" outside loops and "time/" inside. The values of the
last step are computed twice."""


def interpret(
    program: Program, layer: Layer, *, loop: Loop = plain_loop, summed: bool = False
) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """Runs the program with `layer` for each of its layers.

    Args:
      program: a forward function or an objective.
      layer: the function that runs a layer.
      loop: the function that runs a loop.
      summed: whether to sum found values over a loop's steps instead of stacking them, so that memory does not grow.

    Returns:
      `run(params, inputs, given={}) -> (outputs, found)`. `given` and `found` map layer names to values, `found` in the
      order of propagation. Layers whose found value is None are left out.

    Raises:
      ValueError: when run, if two layers have one name, a name is no string or contains a "/", an input of a layer is
        not one array, its connection or activation is no function or returns other than one array, a value is given to
        a layer that does not exist, or a layer is inside a transformation of the program's own, where it cannot be
        reached.
    """

    def run(params: Params, inputs: Any, given: Given | None = None) -> tuple[Any, dict[str, Any]]:
        compute = given if callable(given) else None
        interpreter = _Interpreter(layer, loop, summed, compute, given("", ()) if callable(given) else given or {})
        outputs = program(params, inputs, propagate=interpreter)
        return outputs, interpreter.close()

    return run


class _Interpreter:
    """A `propagate` that passes each layer its given value and keeps the found one."""

    def __init__(
        self,
        layer: Layer,
        loop: Loop,
        summed: bool,
        compute: Callable[[str, tuple[Array, ...]], Mapping[str, Any]] | None,
        values: Mapping[str, Any],
        scope: str = "",
        steps: tuple[Array, ...] = (),
    ) -> None:
        self.layer, self.loop, self.summed, self.scope, self.steps = layer, loop, summed, scope, steps
        self.compute, self.values = compute, values
        self.around = _trace_state()
        self.found: dict[str, Any] = {}
        self.met: dict[str, Array | None] = {}
        self.loops: list[str] = []

    def __call__(
        self, name: str, connection: Connection, activation: ActivationFn, params: Params, /, *inputs: Array
    ) -> Array:
        own = self._named(name)
        if _trace_state() != self.around:
            raise ValueError(_UNREACHED.format(own))
        require_functions(own, connection, activation)
        require_inputs(own, inputs)
        site = Site(own, connection, activation, params, inputs, self.steps)
        axons, found = self.layer(site, self.values.get(own))
        _require_array(own, "activation", axons)
        self.met[own] = axons
        if found is not None:
            self.found[own] = found
        return axons

    def scan(self, name: str, step: Callable, carry: Any, xs: Any, length: int | None) -> tuple[Any, Any]:
        scope = self._named(name) + SEPARATOR
        self.met[scope.removesuffix(SEPARATOR)] = None
        self.loops.append(scope)
        computes = self.compute is not None
        stacked = {} if computes else {name: value for name, value in self.values.items() if name.startswith(scope)}
        names: list[str] = []
        last = max(0, (next((jnp.shape(leaf)[0] for leaf in jax.tree.leaves(xs)), length) or 0) - 1)

        def computed(index: Array) -> dict[str, Any]:
            return {} if self.compute is None else dict(self.compute(scope, (*self.steps, jnp.minimum(index, last))))

        def body(state: tuple[Array, Any, Any], slices: tuple[Any, Any]) -> tuple[Any, tuple[Any, Any]]:
            (index, ready, carry), (x, values) = state, slices
            steps = *self.steps, index
            values = ready if computes else values
            inner = _Interpreter(self.layer, self.loop, self.summed, self.compute, values, scope, steps)
            carry, y = step(carry, x, inner)
            found = inner.close()
            names[:] = found  # a dict would come back from the loop with its names sorted
            return (index + 1, computed(index + 1), carry), (y, tuple(found.values()))

        # Values are computed a step ahead and carried: XLA would otherwise compute noise anew wherever it is read.
        begin = jnp.int32(0), computed(jnp.int32(0)), carry
        run = functools.partial(self.loop, scope.removesuffix(SEPARATOR))
        if self.summed:
            (_, _, carry), ys, found = _summing(run, body, begin, (xs, stacked), length)
        else:
            (_, _, carry), (ys, found) = run(body, begin, (xs, stacked), length)
        self.found |= dict(zip(names, found, strict=True))
        return carry, ys

    def close(self) -> dict[str, Any]:
        """Returns the found values; called after the program's last layer."""
        if self.compute is None:
            for name in self.values:
                if name not in self.met and not any(name.startswith(scope) for scope in self.loops):
                    layers = ", ".join(self.met)
                    raise ValueError(f"no layer is named {name!r}; the layers are {layers}")
        for name, axons in self.met.items():
            _require_own_body(name, axons)
        return self.found

    def _named(self, name: str) -> str:
        if not isinstance(name, str):
            raise ValueError(f"the name of a layer or loop must be a string, such as 'hidden', got {name!r}")
        if SEPARATOR in name:
            raise ValueError(f"layer {name!r}: a name must not contain {SEPARATOR!r}, which separates loops and layers")
        own = self.scope + name
        require_new(own, self.met)
        return own


def _summing(loop: Callable, body: Callable, begin: Any, xs: Any, length: int | None) -> tuple[Any, Any, Any]:
    """Runs the loop with found values summed in its carry."""
    first = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x)[1:], jnp.result_type(x)), xs)
    shapes = jax.eval_shape(body, begin, first)[1][1]
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def adding(state: tuple[Any, Any], x: Any) -> tuple[tuple[Any, Any], Any]:
        carry, totals = state
        carry, (y, found) = body(carry, x)
        return (carry, jax.tree.map(jnp.add, totals, found)), y

    (carry, totals), ys = loop(adding, (begin, zeros), xs, length)
    return carry, ys, totals


def _require_array(name: str, function: str, value: Any) -> None:
    """Raises ValueError unless a layer's connection or activation returned one array."""
    if not jax.tree_util.treedef_is_leaf(jax.tree.structure(value)):
        raise ValueError(
            f"layer {name!r}: its {function} must return one array, got {type(value).__name__}: concatenate several "
            "along the last axis, and split them between layers"
        )


def require_inputs(name: str, inputs: tuple[Any, ...]) -> None:
    """Raises ValueError if one of a layer's inputs is a container of arrays, or nothing."""
    for x in inputs:
        if x is None or isinstance(x, tuple | list | dict):
            raise ValueError(
                f"layer {name!r}: each input must be one array, got {type(x).__name__}: hand in several as arguments "
                "of their own, propagate(name, connection, activation, params, h, x); it calls connection(params, h, x)"
            )


def require_new(name: str, met: Collection[str]) -> None:
    """Raises ValueError if a layer of this name was already run."""
    if name in met:
        raise ValueError(
            f"layer {name!r} is propagated twice in one run: give each layer its own name, or use nl.scan if these are "
            "the steps of a loop"
        )


def loops_around(name: str) -> int:
    """Returns the number of loops around a layer; its found values have as many axes of steps before the batch."""
    return name.count(SEPARATOR)


def places(shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, int | np.ndarray], int]:
    """Returns the layers' positions in the order of propagation, from 0, counting each loop step; and their number.

    Args:
      shapes: shapes of each layer's found value, in the order of propagation, with the axes of loops first.

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


# Identifies the innermost transformation that is being traced. It is public from JAX 0.10 on. Before that, such layers
# are found by `_require_own_body`, and only if the program runs eagerly.
_trace_state = getattr(jax.extend.core, "get_opaque_trace_state", lambda: None)

_UNREACHED = (
    "layer {!r} is propagated inside a jax.vmap, lax.scan or other transformation of the program's own, where it "
    "cannot be reached: for a loop use nl.scan, which hands its step a propagate of its own; otherwise call propagate "
    "in the forward function's body, on the whole batch"
)


def _require_own_body(name: str, axons: Array | None) -> None:
    """Raises ValueError for a layer whose values exist only inside a transformation of the program's own."""
    if axons is None:
        return
    try:
        jnp.negative(axons)  # any use raises the error; jit removes it
    except jax.errors.UnexpectedTracerError as error:
        raise ValueError(_UNREACHED.format(name)) from error
