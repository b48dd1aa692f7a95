"""Dependence analysis of a program's jaxpr: finds which sources can reach its outputs.

Sources are followed from equation to equation, array by array. Every rule errs on the side of dependence: a source
that is not found cannot reach the output, but a source that is found may cancel (x − x depends on x).

- An ordinary equation's outputs depend on all its inputs.
- Calls (jit, checkpoint, custom derivatives, shard_map) and control flow (scan, while, cond) are entered. The carry of
  a loop is followed until nothing new arrives; a predicate reaches everything that it controls.
- Any other equation that holds a program or a Python function is *opaque*: its outputs may depend on all its
  inputs, and each such source is recorded as coming through it. The outputs of a side effect (an `io_callback`, a
  mutable array) may depend on everything.

A *mark* gates dependence: the caller of `sources_of_outputs` decides which of the sources that arrive there pass.
"""

import uuid
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from nl_jax.base import Array


class Flow(NamedTuple):
    """A source that reaches a value.

    Attributes:
      source: any label, or `EVERYTHING`.
      through: the opaque primitive it may have passed through; None if every step of its path is known.
    """

    source: Hashable
    through: str | None = None


Flows: TypeAlias = frozenset[Flow]

Gate = Callable[[str, Flows], Flows]
"""`gate(name, arriving) -> flows`: the flows that pass the value marked `name`."""

EVERYTHING = "everything"
"""The source of values returned by a side effect."""

NOTHING: Flows = frozenset()

# Unique to this process, so that a program's own names are never mistaken for marks.
_OWN = uuid.uuid4().hex
_MARK, _TANGENT = f"{_OWN} mark: ", f"{_OWN} tangent: "
_SEVERED = "severed"


def mark(name: str, value: Array) -> Array:
    """Returns `value` unchanged, but visible to the analysis as a gate; derivatives are not marked."""
    return checkpoint_name(value, _MARK + name)


