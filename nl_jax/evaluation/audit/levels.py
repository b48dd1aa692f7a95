"""The level of every value of an estimate's jaxpr: which steps of a loop over time it depends on.

A value is at one of four levels:

- NONE: it depends on no step (parameters, the key, labels without a time axis).
- CAUSAL: inside a loop over time, it depends on this step and earlier ones. Outside, it is an array with an axis of
  steps; each entry depends on its own step and earlier ones, and the axis keeps its position. Any operation on that
  axis other than a sum makes the value ACAUSAL.
- END: it depends on all steps, as the last carry of a loop that reads no later steps, or the sum over such an axis.
- ACAUSAL: at some step it depends on a later one, or it depends on steps in an unknown order.

Any scan with the same number of steps counts as a loop over time. A forward scan reads CAUSAL arrays step by step; END
values and whole arrays of steps count as information from later steps inside it. In a reverse scan the carry counts as
such too. Every rule errs on the side of ACAUSAL. The loss of an example is not traced back: it is one number that
arrives at the end of the trial.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.extend.core import Literal as Constant

from nl_jax._core.dependence import CALLS, arity, mark_of, programs, scan_parts, tangent_mark_of
from nl_jax.evaluation.audit.marking import LOSS

NONE, CAUSAL, END, ACAUSAL = range(4)


class Level(NamedTuple):
    """The properties of a value.

    Attributes:
      time: NONE, CAUSAL, END or ACAUSAL.
      judged: whether it depends on an example's loss.
      raw: whether it is only the batch, rearranged.
      unit: whether it is the matrix that marks the losses' rate of change (`mark_tangent`).
    """

    time: int
    judged: bool = False
    raw: bool = False
    unit: bool = False


class Analysis:
    """The levels of all values of a program, found by running over its equations; `steps` is the loop's length."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.levels: dict[Any, Level] = {}

    def run(self, program: Any, arguments: Sequence[Level], *, inside: bool) -> list[Level]:
        """Computes the levels of a program's outputs; `inside` says whether it is in a loop over time."""
        jaxpr: Jaxpr = program.jaxpr if isinstance(program, ClosedJaxpr) else program
        known: dict[Any, Level] = dict.fromkeys(jaxpr.constvars, Level(NONE))
        known |= dict(zip(jaxpr.invars, arguments, strict=True))

        def level(atom: Any) -> Level:
            return Level(NONE) if isinstance(atom, Constant) else known[atom]

        for equation in jaxpr.eqns:
            inputs = [level(atom) for atom in equation.invars]
            known |= zip(equation.outvars, self.equation(equation, inputs, inside), strict=True)
        for variable, found in known.items():
            self.levels[variable] = _joined([found, self.levels.get(variable, found)], raw=True)
        return [level(atom) for atom in jaxpr.outvars]

    def equation(self, equation: JaxprEqn, inputs: list[Level], inside: bool) -> list[Level]:
        name, held, count = equation.primitive.name, list(programs(equation.params)), len(equation.outvars)
        if mark_of(equation) == LOSS:
            return [Level(NONE, judged=True)]
        if tangent_mark_of(equation) == LOSS:
            return [Level(NONE, unit=True)]
        if name == "dot_general" and inputs[1].unit:
            forward = equation.params["dimension_numbers"][0][1] == (0,)
            return [Level(NONE, judged=True) if forward else inputs[0]]
        if name == "scan":
            return self.scan(equation, inputs, inside)
        if name in CALLS and len(held) == 1 and arity(held[0]) == (len(inputs), count):
            return self.run(held[0], inputs, inside=inside)
        found = _joined(inputs)
        if held and name in ("while", "cond"):
            return self.opaque(held, equation, inputs, inside)
        if found.time == CAUSAL and not inside and not (held or equation.effects):
            still = all(self.keeps_steps(equation, out) for out in equation.outvars)
            found = found._replace(time=CAUSAL if still else END if self.sums_steps(equation) else ACAUSAL)
        elif found.time and (held or equation.effects) and not name.startswith(("reduce", "scatter", "select")):
            found = found._replace(time=ACAUSAL)
        raw = name in _REARRANGING and all(level.raw or level.time == NONE for level in inputs)
        return [found._replace(raw=raw and any(level.raw for level in inputs))] * count

    def opaque(self, held: list[Any], equation: JaxprEqn, inputs: list[Level], inside: bool) -> list[Level]:
        """Handles branches and unbounded loops: any input may reach any output; levels inside are recorded too."""
        found = _joined(inputs)
        if found.time and not inside:
            found = found._replace(time=ACAUSAL)
        for program in held:
            self.run(program, [found] * arity(program)[0], inside=True)
        return [found._replace(raw=False)] * len(equation.outvars)

    def scan(self, equation: JaxprEqn, inputs: list[Level], inside: bool) -> list[Level]:
        params = equation.params
        consts, carried = scan_parts(equation)
        over_time = params["length"] == self.steps
        constants, carry, slices = inputs[:consts], inputs[consts : consts + carried], inputs[consts + carried :]
        if over_time and not inside:
            constants, carry = [_news(level) for level in constants], [_news(level) for level in carry]
            slices = [level if level.time == CAUSAL else _news(level) for level in slices]
        within = inside or over_time
        carry = [level._replace(raw=False) for level in carry]
        while True:
            outputs = self.run(params["jaxpr"], [*constants, *carry, *slices], inside=within)
            later = outputs[:carried]
            if over_time and params["reverse"]:  # the carry comes from later steps
                later = [level._replace(time=ACAUSAL) if level.time else level for level in later]
            arrived = [_joined([before, after])._replace(raw=False) for before, after in zip(carry, later, strict=True)]
            if arrived == carry:
                break
            carry = arrived
        if over_time and not inside:
            carry = [level._replace(time=END) if level.time == CAUSAL else level for level in carry]
        return [*carry, *(level._replace(raw=False) for level in outputs[carried:])]

    def keeps_steps(self, equation: JaxprEqn, out: Any) -> bool:
        """Whether the output keeps the axis of steps of every input that has one."""
        params, name = equation.params, equation.primitive.name
        places = [self.axis(atom) for atom in equation.invars]
        to = self.axis(out)
        if to is None or any(place == -1 for place in places) or to == -1:
            return False
        known = [place for place in places if place is not None]
        if name in _POINTWISE:
            return all(place == to for place in known)
        if name == "broadcast_in_dim":
            return all(params["broadcast_dimensions"][place] == to for place in known)
        if name == "transpose":
            return all(params["permutation"][to] == place for place in known)
        if name.startswith("reduce_") and "axes" in params:
            kept = [i for i in range(len(_shape(equation.invars[0]))) if i not in params["axes"]]
            return all(place in kept and kept.index(place) == to for place in known)
        if name in ("reshape", "squeeze", "expand_dims"):
            before, after = _shape(equation.invars[0]), _shape(out)
            return all(math.prod(before[:place]) == math.prod(after[:to]) for place in known)
        if name == "concatenate":
            return all(place == to != params["dimension"] for place in known)
        if name == "dot_general":
            (contracted, batched) = params["dimension_numbers"]
            for place, summed, of_batch in zip(places, contracted, batched, strict=True):
                if place is not None and (place in summed or (len(known) > 1 and place not in of_batch)):
                    return False
            return True
        return False

    def sums_steps(self, equation: JaxprEqn) -> bool:
        """Whether the equation sums over steps, with equal steps paired, as in Σ_t δ_t x_t."""
        params, places = equation.params, [self.axis(atom) for atom in equation.invars]
        if equation.primitive.name == "reduce_sum":
            return places[0] in params["axes"]
        if equation.primitive.name == "dot_general":
            (contracted, _) = params["dimension_numbers"]
            at = [
                summed.index(place) if place in summed else None
                for place, summed in zip(places, contracted, strict=True)
            ]
            return None not in at and at[0] == at[1]
        return False

    def axis(self, atom: Any) -> int | None:
        """Returns the axis of steps: None if there is none, −1 if there are several."""
        shape = _shape(atom)
        count = shape.count(self.steps)
        return None if not count else shape.index(self.steps) if count == 1 else -1

    def grows(self, jaxpr: Jaxpr, needed: Sequence[bool]) -> bool:
        """Whether any needed output depends on a computed value that has an axis of steps."""
        return self._kept(jaxpr, list(needed))[1]

    def _kept(self, jaxpr: Jaxpr, needed: list[bool]) -> tuple[list[bool], bool]:
        """Finds the inputs that the needed outputs depend on, and whether any value in between has an axis of steps."""
        live = {atom for atom, one in zip(jaxpr.outvars, needed, strict=True) if one and not isinstance(atom, Constant)}
        large = False
        for equation in reversed(jaxpr.eqns):
            wanted = [out in live for out in equation.outvars]
            if not any(wanted):
                continue
            large |= any(self.is_large(out) for out, one in zip(equation.outvars, wanted, strict=True) if one)
            reads, inner = self._read(equation, wanted)
            large |= inner
            live |= {a for a, one in zip(equation.invars, reads, strict=True) if one and not isinstance(a, Constant)}
        return [variable in live for variable in jaxpr.invars], large

    def _read(self, equation: JaxprEqn, wanted: list[bool]) -> tuple[list[bool], bool]:
        held = [_open(p) for p in programs(equation.params)]
        everything = [True] * len(equation.invars)
        if equation.primitive.name == "scan":
            consts, carried = scan_parts(equation)
            while True:
                reads, large = self._kept(held[0], wanted)
                again = [a or b for a, b in zip(wanted[:carried], reads[consts : consts + carried], strict=True)]
                if again == wanted[:carried]:
                    return reads, large
                wanted = [*again, *wanted[carried:]]
        if equation.primitive.name in CALLS and len(held) == 1 and arity(held[0]) == (len(everything), len(wanted)):
            return self._kept(held[0], wanted)
        return everything, any(self._kept(p, [True] * len(p.outvars))[1] for p in held)

    def is_large(self, variable: Any) -> bool:
        level = self.levels.get(variable, Level(NONE))
        return self.axis(variable) is not None and level.time != NONE and not level.raw


