"""Truncated backpropagation through time (Williams & Peng 1990)."""

import jax
import jax.numpy as jnp

from nl_jax._core.require import positive_integer
from nl_jax.base import Array, GradientEstimator, Objective
from nl_jax.estimators.online.forward_credit import Read, Run, online_estimator
from nl_jax.propagation.loops import Leaves


def truncated_backprop(objective: Objective, *, window: int, loop: str = "time") -> GradientEstimator:
    """Backpropagates through time within windows of k steps; no credit passes from a window to the one before.

    Time is cut into consecutive windows; the last one may be shorter. The state is passed on, its credit is not:
    BPTT(k; k) of Williams & Peng (1990). Dependencies over more than k steps are not learned, and shorter ones only if
    no border lies between.

    Args:
      objective: a per-example objective that takes `propagate`, whose program has an `nl.scan` of this name.
      window: k, at least 1; if at least the number of steps, this is `backprop`.
      loop: the loop's name.

    Returns:
      An estimator without state or randomness, biased unless a window holds all steps. It needs the memory of one
      window, whatever the number of steps, and four evaluations.

    Raises:
      ValueError: if the objective takes no `propagate` or `window` is not as described; when run, if the program has no
        loop of this name.
    """
    window = positive_integer("window", window)

    def derivative(run: Run) -> Leaves:
        windows = -(-run.length // window)

        def back(first: Array, h: Leaves, rest: Leaves, end: Leaves, steps: int) -> tuple[Leaves, Leaves, Leaves]:
            """Returns the state and the rest after the steps of a window, and the gradient of these steps."""

            places = first + jnp.arange(steps, dtype=jnp.int32)
            reads = jax.tree.map(lambda leaf: leaf[places], run.reads)

            def inside(theta: Leaves, h: Leaves) -> tuple[tuple[Leaves, list[Leaves]], Leaves]:
                def step(
                    carry: tuple[Leaves, Leaves, Array], read: Read
                ) -> tuple[tuple[Leaves, Leaves, Array], Leaves]:
                    h, rest, t = carry
                    h, seen, rest = run.step(theta, t, read, h, rest)
                    return (h, rest, t + 1), seen

                (h, others, _), seen = jax.lax.scan(step, (h, rest, first), reads, steps)
                return (h, seen), others

            (h, _), pull, others = jax.vjp(inside, run.theta, h, has_aux=True)
            credit = jax.vmap(run.credit)(reads)
            return h, others, pull((end, credit))[0]

        def one(carry: tuple[Leaves, Leaves, Leaves, Array], _: None) -> tuple[tuple, None]:
            h, rest, total, first = carry
            h, rest, grads = back(first, h, rest, [jnp.zeros_like(leaf) for leaf in h], window)
            return (h, rest, [t + g for t, g in zip(total, grads, strict=True)], first + window), None

        begin = run.start, run.rest, [jnp.zeros_like(leaf) for leaf in run.theta], jnp.int32(0)
        (h, rest, total, first), _ = jax.lax.scan(one, begin, length=windows - 1)
        _, _, grads = back(first, h, rest, run.end, run.length - window * (windows - 1))
        return [t + g for t, g in zip(total, grads, strict=True)]

    return online_estimator(
        "truncated_backprop", objective, loop, lambda key: derivative, lambda params: 4, alone=False
    )
