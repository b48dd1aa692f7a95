"""Derivatives of loops over time, computed forward; shared by the rules of this folder.

A first run finds the losses, and from them the credit of each step's outputs, ∂L/∂y_t, and of the last carry. A second
run, forward as well, sums every step's share of the gradient, using what a rule carries of the past. If losses are
summed in the loop, ∂L/∂y_t is known beforehand, and the second run needs nothing of the first.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nl_jax._core.numerics import wide_dtype
from nl_jax._core.require import layered, loop_name, per_example, positive_integer, typed_key
from nl_jax.base import Array, Batch, GradientEstimator, Info, Key, Objective, Params, State, stateless
from nl_jax.estimators.noise.engine.chunks import sum_over_samples
from nl_jax.estimators.noise.spaces.coupling import mixing_layers
from nl_jax.propagation import Loop, Site, interpret, plain_loop
from nl_jax.propagation.loops import (
    Leaves,
    Opened,
    Static,
    chosen,
    differentiable,
    instantiated,
    open_loop,
    replaced,
    require_steps,
)

Read = tuple[Leaves, Leaves]
"""x_t, and ∂L/∂y_t."""


class Run(NamedTuple):
    """A loop that has been run, and the credit of its results.

    Everything with respect to which the loop is differentiated is a parameter θ: what it closes over, its start and its
    inputs at each step, if they depend on parameters.

    Attributes:
      theta: θ.
      start: h_0, the state before the first step: the carry without running totals.
      step: `step(θ, t, read, h, rest) -> (h, seen, rest)`, lists of arrays: the state after step t; the values that
        have credit at once, totals and y_t; and the part of the carry that cannot be differentiated.
      reads: the inputs of each step, and the credit of its y; the leading axis is the steps'.
      rest: the rest before the first step.
      credit: `credit(read) -> ∂L/∂seen` of a step.
      end: ∂L/∂h_T, the credit of the last state.
      length: T.
    """

    theta: Leaves
    start: Leaves
    step: Callable[[Leaves, Array, Read, Leaves, Leaves], tuple[Leaves, Leaves, Leaves]]
    reads: Read
    rest: Leaves
    credit: Callable[[Read], Leaves]
    end: Leaves
    length: int


Derivative = Callable[[Run], Leaves]
"""`derivative(run) -> grads`, like θ."""


def online_estimator(
    name: str,
    objective: Objective,
    loop: str,
    derivative: Callable[[Key], Derivative],
    evaluations: Callable[[Params], int],
    *,
    alone: bool = True,
    chunk: int | None = None,
) -> GradientEstimator:
    """Returns an estimator of the mean loss's gradient in which the loop over time has the given derivative.

    Args:
      name: the estimator's.
      objective: a per-example objective that takes `propagate`.
      loop: the name of its loop over time; other loops keep their ordinary derivative.
      derivative: `derivative(key) -> Derivative`.
      evaluations: `evaluations(params)`, the cost of an estimate.
      alone: whether each example is run separately, so that its influence on others need not be carried; not done where
        a layer mixes examples, or a part of the batch is not per example.
      chunk: how many examples run at once where they run separately; None for all.
    """
    layered(name, objective)
    loop_name("loop", loop)
    chunk = None if chunk is None else positive_integer("chunk", chunk)

    def estimate(key: Key, state: State, params: Params, batch: Batch) -> tuple[Params, State, Info]:
        typed_key(key)
        met: list[str] = []

        def mean_loss(params: Params, key: Key, batch: Batch) -> Array:
            forward = forward_loop(derivative, key)

            def run_loop(own: str, body: Callable, carry: Any, xs: Any, length: int | None) -> tuple[Any, Any]:
                met.append(own)
                return (forward if own == loop else plain_loop)(own, body, carry, xs, length)

            return jnp.mean(per_example(interpret(objective, _as_it_is, loop=run_loop)(params, batch)[0]))

        learn = jax.value_and_grad(mean_loss)
        if alone and (count := _separable(objective, params, batch)):
            examples = jax.tree.map(lambda leaf: jnp.expand_dims(leaf, 1), batch)
            of_each = jax.vmap(lambda key, example: learn(params, key, example))
            loss, grads = _mean_over(of_each, (jax.random.split(key, count), examples), count, chunk)
        elif chunk is not None:
            raise ValueError(
                f"{name}: chunk={chunk} runs examples separately, but a layer of this program mixes them, or a part of "
                "the batch is not per example: leave chunk out"
            )
        else:
            loss, grads = learn(params, key, batch)
        require_loop(name, loop, met)
        return grads, state, Info(loss, jnp.int32(evaluations(params)))

    return GradientEstimator(stateless, estimate)


def _separable(objective: Objective, params: Params, batch: Batch) -> int:
    """Returns the number of examples; 0 if a layer mixes them, or a part of the batch is not divided into them."""
    losses, mixes = jax.eval_shape(mixing_layers(objective), params, batch)
    divided = all(jnp.shape(leaf)[:1] == losses.shape for leaf in jax.tree.leaves(batch))
    return losses.size if divided and not mixes else 0


def _mean_over(of_each: Callable[..., Any], examples: Any, count: int, chunk: int | None) -> Any:
    """Averages each example's results over all examples, `chunk` of them at a time."""
    if chunk is None or chunk >= count:  # without indices, so that examples stay on their devices
        return jax.tree.map(lambda leaf: leaf.mean(axis=0), of_each(*examples))

    def summed(indices: Array) -> Any:
        some = of_each(*jax.tree.map(lambda leaf: leaf[indices], examples))
        return jax.tree.map(lambda leaf: leaf.sum(axis=0, dtype=wide_dtype(leaf.dtype)), some)

    total = sum_over_samples(summed, jnp.arange(count, dtype=jnp.int32), chunk)
    like = jax.eval_shape(of_each, *examples)
    return jax.tree.map(lambda leaf, like: (leaf / count).astype(like.dtype), total, like)


