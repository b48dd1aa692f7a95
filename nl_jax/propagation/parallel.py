"""Runs the steps of a loop at once where they do not wait for each other."""

import enum
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal

from nl_jax._core.dependence import Flow, equations, has_side_effects, programs, sources_of_outputs
from nl_jax.propagation.interpretation import plain_loop
from nl_jax.propagation.loops import Leaves, Opened, open_loop


def parallel_loop(name: str, body: Callable, carry: Any, xs: Any, length: int | None) -> tuple[Any, Any]:
    """Runs all steps of a loop at once by `jax.vmap`, as far as they do not wait for each other.

    A part of the carry *waits* if a step computes it from what the step before carried on. Where layers are clamped,
    few parts do: steps start from given axons.

    1. `jax.vmap` over the steps computes the parts of the carry that do not wait.
    2. `jax.lax.scan` computes the parts that wait, and nothing else.
    3. `jax.vmap` computes the steps: one product of matrices where `jax.lax.scan` has one for each step. Totals, to
       which steps only add, are summed at the end.

    Memory holds the temporary values of all steps, as in reverse mode. `jax.lax.scan` runs all of the loop instead

    - if a product of matrices, a convolution or a loop has to wait;
    - if `jax.checkpoint` says that a step's values are not to be kept;
    - if a step would differ under `jax.vmap`: it has side effects, branches (all would run), loops with a condition, or
      random numbers that are not threefry's.
    """
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(xs)} | ({(length,)} if length is not None else set())
    if len(lengths) != 1 or lengths <= {(0,), ()}:
        return plain_loop(name, body, carry, xs, length)  # which explains what is wrong
    loop = open_loop(body, carry, xs, length)
    parts = _parts(loop)
    if parts is None:
        return plain_loop(name, body, carry, xs, length)
    alone = [jnp.zeros_like(c) if part is _Part.TOTAL else c for c, part in zip(loop.carry, parts, strict=True)]

    def step(carried: Leaves, x: Leaves) -> tuple[Leaves, Leaves]:
        """Runs a step; what is None in `carried` never changes, is a total, or is not known yet."""
        return loop.step(loop.consts, [a if c is None else c for a, c in zip(alone, carried, strict=True)], x)

    def known(part: _Part, values: Leaves) -> None:
        """Notes the values of some parts of the carry at the beginning of all steps."""
        carried[:] = [v if own is part else c for own, v, c in zip(parts, values, carried, strict=True)]

    def waiting(waited: Leaves, slices: tuple[Leaves, Leaves]) -> tuple[Leaves, Leaves]:
        carried, x = slices
        carried = [w if part is _Part.WAITING else c for part, w, c in zip(parts, waited, carried, strict=True)]
        ends = step(carried, x)[0]
        return [e if part is _Part.WAITING else None for part, e in zip(parts, ends, strict=True)], waited

    all_steps = jax.vmap(step, axis_size=loop.length)
    carried: Leaves = [None] * len(parts)
    counted = lambda c: c[None] + jnp.arange(loop.length, dtype=c.dtype).reshape(-1, *[1] * c.ndim)
    known(_Part.COUNTER, [counted(c) if p is _Part.COUNTER else None for p, c in zip(parts, loop.carry, strict=True)])
    if _Part.MADE in parts:  # 1
        ends, _ = all_steps(carried, loop.xs)
        known(_Part.MADE, [jnp.concatenate([c[None], e[:-1]]) for c, e in zip(loop.carry, ends, strict=True)])
    if _Part.WAITING in parts:  # 2
        begin = [c if part is _Part.WAITING else None for part, c in zip(parts, loop.carry, strict=True)]
        known(_Part.WAITING, jax.lax.scan(waiting, begin, (carried, loop.xs), loop.length)[1])
    ends, ys = all_steps(carried, loop.xs)  # 3
    last = [
        c + jnp.sum(end, axis=0) if part is _Part.TOTAL else end[-1]
        for part, c, end in zip(parts, loop.carry, ends, strict=True)
    ]
    return loop.close(last, ys)