def reached(function: Callable, *arguments: Any) -> Any:
    """Finds which outputs of a function, or their derivatives, depend on which of its arguments; nothing is run.

    Dependence does not pass `severed` values. A custom derivative counts as depending on all its function's arguments.

    Args:
      function: any function of arrays.
      *arguments: trees of arrays or `jax.ShapeDtypeStruct`.

    Returns:
      A tree like the outputs; each leaf is the set of indices of the arguments that it depends on.

    >>> reached(lambda x, y: {"a": x * y, "b": jnp.sin(y)}, 1.0, 2.0)["b"]
    frozenset({1})
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    flows = [frozenset({Flow(i)}) for i, argument in enumerate(arguments) for _ in jax.tree.leaves(argument)]
    analysis = _Analysis(lambda name, arriving: arriving, derivatives=True, severs=True)
    outputs = analysis.run(closed, flows)
    numbers = [frozenset(flow.source for flow in found) for found in outputs]
    return jax.tree.unflatten(jax.tree.structure(shapes), numbers)


def severed(value: Array) -> Array:
    """Applies `jax.lax.stop_gradient`, visibly to `reached`: neither a derivative nor a dependence passes."""
    return mark(_SEVERED, jax.lax.stop_gradient(value))


def mark_tangent(name: str, tangent: Array) -> Array:
    """Returns `tangent` unchanged, but visible as a gate in forward mode; in reverse mode its cotangent is not marked.

    A name has no transpose, so the tangent is contracted with a named 1 × 1 matrix: with the matrix's first axis in
    forward mode, and with its second when transposed.
    """
    one = checkpoint_name(jnp.ones((1, 1), tangent.dtype), _TANGENT + name)
    return jax.lax.dot_general(tangent[..., None], one, (((tangent.ndim,), (0,)), ((), ())))[..., 0]


def sources_of_outputs(
    closed: ClosedJaxpr, arguments: Sequence[Flows], gate: Gate, *, derivatives: bool = False
) -> list[Flows]:
    """Returns the sources that can reach each output of a program.

    Args:
      closed: as returned by `jax.make_jaxpr`.
      arguments: for each flat argument, its sources.
      gate: the function that decides which sources pass a marked value.
      derivatives: whether sources of the outputs' derivatives count too: a custom derivative may depend on arguments
        that its function's value does not.

    Returns:
      For each flat output, the sources it can depend on. The program's constants are not sources.

    >>> program = jax.make_jaxpr(lambda x, y, z: (x * y, jnp.zeros_like(y), jnp.where(z > 0, x, 0.0)))(1.0, 2.0, 3.0)
    >>> arguments = [frozenset({Flow(name)}) for name in "xyz"]
    >>> [sorted(flow.source for flow in flows) for flows in sources_of_outputs(program, arguments, lambda _, x: x)]
    [['x', 'y'], [], ['x', 'z']]
    """
    outputs = _Analysis(gate, derivatives).run(closed, arguments)
    return [frozenset(flow for flow in flows if not isinstance(flow.source, _Unit)) for flows in outputs]


class _Analysis:
    def __init__(self, gate: Gate, derivatives: bool = False, severs: bool = False) -> None:
        self.gate, self.derivatives, self.severs = gate, derivatives, severs

    def run(self, program: Any, arguments: Sequence[Flows]) -> list[Flows]:
        jaxpr: Jaxpr = program.jaxpr if isinstance(program, ClosedJaxpr) else program
        known = dict.fromkeys(jaxpr.constvars, NOTHING) | dict(zip(jaxpr.invars, arguments, strict=True))

        def flows(atom: Any) -> Flows:
            return NOTHING if isinstance(atom, Literal) else known[atom]

        for equation in jaxpr.eqns:
            outputs = self.equation(equation, [flows(atom) for atom in equation.invars])
            known |= zip(equation.outvars, outputs, strict=True)
        return [flows(atom) for atom in jaxpr.outvars]

    def equation(self, equation: JaxprEqn, inputs: list[Flows]) -> list[Flows]:
        name, held = equation.primitive.name, list(programs(equation.params))
        count = len(equation.outvars)
        if name in _ENTERED:
            return _ENTERED[name](self, equation, inputs)
        if name in CALLS and len(held) == 1 and arity(held[0]) == (len(inputs), count):
            outputs = self.run(held[0], inputs)
            # A custom derivative may depend on arguments that the value does not.
            by_hand = self.derivatives and name.startswith("custom_")
            return [found | _union(inputs) for found in outputs] if by_hand else outputs
        if equation.effects and not _only_names_axes(equation):
            return [frozenset({Flow(EVERYTHING, name)})] * count
        if name in _PARALLEL and len(inputs) == count:
            return inputs
        if (held or _holds_function(equation.params)) and not name.startswith(_SCALAR_PROGRAMS):
            return [frozenset(Flow(flow.source, flow.through or name) for flow in _union(inputs))] * count
        return [_union(inputs)] * count

    def name(self, equation: JaxprEqn, inputs: list[Flows]) -> list[Flows]:
        named = equation.params["name"]
        if named == _MARK + _SEVERED:  # cuts for `reached` only; otherwise the identity
            return [NOTHING] if self.severs else inputs
        if named.startswith(_MARK):
            return [self.gate(named.removeprefix(_MARK), inputs[0])]
        if named.startswith(_TANGENT):
            return [frozenset({Flow(_Unit(named.removeprefix(_TANGENT)))})]
        return inputs

    def dot_general(self, equation: JaxprEqn, inputs: list[Flows]) -> list[Flows]:
        params = equation.params
        tangent, unit = inputs
        (_, contracted), _ = params["dimension_numbers"]
        units = [flow.source.name for flow in unit if isinstance(flow.source, _Unit)]
        if len(unit) == len(units) == 1:
            return [self.gate(units[0], tangent) if tuple(contracted) == (0,) else tangent]
        return [_union(inputs)]

    def scan(self, equation: JaxprEqn, inputs: list[Flows]) -> list[Flows]:
        return self.loop(equation.params["jaxpr"], *scan_parts(equation), inputs)

    def loop(self, body: Any, consts: int, carried: int, inputs: list[Flows]) -> list[Flows]:
        constants, carry, slices = inputs[:consts], inputs[consts : consts + carried], inputs[consts + carried :]
        while True:
            outputs = self.run(body, [*constants, *carry, *slices])
            arrived = [before | after for before, after in zip(carry, outputs[:carried], strict=True)]
            if arrived == carry:
                return [*carry, *outputs[carried:]]
            carry = arrived

    def while_loop(self, equation: JaxprEqn, inputs: list[Flows]) -> list[Flows]:
        params = equation.params
        of_test, of_body = params["cond_nconsts"], params["body_nconsts"]
        test, body = inputs[:of_test], inputs[of_test : of_test + of_body]
        carry = inputs[of_test + of_body :]
        while True:
            (going_on,) = self.run(params["cond_jaxpr"], [*test, *carry])
            outputs = self.run(params["body_jaxpr"], [*body, *carry])
            arrived = [before | after | going_on for before, after in zip(carry, outputs, strict=True)]
            if arrived == carry:
                return carry
            carry = arrived

    def cond(self, equation: JaxprEqn, inputs: list[Flows]) -> list[Flows]:
        params = equation.params
        chosen, *operands = inputs
        branches = [self.run(branch, operands) for branch in params["branches"]]
        return [_union([chosen, *outputs]) for outputs in zip(*branches, strict=True)]


_ENTERED = {
    "name": _Analysis.name,
    "dot_general": _Analysis.dot_general,
    "scan": _Analysis.scan,
    "while": _Analysis.while_loop,
    "cond": _Analysis.cond,
}

CALLS = frozenset(
    {
        *("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2", "shard_map"),
        *("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "custom_vmap_call"),
    }
)
"""Primitives that apply their single program to their inputs."""

_PARALLEL = frozenset({"optimization_barrier", "device_put"})
"""Primitives that map several arrays, each to its own output."""

_SCALAR_PROGRAMS = ("reduce", "scatter", "select_and")
"""Name prefixes of primitives whose programs combine two numbers of their inputs and hold nothing else."""


class _Unit(NamedTuple):
    """The source of a named 1 × 1 matrix, see `mark_tangent`."""

    name: str


def _union(several: Sequence[Flows]) -> Flows:
    return NOTHING.union(*several)


def mark_of(equation: JaxprEqn) -> str | None:
    """Returns the name of a marked value, None for any other equation."""
    if equation.primitive.name != "name" or not equation.params["name"].startswith(_MARK):
        return None
    return equation.params["name"].removeprefix(_MARK)


def tangent_mark_of(equation: JaxprEqn) -> str | None:
    """Returns the name of a matrix that marks a tangent, None for any other equation."""
    if equation.primitive.name != "name" or not equation.params["name"].startswith(_TANGENT):
        return None
    return equation.params["name"].removeprefix(_TANGENT)


def programs(value: Any) -> Iterator[Any]:
    """Yields the jaxprs among an equation's parameters."""
    if isinstance(value, Jaxpr | ClosedJaxpr):
        yield value
    elif isinstance(value, dict):
        yield from programs(tuple(value.values()))
    elif isinstance(value, tuple | list):
        for part in value:
            yield from programs(part)


