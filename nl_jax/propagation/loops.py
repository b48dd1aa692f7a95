"""Opens loops for derivatives: separates what a step reads, what it carries and what it sums."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

from nl_jax._core.dependence import reached, severed
from nl_jax.base import Array
from nl_jax.propagation.interpretation import SEPARATOR

Leaves = list[Any]


class Opened(NamedTuple):
    """A loop's step as a pure function of lists of arrays.

    Attributes:
      step: `step(consts, carry, x) -> (carry, y)`, all of them lists.
      consts: values that the step reads from outside the loop; usually parameters.
      carry: the first carry.
      xs: values read step by step, with a leading axis of steps.
      length: number of steps.
      example: what one step reads of `xs`.
      totals: for each part of the carry, whether the loop only adds to it or subtracts from it, as with a sum of
        losses. Nothing else reads such a part, so its credit is the same at every step.
      close: rebuilds `(carry, ys)` from their lists.
    """

    step: Callable[[Leaves, Leaves, Leaves], tuple[Leaves, Leaves]]
    consts: Leaves
    carry: Leaves
    xs: Leaves
    length: int
    example: Leaves
    totals: list[bool]
    close: Callable[[Leaves, Leaves], tuple[Any, Any]]


def open_loop(body: Callable, carry: Any, xs: Any, length: int | None = None) -> Opened:
    """Opens a loop with the arguments of `jax.lax.scan`."""
    carry_leaves, carry_tree = jax.tree.flatten(carry)
    x_leaves, x_tree = jax.tree.flatten(xs)
    x_leaves = [jnp.asarray(x) for x in x_leaves]
    # As in lax.scan, a weakly typed carry takes the type that the body gives it.
    carry_leaves = [jnp.asarray(c) for c in carry_leaves]
    lengths = {x.shape[0] for x in x_leaves} | ({length} if length is not None else set())
    if len(lengths) != 1:
        found = f"they have {sorted(lengths)}" if lengths else "it has no xs"
        raise ValueError(f"a loop's xs must have one leading axis of steps, as long as its length: {found}")
    (steps,) = lengths
    # Slices of the values themselves: they know the mesh axes over which they vary.
    example = [x[0] if steps else _nothing(x) for x in x_leaves]
    out_trees: list[Any] = []

    def flat(carry: Leaves, x: Leaves) -> tuple[Leaves, Leaves]:
        new_carry, y = body(jax.tree.unflatten(carry_tree, carry), jax.tree.unflatten(x_tree, x))
        new, tree = jax.tree.flatten(new_carry)
        if str(tree) != str(carry_tree):
            raise TypeError(f"a loop's step must return a carry like the one it is given, {carry_tree}; got {tree}")
        y_leaves, y_tree = jax.tree.flatten(y)
        out_trees[:] = [y_tree]
        return new, y_leaves

    # Not jax.closure_convert, which leaves integers where they are, such as the number of an outer loop's step.
    traced = jax.make_jaxpr(flat)(carry_leaves, example)
    consts = list(traced.consts)

    def step(consts: Leaves, carry: Leaves, x: Leaves) -> tuple[Leaves, Leaves]:
        found = jaxpr_as_fun(ClosedJaxpr(traced.jaxpr, consts))(*carry, *x)
        return found[: len(carry)], found[len(carry) :]

    totals = _totals(step, consts, carry_leaves, example)
    return Opened(
        step, consts, carry_leaves, x_leaves, steps, example, totals,
        lambda carry, ys: (jax.tree.unflatten(carry_tree, carry), jax.tree.unflatten(out_trees[0], ys)),
    )  # fmt: skip


def require_steps(name: str, xs: Any, length: int | None) -> None:
    """Raises ValueError if the loop has no steps, for rules that look at its first or last one."""
    if length == 0 or any(jnp.shape(x)[:1] == (0,) for x in jax.tree.leaves(xs)):
        raise ValueError(f"loop {name!r} has no steps: give it a length, or xs with a leading axis, of at least 1")


def _totals(step: Callable, consts: Leaves, carry: Leaves, x: Leaves) -> list[bool]:
    jaxpr = jax.make_jaxpr(step)(consts, carry, x).jaxpr
    begins = jaxpr.invars[len(consts) : len(consts) + len(carry)]
    ends = jaxpr.outvars[: len(carry)]
    read: dict[Any, int] = {}
    for atom in [*(a for equation in jaxpr.eqns for a in equation.invars), *jaxpr.outvars]:
        if not isinstance(atom, Literal):
            read[atom] = read.get(atom, 0) + 1
    makers = {out: equation for equation in jaxpr.eqns for out in equation.outvars}

    def adds(begin: Any, end: Any) -> bool:
        if isinstance(end, Literal) or not differentiable(begin.aval) or read.get(begin) != 1 or read.get(end) != 1:
            return False
        maker = makers.get(end)
        if maker is None or begin not in maker.invars:
            return False
        name = maker.primitive.name
        return name in ("add", "add_any") or (name == "sub" and maker.invars[0] is begin)

    return [adds(begin, end) for begin, end in zip(begins, ends, strict=True)]


def accumulated(name: str, body: Callable, carry: Any, xs: Any, length: int | None) -> tuple[Any, Any]:
    """Runs `jax.lax.scan`; its derivative by the parameters is summed in a second forward run.

    This is correct where parameters reach the carried state only through layers that are cut, as in `local`. A step's
    credit then reaches only that step's use of the parameters. No step's values are kept, so memory does not grow with
    the number of steps. Where the state itself depends on parameters, this is `jax.lax.scan` with its own derivative.
    """
    loop = open_loop(body, carry, xs, length)
    first, last, ys = _dependence(loop)
    state = [i for i, (leaf, total) in enumerate(zip(loop.carry, loop.totals, strict=True)) if not total]
    state = [i for i in state if differentiable(loop.carry[i])]

    def plain(consts: Leaves, carry: Leaves, xs: Leaves) -> tuple[Leaves, Leaves]:
        return jax.lax.scan(lambda carry, x: loop.step(consts, carry, x), carry, xs, loop.length)

    def forward(consts: Leaves, carry: Leaves, xs: Leaves) -> tuple[Any, Any]:
        values = tuple([leaf.value for leaf in leaves] for leaves in (consts, carry, xs))
        learned, begun, read = wanted = tuple(
            [leaf.perturbed and differentiable(leaf.value) for leaf in leaves] for leaves in (consts, carry, xs)
        )
        moved = _places(learned, [False] * len(carry), read)
        started = _places([False] * len(consts), begun, [False] * len(xs))
        if any(last[i] & moved or first[i] & started for i in state):
            return jax.vjp(plain, *values)
        return plain(*values), (values, Static(wanted))

    def backward(residual: Any, credit: tuple[Leaves, Leaves]) -> tuple[Leaves, Leaves, Leaves]:
        if not isinstance(residual, tuple):
            end, traces = ([instantiated(leaf) for leaf in leaves] for leaves in credit)
            return residual((end, traces))
        (consts, carry, xs), wanted = residual
        return _forwards(loop, consts, carry, xs, credit, *wanted.value)

    run = jax.custom_vjp(plain)
    run.defvjp(forward, backward, symbolic_zeros=True)
    end, traces = run(loop.consts, loop.carry, loop.xs)
    if SEPARATOR not in name:  # values that depend on no parameter carry no derivative onwards
        touched = _places(*([perturbed(leaf) for leaf in leaves] for leaves in (loop.consts, loop.carry, loop.xs)))
        end = [leaf if found & touched else _stopped(leaf) for leaf, found in zip(end, last, strict=True)]
        traces = [leaf if found & touched else _stopped(leaf) for leaf, found in zip(traces, ys, strict=True)]
    return loop.close(end, traces)


def _forwards(
    loop: Opened,
    consts: Leaves,
    carry: Leaves,
    xs: Leaves,
    credit: tuple[Leaves, Leaves],
    learned: list[bool],
    begun: list[bool],
    read: list[bool],
) -> tuple[Leaves, Leaves, Leaves]:
    """Returns the credit of the loop's inputs, by a second run that goes forward."""
    last, ys = ([instantiated(leaf) for leaf in leaves] for leaves in credit)
    # The credit of a total is the same at all steps; credit of the state reaches no parameter and is not needed.
    constant = [c if total else None for c, total in zip(last, loop.totals, strict=True)]
    nothing = [jnp.zeros_like(leaf) for leaf in chosen(consts, learned)]
    first = [jnp.zeros_like(leaf) for leaf in chosen(carry, begun)]
    credits = [leaf.dtype != jax.dtypes.float0 for leaf in ys]

    def again(state: tuple[Leaves, Leaves, Leaves, Array], slices: tuple[Leaves, Leaves]) -> tuple[Any, Leaves]:
        carry, total, first, index = state
        x, y_credit = slices

        def step(some_consts: Leaves, some_carry: Leaves, some_x: Leaves) -> tuple[Leaves, Leaves]:
            return loop.step(
                replaced(consts, learned, some_consts), replaced(carry, begun, some_carry), replaced(x, read, some_x)
            )

        (moved, y), pull = jax.vjp(step, chosen(consts, learned), chosen(carry, begun), chosen(x, read))
        credited = [zero_of(m) if c is None else c for m, c in zip(moved, constant, strict=True)]
        to_consts, to_carry, to_x = pull((credited, replaced([zero_of(leaf) for leaf in y], credits, y_credit)))
        total = [t + g for t, g in zip(total, to_consts, strict=True)]
        first = [jnp.where(index == 0, g, f) for g, f in zip(to_carry, first, strict=True)]
        return (moved, total, first, index + 1), to_x

    begin = carry, nothing, first, jnp.int32(0)
    (_, total, first, _), to_xs = jax.lax.scan(again, begin, (xs, chosen(ys, credits)), loop.length)
    blank = ([None] * len(leaves) for leaves in (consts, carry, xs))
    wanted = (learned, total), (begun, first), (read, to_xs)
    to_consts, to_carry, to_xs = (replaced(none, *chosen) for none, chosen in zip(blank, wanted, strict=True))
    return to_consts, to_carry, to_xs