def _shape(atom: Any) -> tuple[int, ...]:
    return getattr(atom.aval, "shape", ())


def _open(program: Any) -> Jaxpr:
    return program.jaxpr if isinstance(program, ClosedJaxpr) else program


def _news(level: Level) -> Level:
    """Returns the level, as seen by the steps of a loop over time, of a value from outside it."""
    return level._replace(time=ACAUSAL) if level.time else level


def _joined(levels: Sequence[Level], raw: bool = False) -> Level:
    time = max((level.time for level in levels), default=NONE)
    return Level(time, any(level.judged for level in levels), raw and all(level.raw for level in levels))


_REARRANGING = frozenset(
    {
        *("transpose", "reshape", "broadcast_in_dim", "squeeze", "expand_dims", "convert_element_type", "copy", "name"),
        *("slice", "concatenate", "stop_gradient", "device_put", "optimization_barrier", "rev", "dynamic_slice"),
    }
)

_POINTWISE = frozenset(
    {
        *("add", "sub", "mul", "div", "rem", "neg", "sign", "abs", "max", "min", "pow", "integer_pow", "sqrt", "rsqrt"),
        *("exp", "exp2", "log", "log1p", "expm1", "tanh", "logistic", "sin", "cos", "tan", "atan2", "erf", "erfc"),
        *("floor", "ceil", "round", "is_finite", "not", "and", "or", "xor", "eq", "ne", "lt", "le", "gt", "ge"),
        *("select_n", "clamp", "convert_element_type", "copy", "add_any", "stop_gradient", "name", "square", "cbrt"),
        *("device_put", "optimization_barrier", "reduce_precision", "nextafter", "real", "imag"),
    }
)
"""Elementwise primitives."""