def scan_parts(equation: JaxprEqn) -> tuple[int, int]:
    """Returns how many inputs of a `lax.scan` are constants, and how many are carried.

    The numbers are found from shapes, because the equation's parameter names differ between versions of JAX. Sliced or
    stacked arrays have one axis more outside the loop than inside it.
    """
    body = equation.params["jaxpr"].jaxpr
    alike = lambda outer, inner: sum(len(a.aval.shape) == len(b.aval.shape) for a, b in zip(outer, inner, strict=True))
    carried = alike(equation.outvars, body.outvars)
    return alike(equation.invars, body.invars) - carried, carried


def arity(program: Any) -> tuple[int, int]:
    """Returns how many inputs and outputs a jaxpr has."""
    jaxpr = program.jaxpr if isinstance(program, ClosedJaxpr) else program
    return len(jaxpr.invars), len(jaxpr.outvars)


def _holds_function(params: dict[str, Any]) -> bool:
    return any(callable(value) and not isinstance(value, type) for value in params.values())


def _only_names_axes(equation: JaxprEqn) -> bool:
    """Whether the only effect is that a collective names a mesh axis, which hides no dependence."""
    return all(type(effect).__name__ == "NamedAxisEffect" for effect in equation.effects)


def equations(program: Any) -> Iterator[JaxprEqn]:
    """Yields a program's equations, and those of the programs in them."""
    jaxpr = program.jaxpr if isinstance(program, ClosedJaxpr) else program
    for equation in jaxpr.eqns:
        yield equation
        for held in programs(equation.params):
            yield from equations(held)


def has_side_effects(program: Any) -> bool:
    """Whether running a program does more than compute its outputs, such as printing or calling the host."""
    return not all(_only_names_axes(equation) for equation in equations(program))
