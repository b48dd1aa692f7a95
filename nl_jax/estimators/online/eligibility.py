"""Eligibility traces: the influence of a weight on the state of its own unit, and on no other.

For each layer l of the loop, with ν_j the pre-activation of unit j and s_j what the unit carries on of itself by the
program's own arithmetic (a leak, a threshold, a reset),

    ε_s,ij ← Σ_s' ∂s_j/∂s'_j ε_s',ij + ∂s_j/∂ν_j ∂ν_j/∂W_ij                        (Bellec et al. 2020, eq. 13–14)
    ∂L/∂W_ij ≈ Σ_t Σ_s ∂L_t/∂s_j ε_s,ij(t−1) + ∂L_t/∂ν_j ∂ν_j/∂W_ij

one trace for each weight, example and part of the state. Recurrent connections, inputs of layers that come from the step
before, are no way for credit; layers of one step are, so that a read-out or a second layer in the loop sends credit down.
Without recurrent connections this is the gradient. What ∂L_t/∂s_j is made of is the learning signal: with feedback
weights B layers send it down through B.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nl_jax.base import Array, Batch, Objective, Params
from nl_jax.checks import per_example
from nl_jax.dependence import reached
from nl_jax.estimators.online.forward_credit import require_loop
from nl_jax.estimators.way_back import parted, taught, transposed
from nl_jax.propagation import Site, interpret, plain_loop
from nl_jax.propagation.loops import Leaves, Opened, differentiable, opened


class Estimate(NamedTuple):
    """A gradient by traces.

    Attributes:
      losses: [batch].
      grads: a tree like the parameters, on the scale of the mean loss.
    """

    losses: Array
    grads: Params


def by_traces(
    name: str, objective: Objective, loop: str, params: Params, batch: Batch, feedback: Params | None
) -> Estimate:
    """The gradient of the mean loss, in the loop by traces.

    Args:
      name: the estimator's, for messages.
      objective: a per-example objective that takes `propagate`.
      loop: the name of its loop over time.
      params: of the program.
      batch: as the objective takes it.
      feedback: B, a tree like `params`, or None for the weights themselves.
    """
    if feedback is None:
        return _estimate(name, objective, loop, batch, lambda run: lambda params: run(params, None), params)

    def paired(run: Callable[[Params, Array | None], Any]) -> Callable[[Params], Any]:
        one = jnp.ones(())
        return lambda params: jax.jvp(run, (params, one), (feedback, one))[0]

    return _estimate(name, objective, loop, batch, paired, params)


def _estimate(
    name: str, objective: Objective, loop: str, batch: Batch, paired: Callable[..., Any], params: Params
) -> Estimate:
    met: list[str] = []

    def outside(site: Site, one: Array | None) -> tuple[Array, None]:
        return taught(site, transposed, (), one), None

    def first(params: Params, one: Array | None, results: Any) -> tuple[Array, tuple[Array, Any]]:
        """The mean loss, as a function of parameters outside the loop and of displacements of the loop's results."""
        ended: list[Any] = []

        def run(own: str, body: Callable, carry: Any, xs: Any, length: int | None) -> tuple[Any, Any]:
            met.append(own)
            if own != loop:
                return plain_loop(own, body, carry, xs, length)
            ends = jax.lax.stop_gradient(plain_loop(own, body, *jax.lax.stop_gradient((carry, xs)), length))
            leaves, tree = jax.tree.flatten(ends)
            ended.extend(leaf for leaf in leaves if differentiable(leaf))
            moves = iter(ended if results is None else results)
            return jax.tree.unflatten(
                tree, [leaf if not differentiable(leaf) else _moved(leaf, next(moves), results) for leaf in leaves]
            )

        losses, _ = interpret(objective, lambda site, given: outside(site, one), loop=run)(params, batch)
        return jnp.mean(per_example(losses)), (losses, ended)

    shapes = jax.eval_shape(lambda params: paired(lambda p, one: first(p, one, None))(params), params)[1][1]
    require_loop(name, loop, met)
    zeros = [jnp.zeros(s.shape, s.dtype) for s in shapes]

    def mean_loss(params: Params, results: Leaves) -> tuple[Array, Array]:
        loss, (losses, _) = paired(lambda p, one: first(p, one, results))(params)
        return loss, losses

    (_, losses), (grads, worth) = jax.value_and_grad(mean_loss, argnums=(0, 1), has_aux=True)(params, zeros)

    def second(params: Params, one: Array | None) -> Array:
        """⟨what the loop reads, its credit⟩, whose gradient takes the credit on to the parameters."""
        lessons: list[Array] = []
        layers = _Layers(name)

        def run(own: str, body: Callable, carry: Any, xs: Any, length: int | None) -> tuple[Any, Any]:
            if own != loop:
                return plain_loop(own, body, carry, xs, length)
            read, credit, ends = _second_run(layers, body, carry, xs, length, worth, one)
            pairs = zip(read, credit, strict=True)
            lessons.extend(jnp.sum(leaf * jax.lax.stop_gradient(c)).astype(float) for leaf, c in pairs)
            return ends

        interpret(objective, layers.layer, loop=run)(params, batch)
        return sum(lessons, start=jnp.asarray(0.0))

    more = jax.grad(paired(second))(params)
    return Estimate(losses, jax.tree.map(lambda a, b: a + b.astype(a.dtype), grads, more))