def _dependence(loop: Opened) -> tuple[list[frozenset[int]], list[frozenset[int]], list[frozenset[int]]]:
    """Returns the dependences of the carry after one step, of the carry after all steps, and of y.

    A dependence is a set of the loop's inputs, numbered in the order consts, carry, xs.
    """
    counts = len(loop.consts), len(loop.carry)
    begins = counts[0]

    def step(*leaves: Any) -> tuple[Leaves, Leaves]:
        return loop.step(list(leaves[:begins]), list(leaves[begins : sum(counts)]), list(leaves[sum(counts) :]))

    first, ys = reached(step, *loop.consts, *loop.carry, *loop.example)
    last = first
    while True:
        carried = {begins + i: sources for i, sources in enumerate(last)}
        further = [sources.union(*(carried.get(n, frozenset()) for n in sources)) for sources in last]
        if further == last:
            break
        last = further
    return first, last, [sources.union(*(carried.get(n, frozenset()) for n in sources)) for sources in ys]


def _places(consts: list[bool], carry: list[bool], xs: list[bool]) -> frozenset[int]:
    return frozenset(i for i, one in enumerate([*consts, *carry, *xs]) if one)


def perturbed(x: Any) -> bool:
    """Whether x is being differentiated in the current trace."""
    found: list[bool] = []

    @jax.custom_jvp
    def identity(x: Array) -> Array:
        return x

    def rule(primals: tuple[Array], tangents: tuple[Any]) -> tuple[Array, Any]:
        found.append(not isinstance(tangents[0], jax.custom_derivatives.SymbolicZero))
        return primals[0], tangents[0]

    identity.defjvp(rule, symbolic_zeros=True)
    if differentiable(x):
        identity(x)
    return any(found)