def require_loop(estimator: str, loop: str, met: list[str]) -> None:
    """Raises ValueError unless the program has run a loop of this name."""
    if loop not in met:
        there = ", ".join(map(repr, met)) or "none"
        raise ValueError(
            f"{estimator}: the program has no loop named loop={loop!r}, its loops are {there}: give the name of its "
            "nl.scan over time, or use an estimator that needs none, such as backprop"
        )


def forward_loop(derivative: Callable[[Key], Derivative], key: Key) -> Loop:
    """Returns `jax.lax.scan` with the derivative for this key."""

    def loop(name: str, body: Callable, carry: Any, xs: Any, length: int | None) -> tuple[Any, Any]:
        require_steps(name, xs, length)
        own = open_loop(body, carry, xs, length)

        def plain(key: Key, consts: Leaves, carry: Leaves, xs: Leaves) -> tuple[Leaves, Leaves]:
            return jax.lax.scan(lambda carry, x: own.step(consts, carry, x), carry, xs, own.length)

        def forward(key: Any, *read: Leaves) -> tuple[Any, Any]:
            values = tuple([leaf.value for leaf in leaves] for leaves in read)
            flags = tuple(tuple(leaf.perturbed and differentiable(leaf.value) for leaf in leaves) for leaves in read)
            return plain(key.value, *values), (key.value, values, Static(flags))

        def backward(kept: Any, credit: tuple[Leaves, Leaves]) -> tuple[None, Leaves, Leaves, Leaves]:
            key, values, flags = kept
            run, put_back = _run(own, values, flags.value, *credit)
            return None, *put_back(derivative(key)(run))

        learned = jax.custom_vjp(plain)
        learned.defvjp(forward, backward, symbolic_zeros=True)
        return own.close(*learned(key, own.consts, own.carry, own.xs))

    return loop