def _moved(leaf: Array, move: Array, results: Any) -> Array:
    return leaf if results is None else leaf + move


class _Layers:
    """What a layer does in the second run; `mode` says which of its faces is wanted where the step is traced."""

    def __init__(self, name: str) -> None:
        self.name, self.mode = name, "plain"
        self.nus: dict[str, jax.ShapeDtypeStruct] = {}
        self.recurrent: dict[str, list[bool]] = {}

    def layer(self, site: Site, given: Any) -> tuple[Array, Any]:
        if given is None:
            nu = site.preactivation()
            if site.steps:
                self.nus[site.name] = jax.ShapeDtypeStruct(nu.shape, nu.dtype)
            return site.activation(nu), None
        offset, one = given
        connection = lambda params, *inputs: site.connection(params, *inputs) + offset
        if self.mode == "inputs":
            displaced = site._replace(connection=connection)
            return displaced.axons(), [x for x in site.inputs if differentiable(x)]
        stopped = jax.lax.stop_gradient
        if self.mode == "alone":
            alone = site._replace(connection=connection, inputs=stopped(site.inputs))
            return alone.axons(), None
        flags = iter(self.recurrent[site.name])
        inputs = tuple(stopped(x) if differentiable(x) and next(flags) else x for x in site.inputs)
        axons = taught(site._replace(connection=connection, inputs=inputs), transposed, (), one)
        return axons, (site.params, _rows(site))


def _rows(site: Site) -> Params:
    """∂ν_j/∂θ_…j for each example: the last axis of every parameter is that of the units."""
    still = jax.lax.stop_gradient((site.params, site.inputs))

    def of_example(inputs: tuple[Array, ...]) -> Params:
        one = tuple(jnp.expand_dims(x, 0) for x in inputs)
        made, pull = jax.vjp(lambda params: site.connection(params, *one), still[0])
        return pull(jnp.ones_like(made))[0]

    return jax.lax.stop_gradient(jax.vmap(of_example)(still[1]))


def _second_run(
    layers: _Layers, body: Callable, carry: Any, xs: Any, length: int | None, worth: Leaves, one: Array | None
) -> tuple[Leaves, Leaves, tuple[Any, Any]]:
    """What the loop reads, its credit, and the loop's results."""
    layers.mode = "plain"
    plain = opened(body, carry, xs, length)
    x, _ = xs
    offsets = [jnp.zeros(nu.shape, nu.dtype) for nu in layers.nus.values()]
    unit = jnp.ones(())

    def displaced(state: Any, slices: Any) -> tuple[Any, Any]:
        carry, offsets, paired = state
        beside = None if one is None else paired
        given = {name: (offset, beside) for name, offset in zip(layers.nus, offsets, strict=True)}
        carry, (y, found) = body(carry, (slices, given))
        return (carry, offsets, paired), (y, found)

    begin = carry, offsets, unit
    layers.mode = "inputs"
    layers.recurrent = _recurrent(opened(displaced, begin, x, length), plain, layers)
    layers.mode = "alone"
    alone = opened(displaced, begin, x, length)
    layers.mode = "taught"
    loop = opened(displaced, begin, x, length)
    consts, companions = jax.lax.stop_gradient(parted(one, loop.consts))
    credit = _traced(layers, plain, alone, loop, consts, None if one is None else companions, worth)
    layers.mode = "plain"
    return loop.consts, credit, jax.lax.stop_gradient(plain_loop("", body, carry, xs, length))