class _Part(enum.Enum):
    """How a part of a loop's carry comes about.

    Attributes:
      FIXED: it never changes.
      COUNTER: the number of the step.
      TOTAL: steps only add to it.
      MADE: every step makes it anew, from nothing that was carried but counters.
      WAITING: every step makes it from what was carried.
    """

    FIXED = enum.auto()
    COUNTER = enum.auto()
    TOTAL = enum.auto()
    MADE = enum.auto()
    WAITING = enum.auto()


def _parts(loop: Opened) -> list[_Part] | None:
    """Sorts the parts of the carry; None if the loop's steps have to be run one after the other."""
    closed = jax.make_jaxpr(lambda carry, x: loop.step(loop.consts, carry, x)[0])(loop.carry, loop.example)
    if has_side_effects(closed) or any(map(_differs_under_vmap, equations(closed))):
        return None
    if any(out.shape != x.shape or out.dtype != x.dtype for out, x in zip(closed.out_avals, loop.carry, strict=True)):
        return None  # lax.scan explains what is wrong
    begins, ends = closed.jaxpr.invars, closed.jaxpr.outvars
    makers = {out: equation for equation in closed.jaxpr.eqns for out in equation.outvars}

    def simple(begin: Any, end: Any, total: bool) -> _Part | None:
        if total:
            return _Part.TOTAL
        if end is begin:
            return _Part.FIXED
        maker = None if isinstance(end, Literal) else makers.get(end)
        counts = maker is not None and maker.primitive.name == "add" and maker.invars[0] is begin and _is_one(maker)
        return _Part.COUNTER if counts else None

    found = [simple(*of) for of in zip(begins, ends, loop.totals, strict=False)]
    sources = [frozenset({Flow(i)} if i < len(found) and found[i] is None else ()) for i in range(len(begins))]
    depends = sources_of_outputs(closed, sources, lambda _, arriving: arriving, derivatives=True)
    parts = [part or (_Part.WAITING if arriving else _Part.MADE) for part, arriving in zip(found, depends, strict=True)]
    waiting = [end for part, end in zip(parts, ends, strict=True) if part is _Part.WAITING]
    return None if _is_expensive(closed, waiting) else parts


def _is_one(equation: JaxprEqn) -> bool:
    """Whether the equation adds a literal integer 1."""
    added = equation.invars[1]
    value = np.asarray(added.val if isinstance(added, Literal) else 0)
    return np.issubdtype(value.dtype, np.integer) and bool(np.all(value == 1))


def _differs_under_vmap(equation: JaxprEqn) -> bool:
    """Whether all steps at once would compute, keep or draw something else than one after the other."""
    if equation.primitive.name == "random_bits":
        (key,) = equation.invars
        return bool(getattr(key.aval, "dtype", None) != _threefry())
    return equation.primitive.name in _SEQUENTIAL


@functools.cache
def _threefry() -> Any:
    with jax.ensure_compile_time_eval():
        return jax.random.key(0, impl="threefry2x32").dtype


_SEQUENTIAL = frozenset({"while", "cond", "checkpoint", "remat", "remat2", "rng_bit_generator", "pure_callback"})
_EXPENSIVE = frozenset({"dot_general", "ragged_dot_general", "conv_general_dilated", "scan"})


def _is_expensive(closed: ClosedJaxpr, outputs: list[Any]) -> bool:
    """Whether some of a program's outputs take a product of matrices, a convolution or a loop."""
    needed = {output for output in outputs if not isinstance(output, Literal)}

    for equation in reversed(closed.jaxpr.eqns):
        if needed.intersection(equation.outvars):
            inner = (one for held in programs(equation.params) for one in equations(held))
            if any(one.primitive.name in _EXPENSIVE for one in (equation, *inner)):
                return True
            needed.update(atom for atom in equation.invars if not isinstance(atom, Literal))
    return False
