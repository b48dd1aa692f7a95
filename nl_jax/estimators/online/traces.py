"""The recursion of eligibility traces, in a second run of a loop (`eligibility.py` has the equations)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nl_jax._core.dependence import reached
from nl_jax.base import Array, Params
from nl_jax.estimators.feedback.feedback_path import parted
from nl_jax.estimators.online.own_units import fault
from nl_jax.estimators.online.traced_layers import Layers, Mode
from nl_jax.propagation import plain_loop
from nl_jax.propagation.interpretation import loops_around
from nl_jax.propagation.loops import Leaves, Opened, chosen, differentiable, open_loop, perturbed, replaced, zero_of


def lessons_of_loop(
    layers: Layers, body: Callable, carry: Any, xs: Any, length: int | None, worth: Leaves, pair: Array | None
) -> tuple[Leaves, Leaves, tuple[Any, Any]]:
    """Returns what the loop reads, its credit by traces, and the loop's results.

    The inputs of a step receive the credit of that step alone.

    Args:
      layers: the object whose `layer` the program is run with.
      body, carry, xs, length: the loop.
      worth: the credit ∂L/∂ of those of its results that can be differentiated.
      pair: for the way back.
    """

    def displaced(state: Any, x: Any) -> tuple[Any, Any]:
        carry, offsets, pair_here = state
        beside = None if pair is None else pair_here
        given = {name: (offset, beside) for name, offset in zip(layers.nus, offsets, strict=True)}
        carry, results = body(carry, (x, given))
        return (carry, offsets, pair_here), results

    def traced(mode: Mode) -> Opened:
        layers.mode = mode
        return open_loop(displaced, begin, xs[0], length)

    layers.mode = Mode.PLAIN
    layers.nus.clear()  # of the loops before
    plain = open_loop(body, carry, xs, length)
    if nested := [name for name in layers.nus if loops_around(name) > 1]:
        raise ValueError(
            f"{layers.name}: layer {nested[0]!r} is in a loop within a loop, where there are no traces: use rtrl"
        )
    offsets = [jnp.zeros(nu.shape, nu.dtype) for nu in layers.nus.values()]
    begin = carry, offsets, jnp.ones(())
    layers.recurrent = _recurrent(traced(Mode.INPUTS), plain, layers)
    alone, whole = traced(Mode.ALONE), traced(Mode.TAUGHT)
    consts, companions = jax.lax.stop_gradient(parted(pair, whole.consts))
    if any(perturbed(leaf) for leaf in plain.carry if differentiable(leaf)):
        raise ValueError(
            f"{layers.name}: the loop's start depends on parameters, whose influence on the state has no trace: use "
            "rtrl or backprop, or start from a constant"
        )
    read = [differentiable(leaf) and perturbed(leaf) for leaf in plain.xs]
    recursion = _Recursion(layers, plain, alone, whole, consts, None if pair is None else companions, read)
    credit = recursion.run(worth)
    layers.mode = Mode.PLAIN
    results = jax.lax.stop_gradient(plain_loop("", body, carry, xs, length))
    return [*chosen(whole.consts, recursion.learns), *chosen(plain.xs, read)], credit, results


def _recurrent(loop: Opened, plain: Opened, layers: Layers) -> dict[str, list[bool]]:
    """Finds, for each layer's inputs, whether they come from the previous step and not from layers of this one."""
    count, names = len(plain.carry), list(layers.nus)

    def read(carry: Leaves, xs: Leaves, *offsets: Array) -> list[tuple[Leaves, Leaves]]:
        _, y = loop.step(loop.consts, [*carry, *offsets, jnp.ones(())], xs)
        return list(loop.close(loop.carry, y)[1][1])

    blank = [_blank(x) for x in loop.xs]
    sources = dict(zip(names, reached(read, plain.carry, blank, *loop.carry[count : count + len(names)]), strict=True))
    layers.changing = {name: any(parameters) for name, (_, parameters) in sources.items()}
    return {name: [found - {1} == {0} for found in inputs] for name, (inputs, _) in sources.items()}


class _Kept(NamedTuple):
    """The carry of the second run.

    Attributes:
      carry: the loop's own carry.
      traces: ε by layer, for each part of the state that its units carry themselves, like the layer's parameters with a
        leading axis of examples.
      direct: Σ_t of the credit that what the loop reads receives within a step.
      lessons: Σ_t Σ_s ∂L_t/∂s ε_s by layer, like its parameters.
    """

    carry: Leaves
    traces: dict[str, list[Params]]
    direct: Leaves
    lessons: dict[str, Params]