def _recurrent(loop: Opened, plain: Opened, layers: _Layers) -> dict[str, list[bool]]:
    """Of each layer's inputs, whether they come from the step before and not from layers of this one."""
    names, count = list(layers.nus), len(plain.carry)
    visible: dict[str, list[frozenset[int]]] = {}

    def inputs(carry: Leaves, *offsets: Array) -> Leaves:
        rest = loop.carry[count + len(names) :]
        _, y = loop.step(loop.consts, [*carry, *offsets, *rest], [_first(x) for x in loop.xs])
        (_, (_, found)) = loop.close(loop.carry, y)
        return list(found)

    sources = reached(inputs, loop.carry[:count], *loop.carry[count : count + len(names)])
    for name, own in zip(names, sources, strict=True):
        visible[name] = list(own)
    return {name: [found == frozenset({0}) for found in own] for name, own in visible.items()}


def _traced(
    layers: _Layers,
    plain: Opened,
    alone: Opened,
    loop: Opened,
    consts: Leaves,
    companions: Leaves | None,
    worth: Leaves,
) -> Leaves:
    """The credit of what the loop reads, by traces."""
    names, count = list(layers.nus), len(plain.carry)
    state = [
        i for i, (c, total) in enumerate(zip(plain.carry, plain.totals, strict=True)) if differentiable(c) and not total
    ]
    ends = [i for i, c in enumerate(plain.carry) if differentiable(c)]
    last = dict(zip(ends, worth, strict=False))
    of_y = worth[len(ends) :]
    carry, xs = jax.lax.stop_gradient((plain.carry, plain.xs))

    def with_state(carry: Leaves, h: Leaves) -> Leaves:
        now = list(carry)
        for i, leaf in zip(state, h, strict=True):
            now[i] = leaf
        return now

    def step(consts: Leaves, carry: Leaves, x: Leaves, h: Leaves, offsets: Leaves) -> Any:
        def run(consts: Leaves, paired: Array) -> tuple[Leaves, Leaves]:
            return loop.step(consts, [*with_state(carry, h), *offsets, paired], x)

        unit = jnp.ones(())
        beside = companions is not None  # seen by the layers as tangents
        moved, y = jax.jvp(run, (consts, unit), (companions, unit))[0] if beside else run(consts, unit)
        _, (y, found) = loop.close(loop.carry, y)
        return moved[:count], [leaf for leaf in jax.tree.leaves(y) if differentiable(leaf)], found

    def by_itself(carry: Leaves, x: Leaves, h: Leaves, offsets: Leaves) -> Leaves:
        """The state after a step, of units that no connection reaches."""
        still = jax.lax.stop_gradient(alone.consts)
        moved, _ = alone.step(still, [*with_state(carry, h), *offsets, jnp.ones(())], x)
        return [moved[i] for i in state]

    def own_states() -> dict[str, list[int]]:
        """Which parts of the state (by place) a layer's units carry of themselves."""
        first, begun = [_first(x) for x in xs], [carry[i] for i in state]
        by_h = reached(lambda *h: by_itself(carry, first, list(h), zeros), *begun)
        by_offset = reached(lambda *o: by_itself(carry, first, begun, list(o)), *zeros)
        found: dict[str, list[int]] = {}
        for k, name in enumerate(names):
            own = {s for s, sources in enumerate(by_offset) if k in sources}
            while True:
                more = own | {s for s, sources in enumerate(by_h) if own & sources}
                if more == own:
                    break
                own = more
            for s in own:
                if carry[state[s]].shape != layers.nus[name].shape:
                    raise ValueError(
                        f"{layers.name}: layer {name!r} has pre-activations of shape {layers.nus[name].shape} and moves a "
                        f"state of shape {carry[state[s]].shape}: its units must each carry their own, [batch, units]; "
                        "use rtrl, or node_perturbation"
                    )
            found[name] = sorted(own)
        return found

    zeros = [jnp.zeros(nu.shape, nu.dtype) for nu in layers.nus.values()]
    mine = own_states()

    def one_step(kept: Any, slices: tuple[Leaves, Leaves, Array]) -> tuple[Any, None]:
        carry, traces, total, lessons = kept
        x, y_credit, is_last = slices
        h = [carry[i] for i in state]

        def seen(consts: Leaves, h: Leaves, offsets: Leaves) -> tuple[Any, Any]:
            moved, y, found = step(consts, carry, x, h, offsets)
            worthy = [moved[i] for i in ends]
            return (worthy, y), (moved, found)

        (worthy, _), pull, (moved, found) = jax.vjp(seen, consts, h, zeros, has_aux=True)
        due = [
            last[i] if plain.totals[i] else jnp.where(is_last, last[i], jnp.zeros_like(w))
            for i, w in zip(ends, worthy, strict=True)
        ]
        to_consts, to_h, _ = pull((due, y_credit))
        total = [t + g for t, g in zip(total, to_consts, strict=True)]
        lessons = {
            name: jax.tree.map(
                lambda lesson, *own, name=name: lesson + sum(_spent(to_h[s], e) for s, e in zip(mine[name], own, strict=True)),
                lessons[name], *traces[name],
            )
            for name in names
        }  # fmt: skip

        still = [jnp.zeros_like(leaf) for leaf in h]

        def by_state(s: int) -> Leaves:
            ones = [jnp.ones_like(leaf) if i == s else leaf for i, leaf in enumerate(still)]
            return jax.jvp(lambda h: by_itself(carry, x, h, zeros), (h,), (ones,))[1]

        D = {s: by_state(s) for s in sorted({s for own in mine.values() for s in own})}
        after = {}
        for k, name in enumerate(names):
            ones = [jnp.ones_like(z) if i == k else z for i, z in enumerate(zeros)]
            S = jax.jvp(lambda o: by_itself(carry, x, h, o), (zeros,), (ones,))[1]
            rows = found[k][1]
            after[name] = [
                jax.tree.map(
                    lambda row, *past, s=s, S=S, name=name: _of_units(S[s], row)
                    + sum(_of_units(D[p][s], e) for p, e in zip(mine[name], past, strict=True)),
                    rows, *traces[name],
                )
                for s in mine[name]
            ]  # fmt: skip
        return (moved, after, total, lessons), None

    shapes = jax.eval_shape(
        lambda x: step(consts, carry, x, [carry[i] for i in state], zeros)[2], [_first(x) for x in xs]
    )
    traces = {
        name: [jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes[k][1]) for _ in mine[name]]
        for k, name in enumerate(names)
    }
    lessons = {name: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes[k][0]) for k, name in enumerate(names)}
    begin = carry, traces, [jnp.zeros_like(leaf) for leaf in consts], lessons
    is_last = jnp.arange(plain.length) == plain.length - 1
    (_, _, total, lessons), _ = jax.lax.scan(one_step, begin, (xs, of_y, is_last), plain.length)

    def parameters(consts: Leaves) -> list[Params]:
        """The layers' parameters, of what the loop reads: the same at every step of a loop over time."""
        found = step(consts, carry, [x[0] for x in xs], [carry[i] for i in state], zeros)[2]
        return [own for own, _ in found]

    (further,) = jax.vjp(parameters, consts)[1]([lessons[name] for name in names])
    return [t + g for t, g in zip(total, further, strict=True)]


def _of_units(factor: Array, trace: Array) -> Array:
    """factor_nj trace_n…j."""
    return jnp.reshape(factor, (factor.shape[0], *[1] * (trace.ndim - 2), factor.shape[1])).astype(trace.dtype) * trace


def _spent(credit: Array, trace: Array) -> Array:
    """Σ_n c_nj ε_n…j."""
    return jnp.sum(_of_units(credit, trace), axis=0)


def _first(x: Any) -> jax.ShapeDtypeStruct:
    return jnp.zeros(x.shape[1:], x.dtype)