def _stopped(leaf: Any) -> Any:
    return severed(leaf) if differentiable(leaf) else leaf


def chosen(leaves: Leaves, which: Sequence[bool]) -> Leaves:
    """Returns the marked leaves."""
    return [leaf for leaf, one in zip(leaves, which, strict=True) if one]


def replaced(leaves: Leaves, which: Sequence[bool], by: Leaves) -> Leaves:
    """Returns the leaves, with the marked ones replaced by those in `by`."""
    values = iter(by)
    return [next(values) if one else leaf for leaf, one in zip(leaves, which, strict=True)]


class Static:
    """A value that is not an array, among the residuals of a `custom_vjp`."""

    def __init__(self, value: Any) -> None:
        self.value = value


jax.tree_util.register_pytree_node(Static, lambda s: ((), s.value), lambda value, _: Static(value))


def differentiable(x: Any) -> bool:
    """Whether an array can carry a tangent; indices, masks and keys cannot."""
    return jnp.issubdtype(x.dtype, jnp.inexact)


def zero_of(x: Any) -> Any:
    """Returns the zero credit of an array, float0 if it can have none."""
    return jnp.zeros(x.shape, x.dtype) if differentiable(x) else np.zeros(x.shape, jax.dtypes.float0)


def instantiated(credit: Any) -> Any:
    """Returns credit as an array, also where JAX represents zero by a symbol."""
    if not isinstance(credit, jax.custom_derivatives.SymbolicZero):
        return credit
    aval: Any = credit.aval
    return np.zeros(aval.shape, aval.dtype) if aval.dtype == jax.dtypes.float0 else zero_of(aval)


def _nothing(x: Any) -> Any:
    """Returns what a step of a loop without steps would read."""
    return jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