class _Recursion:
    def __init__(
        self,
        layers: Layers,
        plain: Opened,
        alone: Opened,
        whole: Opened,
        consts: Leaves,
        companions: Leaves | None,
        read: list[bool],
    ) -> None:
        self.layers, self.plain, self.alone, self.whole = layers, plain, alone, whole
        self.consts, self.read = consts, read
        self.learns = [differentiable(leaf) for leaf in consts]  # not those that are labels or indices
        moving = lambda leaf: leaf if differentiable(leaf) else zero_of(leaf)
        self.companions = None if companions is None else [moving(leaf) for leaf in companions]
        self.names = list(layers.nus)
        self.zeros = [jnp.zeros(nu.shape, nu.dtype) for nu in layers.nus.values()]
        self.start, self.xs = jax.lax.stop_gradient((plain.carry, plain.xs))
        moves = [differentiable(leaf) for leaf in plain.carry]
        self.ends = [i for i, one in enumerate(moves) if one]
        self.state = [i for i in self.ends if not plain.totals[i]]
        self.own = {name: self.own_states(k) for k, name in enumerate(self.names)}

    def run(self, worth: Leaves) -> Leaves:
        """Computes the credit of the consts that learn, and of those xs that depend on parameters."""
        last, of_y = dict(zip(self.ends, worth, strict=False)), worth[len(self.ends) :]
        begun = [self.start[i] for i in self.state]
        shapes = jax.eval_shape(lambda: self.step(self.consts, self.start, self.blank_x(), begun, self.zeros)[2])
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), list(shapes))
        begin = _Kept(
            self.start,
            {name: [rows for _ in self.own[name]] for name, (_, rows) in zip(self.names, zeros, strict=True)},
            [jnp.zeros_like(leaf) for leaf in chosen(self.consts, self.learns)],
            {name: params for name, (params, _) in zip(self.names, zeros, strict=True)},
        )

        def step(kept: _Kept, slices: tuple[Leaves, Leaves, Array]) -> tuple[_Kept, Leaves]:
            x, y_credit, is_last = slices
            # A total's credit is the same at all steps; that of the last state counts at the last step.
            due = {i: c if self.plain.totals[i] else jnp.where(is_last, c, jnp.zeros_like(c)) for i, c in last.items()}
            return self.learn(kept, x, due, y_credit)

        is_last = jnp.arange(self.plain.length) == self.plain.length - 1
        kept, to_xs = jax.lax.scan(step, begin, (self.xs, of_y, is_last), self.plain.length)

        def parameters(some_consts: Leaves) -> list[Params]:
            """Returns the layers' parameters, which are the same at every step of a loop over time."""
            consts = replaced(self.consts, self.learns, some_consts)
            return [own for own, _ in self.step(consts, self.start, [x[0] for x in self.xs], begun, self.zeros)[2]]

        (by_layers,) = jax.vjp(parameters, chosen(self.consts, self.learns))[1](
            [kept.lessons[name] for name in self.names]
        )
        return [*(d + g for d, g in zip(kept.direct, by_layers, strict=True)), *to_xs]

    def learn(self, kept: _Kept, x: Leaves, due: dict[int, Array], y_credit: Leaves) -> tuple[_Kept, Leaves]:
        """Runs one step: multiplies its credit by the past traces, updates these, and returns its inputs' credit."""
        h = [kept.carry[i] for i in self.state]

        def seen(some_consts: Leaves, h: Leaves, some_x: Leaves) -> tuple[Any, Any]:
            consts = replaced(self.consts, self.learns, some_consts)
            moved, y, found = self.step(consts, kept.carry, replaced(x, self.read, some_x), h, self.zeros)
            return ([moved[i] for i in due], y), (moved, found)

        learned = chosen(self.consts, self.learns)
        _, pull, (moved, found) = jax.vjp(seen, learned, h, chosen(x, self.read), has_aux=True)
        to_consts, to_h, to_x = pull((list(due.values()), y_credit))
        direct = [d + g for d, g in zip(kept.direct, to_consts, strict=True)]
        lessons = {}
        for name in self.names:
            pairs = zip(self.own[name], kept.traces[name], strict=True)
            shares = [jax.tree.map(lambda e, s=s: _spent(to_h[s], e), trace) for s, trace in pairs]
            lessons[name] = jax.tree.map(lambda *parts: sum(parts[1:], start=parts[0]), kept.lessons[name], *shares)
        rows = {name: own for name, (_, own) in zip(self.names, found, strict=True)}
        return _Kept(moved, self.moved_on(kept, x, h, rows), direct, lessons), to_x

    def moved_on(self, kept: _Kept, x: Leaves, h: Leaves, rows: dict[str, Params]) -> dict[str, list[Params]]:
        """Computes ε_s ← Σ_s' ∂s/∂s' ε_s' + ∂s/∂ν ∂ν/∂θ, where ∂s/∂s' and ∂s/∂ν act unit by unit."""

        def along(h_moves: Leaves, nu_moves: Leaves) -> Leaves:
            by_itself = lambda h, offsets: self.by_itself(kept.carry, x, h, offsets)
            return jax.jvp(by_itself, (h, self.zeros), (h_moves, nu_moves))[1]

        still = [jnp.zeros_like(leaf) for leaf in h]
        used = sorted({s for own in self.own.values() for s in own})
        D = {s: along(_with_ones(still, s), self.zeros) for s in used}
        after: dict[str, list[Params]] = {}
        for k, name in enumerate(self.names):
            S = along(still, _with_ones(self.zeros, k))
            past = list(zip(self.own[name], kept.traces[name], strict=True))
            after[name] = []
            for s in self.own[name]:
                shares = [jax.tree.map(lambda e, s=s, p=p: _of_units(D[p][s], e), trace) for p, trace in past]
                fed = jax.tree.map(lambda row, s=s, S=S: _of_units(S[s], row), rows[name])
                after[name].append(jax.tree.map(lambda *parts: sum(parts[1:], start=parts[0]), fed, *shares))
        return after

    def step(self, consts: Leaves, carry: Leaves, x: Leaves, h: Leaves, offsets: Leaves) -> tuple[Leaves, Leaves, Any]:
        """Returns the carry after a step, the part of y that has credit, and each layer's parameters and rows."""

        def run(consts: Leaves, pair: Array) -> tuple[Leaves, Leaves]:
            return self.whole.step(consts, [*self.with_state(carry, h), *offsets, pair], x)

        one = jnp.ones(())
        if self.companions is None:
            moved, y = run(consts, one)
        else:  # layers see the companions as tangents
            moved, y = jax.jvp(run, (consts, one), (self.companions, one))[0]
        _, (results, found) = self.whole.close(self.whole.carry, y)
        return moved[: len(carry)], [leaf for leaf in jax.tree.leaves(results) if differentiable(leaf)], found

    def by_itself(self, carry: Leaves, x: Leaves, h: Leaves, offsets: Leaves) -> Leaves:
        """Returns the state after a step, of units that no connection reaches."""
        consts = jax.lax.stop_gradient(self.alone.consts)
        moved, _ = self.alone.step(consts, [*self.with_state(carry, h), *offsets, jnp.ones(())], x)
        return [moved[i] for i in self.state]

    def own_states(self, k: int) -> list[int]:
        """Returns, by place, the parts of the state that the units of the k-th layer carry themselves."""
        begun, x, name = [self.start[i] for i in self.state], self.blank_x(), self.names[k]
        by_h = reached(lambda *h: self.by_itself(self.start, x, list(h), self.zeros), *begun)
        by_nu = reached(lambda *nus: self.by_itself(self.start, x, begun, list(nus)), *self.zeros)
        own = {s for s, sources in enumerate(by_nu) if k in sources}
        while more := {s for s, sources in enumerate(by_h) if own & sources} - own:
            own |= more
        for s in own:
            if begun[s].shape != self.zeros[k].shape or begun[s].ndim != 2:
                raise ValueError(
                    f"{self.layers.name}: layer {name!r} has pre-activations of shape {self.zeros[k].shape} and moves "
                    f"a state of shape {begun[s].shape}: its units must each carry their own, [batch, units]; use rtrl "
                    "or node_perturbation. A sum over steps is no state if the step only adds to it"
                )
        if own and self.layers.changing[name]:
            raise ValueError(self.layers.refusal(name, "has parameters that change from step to step"))
        if own and (why := fault(self.layers.connections[name])) is not None:
            raise ValueError(self.layers.refusal(name, why))
        return sorted(own)

    def with_state(self, carry: Leaves, h: Leaves) -> Leaves:
        now = list(carry)
        for i, leaf in zip(self.state, h, strict=True):
            now[i] = leaf
        return now

    def blank_x(self) -> Leaves:
        return [_blank(x) for x in self.xs]


def _of_units(factor: Array, trace: Array) -> Array:
    """factor_nj trace_n…j."""
    return jnp.reshape(factor, (factor.shape[0], *[1] * (trace.ndim - 2), factor.shape[1])).astype(trace.dtype) * trace


def _spent(credit: Array, trace: Array) -> Array:
    """Σ_n c_nj ε_n…j."""
    return jnp.sum(_of_units(credit, trace), axis=0)


def _with_ones(zeros: Leaves, place: int) -> Leaves:
    return [jnp.ones_like(leaf) if i == place else leaf for i, leaf in enumerate(zeros)]


def _blank(x: Array) -> Array:
    return jnp.zeros(x.shape[1:], x.dtype)