def _run(
    loop: Opened, values: Any, flags: Any, end: Leaves, ys: Leaves
) -> tuple[Run, Callable[[Leaves], tuple[Leaves, Leaves, Leaves]]]:
    """Returns the loop as its derivative sees it, and a function that puts θ's gradients back where θ came from."""
    (consts, carry, xs), (learned, begun, read) = values, flags
    end, ys = ([instantiated(leaf) for leaf in leaves] for leaves in (end, ys))
    state = [differentiable(leaf) and not total for leaf, total in zip(carry, loop.totals, strict=True)]
    rest = [not one for one in state]
    credited = [leaf.dtype != jax.dtypes.float0 for leaf in ys]
    totals = chosen(end, loop.totals)  # a total's credit is the same at all steps
    parts = chosen(consts, learned), chosen(carry, begun), chosen(xs, read)
    places = len(parts[0]), len(parts[0]) + len(parts[1])

    def step(theta: Leaves, t: Array, now_read: Read, h: Leaves, others: Leaves) -> tuple[Leaves, Leaves, Leaves]:
        own, start, stacked = theta[: places[0]], theta[places[0] : places[1]], theta[places[1] :]
        now = replaced(replaced(carry, rest, jax.lax.stop_gradient(others)), state, h)
        # The first step takes its state from the start, whose influence begins there.
        first = [jnp.where(t == 0, s, leaf) for s, leaf in zip(start, chosen(now, begun), strict=True)]
        x = replaced(now_read[0], read, [leaf[t] for leaf in stacked])
        moved, y = loop.step(replaced(consts, learned, own), replaced(now, begun, first), x)
        return chosen(moved, state), [*chosen(moved, loop.totals), *chosen(y, credited)], chosen(moved, rest)

    def credit(now_read: Read) -> Leaves:
        return [*totals, *now_read[1]]

    def put_back(grads: Leaves) -> tuple[Leaves, Leaves, Leaves]:
        shares = grads[: places[0]], grads[places[0] : places[1]], grads[places[1] :]
        several = zip((consts, carry, xs), flags, shares, strict=True)
        found = [replaced([None] * len(leaves), wanted, share) for leaves, wanted, share in several]
        return found[0], found[1], found[2]

    theta = [leaf for part in parts for leaf in part]
    reads = xs, chosen(ys, credited)
    run = Run(theta, chosen(carry, state), step, reads, chosen(carry, rest), credit, chosen(end, state), loop.length)
    return run, put_back


Push = Callable[[Leaves], Leaves]
"""`push(h') -> A h'`: carries a displacement of the state over a step."""

Pull = Callable[[Leaves], tuple[Leaves, Leaves]]
"""`pull(c) -> (cᵀD, cᵀA)`: carries the credit of the state after a step to θ and to the state before it."""


class Influence(NamedTuple):
    """A quantity that a rule carries forward in place of the past steps.

    Attributes:
      begin: its value before the first step, when parameters have had no influence on the state.
      move: `move(influence, t, push, pull) -> influence`, over step t, with A = ∂h_t/∂h_{t−1} and D = ∂h_t/∂θ as
        `push` and `pull` apply them.
      spend: `spend(influence, c) -> grads`, like θ: the gradient c J that credit c of the state gives.
    """

    begin: Any
    move: Callable[[Any, Array, Push, Pull], Any]
    spend: Callable[[Any, Leaves], Leaves]


def by_influence(influence: Callable[[Run], Influence]) -> Derivative:
    """Computes Σ_t (∂L/∂θ within step t + ∂L_t/∂h_{t−1} J_{t−1}), J the influence of θ that the rule carries."""

    def derivative(run: Run) -> Leaves:
        own = influence(run)

        def step(carry: tuple[Leaves, Leaves, Any, Leaves, Array], read: Read) -> tuple[Any, None]:
            h, rest, carried, total, t = carry

            def within(theta: Leaves, h: Leaves) -> tuple[tuple[Leaves, Leaves], Leaves]:
                moved, seen, others = run.step(theta, t, read, h, rest)
                return (moved, seen), others

            (moved, seen), pull, others = jax.vjp(within, run.theta, h, has_aux=True)
            nothing = [jnp.zeros_like(leaf) for leaf in moved]
            to_theta, to_h = pull((nothing, run.credit(read)))
            shares = to_theta, own.spend(carried, to_h)
            total = [g + direct + past for g, direct, past in zip(total, *shares, strict=True)]

            push = jax.linearize(lambda h: within(run.theta, h)[0][0], h)[1]
            unseen = [jnp.zeros_like(leaf) for leaf in seen]
            carried = own.move(carried, t, push, lambda c: pull((c, unseen)))
            return (moved, others, carried, total, t + 1), None

        begin = run.start, run.rest, own.begin, [jnp.zeros_like(leaf) for leaf in run.theta], jnp.int32(0)
        (_, _, carried, total, _), _ = jax.lax.scan(step, begin, run.reads, run.length)
        return [g + past for g, past in zip(total, own.spend(carried, run.end), strict=True)]

    return derivative


def _as_it_is(site: Site, given: None) -> tuple[Array, None]:
    return site.axons(), None
